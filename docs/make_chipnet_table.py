#!/usr/bin/env python3
"""Write docs/chipnet_sizes.md: sizes of the dense networks of the ChipNet configs, beside the published ones.

Weights make no difference to sizes, so none are loaded and none are drawn. Takes ten seconds on one core.
Example: python docs/make_chipnet_table.py --check
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmprune_ext.analysis import Complexity, complexity
from mmprune_ext.atomic import atomic_write
from mmprune_ext.cli.errors import fail, user_errors
from mmprune_ext.compact.compact_model import build_architecture, postponed_initialisation
from mmprune_ext.settings import reading

PAGE = Path(__file__).resolve().with_name('chipnet_sizes.md')
CONFIGS = Path(__file__).resolve().parents[1] / 'configs' / 'pruning' / 'mmcls' / 'chipnet'
# Millions of parameters and 1e9 FLOPs that the published table prints, by network.
PUBLISHED = {
    'VGG-11': ('132.86', '7.63'), 'VGG-13': ('133.05', '11.34'),
    'VGG-16': ('138.36', '15.5'), 'VGG-19': ('143.67', '19.67'),
    'VGG-11-BN': ('132.87', '7.64'), 'VGG-13-BN': ('133.05', '11.36'),
    'VGG-16-BN': ('138.37', '15.53'), 'VGG-19-BN': ('143.68', '19.7'),
}
TOP = """\
# ChipNet: sizes of the dense networks

Written by `python docs/make_chipnet_table.py`. Do not edit. The networks of ChipNet's published table, Tiwari et al.,
"ChipNet: Budget-Aware Pruning with Heaviside Continuous Approximations", ICLR 2021,
[arXiv 2102.07156](https://arxiv.org/abs/2102.07156), as the configs build them before the search. Whole models, one
image of 224 x 224, [conventions](targets.md#what-the-numbers-count). FLOPs by OpenMMLab's counter before mmengine
(`flops_mm`), which that table was made with; it rounds to two decimals. A budget of `flops` is a share of the MACs.

| network | config | parameters | published | MACs | FLOPs | published |
| --- | --- | ---: | ---: | ---: | ---: | ---: |
"""


def measure(config_file: Path) -> Complexity:
    """Return what the dense network of a config costs."""
    config = reading.read_config(str(config_file))
    with postponed_initialisation():
        model = build_architecture(config.model.architecture, config.get('data_preprocessor'))
    return complexity(model, tuple(config.model.mutator.demo_inputs), flops=False)


def line(network: str, params: str, flops: str) -> str:
    """Return a row of the table."""
    name = f'chipnet_{network.lower().replace("-", "")}_8xb32_in1k'
    cost = measure(CONFIGS / f'{name}.py')
    return (f'| {network} | [{name}](../configs/pruning/mmcls/chipnet/{name}.py) | {cost.params:,} | {params}M | '
            f'{cost.macs:,} | {cost.flops_mm:,} | {flops}G |\n')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--check', action='store_true',
                        help='compare with docs/chipnet_sizes.md instead of writing it')
    args = parser.parse_args()
    with user_errors():
        text = TOP + ''.join(line(network, *printed) for network, printed in PUBLISHED.items())
        if not args.check:
            atomic_write(text, PAGE)
        elif not PAGE.is_file() or PAGE.read_text() != text:
            fail(f'{PAGE} is not what the configs give now; run this script without --check')


if __name__ == '__main__':
    main()
