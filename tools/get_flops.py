"""Print parameters and multiply-accumulates of a config's model, whole and backbone."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmengine.config import Config, ConfigDict, DictAction
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmprune_ext.analysis import Complexity, complexity
from mmprune_ext.analysis.tables import render
from mmprune_ext.errors import ConfigError, PruningError
from mmprune_ext.units.spec import atomic_write_text


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', metavar='CONFIG', help='config file with a model section')
    parser.add_argument('--shape', type=int, nargs='+', metavar='SIZE',
                        help='size of one sample: C H W, or H W with the channels of the first '
                        'layer; default: the size that the backbone states, else 224 224')
    parser.add_argument('--json', metavar='FILE', help='write all numbers, layer by layer, here')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='change settings of the config')
    return parser.parse_args()


def build_model(path: str, options: dict | None) -> nn.Module:
    """Build the model of a config; pretrained weights are not loaded.

    Raises:
        ConfigError: If the config cannot be read or its model cannot be built.
    """
    if not Path(path).is_file():
        raise ConfigError(f'config file {path} does not exist')
    try:
        config = Config.fromfile(path)
        config.merge_from_dict(options or {})
    except Exception as error:  # a config is code
        raise ConfigError(f'{path} cannot be read: {type(error).__name__}: {error}') from error
    if not isinstance(config.get('model'), ConfigDict) or 'type' not in config.model:
        raise ConfigError(f'{path} has no "model" section with a "type"')
    init_default_scope(config.get('default_scope', 'mmengine'))
    try:
        return MODELS.build(config.model)
    except Exception as error:  # building runs the model's own code
        raise ConfigError(f'the model of {path} cannot be built: '
                          f'{type(error).__name__}: {error}') from error


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


def main() -> int:
    args = parse_args()
    try:
        result = complexity(build_model(args.config, args.cfg_options), args.shape)
        if args.json:
            atomic_write_text(json.dumps(result.to_dict(), indent=1) + '\n', args.json)
    except PruningError as error:
        print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
        return 2
    print(table(result), end='')
    return 0


if __name__ == '__main__':
    sys.exit(main())
