"""Print parameters and multiply-accumulates of a config's model, whole and backbone."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmprune_ext.analysis import Complexity, complexity
from mmprune_ext.analysis.tables import render
from mmprune_ext.atomic import atomic_write
from mmprune_ext.compact.compact_model import build_architecture
from mmprune_ext.engine import cli
from mmprune_ext.units.demo_inputs import image_size_from_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    cli.config_arguments(parser)
    parser.add_argument('--shape', type=int, nargs='+', metavar='SIZE',
                        help='size of one sample: C H W, or H W with the channels of the first '
                        'layer; default: the size in the config, else the one that the '
                        'backbone states, else 224 224')
    parser.add_argument('--json', metavar='FILE', help='write all numbers, layer by layer, here')
    return parser.parse_args()


def table(result: Complexity) -> str:
    """Return the numbers as text."""
    size = ' x '.join(map(str, result.input_shape))
    rows = [('whole model', f'{result.params:,}', f'{result.macs:,}'),
            ('backbone', f'{result.backbone_params:,}', f'{result.backbone_macs:,}')]
    text = render(('', 'parameters', 'MACs'), rows, f'One sample of {size}', numbers=(1, 2))
    text += ('\nMACs: multiply-accumulates of convolution and linear layers; no bias, '
             'normalisation, activation, pooling\n')
    if result.matmul_macs:
        text += f'Matrix products of attention, not included: {result.matmul_macs:,} MACs\n'
    if result.flops is not None:
        text += f"FLOPs of the whole model by mmengine's convention: {result.flops:,}\n"
    return text


def main() -> None:
    args = parse_args()
    with cli.user_errors():
        config = cli.read_config(args.config, args.cfg_options)
        model = build_architecture(config.model, config.get('data_preprocessor'))
        result = complexity(model, args.shape or image_size_from_config(config))
        if args.json:
            atomic_write(json.dumps(result.to_dict(), indent=1) + '\n', args.json)
        print(table(result), end='')


if __name__ == '__main__':
    main()
