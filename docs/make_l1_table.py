#!/usr/bin/env python3
"""Print the tables of docs/l1.md: size of the L1 configs' networks, beside the published size.

Round n applies the ratios of the config n times: int(kept * (1 - ratio)) of the round before. A and B are
the paper's own models, which have configs of their own. Weights make no difference to sizes, so none are
loaded. Other configs are in a table of their own.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmengine.registry import MODELS

from mmprune_ext.analysis import complexity
from mmprune_ext.cli.errors import user_errors
from mmprune_ext.compact import slim
from mmprune_ext.settings import reading
from mmprune_ext.targets.target import keeps_from_ratios
from mmprune_ext.units import trace_units
from mmprune_ext.workflows.costs import config_costs

FOLDER = Path(__file__).resolve().parents[1] / 'configs' / 'pruning' / 'mmcls' / 'l1'
SIZE = (32, 32)
# Millions of parameters that the published experiments print, by round; 0 is the dense network.
PUBLISHED: dict[str, tuple[str, ...]] = {
    'resnet56': ('0.85', '0.65', '0.51', '0.42', '0.34', '0.28'),
    'resnet110': ('1.72', '1.26', '0.92', '0.70', '0.52', '0.38'),
    'resnet20': ('', ''),
    'preresnet110': ('', ''),
    'vgg16bn': ('', ''),
    'wrn28_10': ('', ''),
}
# The same of the paper's table 1, by network and model.
PAPER = {'resnet56': {'A': '0.77', 'B': '0.73'}, 'resnet110': {'A': '1.68', 'B': '1.16'}}
# What is published of the configs that have no table of rounds.
OTHERS = {
    'vgg16bn_cifar10_a': '5.4e6, 2.06e8 FLOPs',
    'resnet56_cifar100': '', 'resnet110_cifar100': '', 'preresnet110_cifar100': '',
    'wrn28_10_cifar100': '', 'vgg16bn_cifar100': '',
    'resnet34_8xb32_in1k_a': '1.99e7, 3.08e9 FLOPs', 'resnet34_8xb32_in1k_b': '1.93e7, 2.76e9 FLOPs',
    'resnet34_8xb32_in1k_c': '2.01e7, 3.37e9 FLOPs', 'vgg16_8xb32_in1k': '',
}


def other_row(name: str) -> str:
    """Return the line of a config."""
    compact = config_costs(reading.read_config(str(FOLDER / f'l1_{name}.py'))).compact
    return f'| `l1_{name}.py` | {compact.params:,} | {compact.macs:,} | {OTHERS[name] or "not printed"} |'


def rows(config_name: str, network: str, labels: dict[int, str], published: tuple[str, ...]) -> list[str]:
    """Return the lines of one config.

    Args:
        config_name: Of the config.
        network: Its first column.
        labels: Its second column, by round; the rounds that are not named have no line.
        published: Parameters in millions, by round.
    """
    config = reading.read_config(str(FOLDER / f'{config_name}.py'))
    architecture = config.model.architecture.to_dict()
    units = trace_units(MODELS.build(architecture), SIZE)
    ratios = config.model.target_pruning_ratio.to_dict()
    # What the ratios are by unit, from the kept numbers of the package itself in round 1.
    first = keeps_from_ratios(units, ratios)
    found = []
    for number, printed in enumerate(published):
        if number:
            pruned = [unit for unit in units.prunable.values()
                      if first[unit.name] < unit.num_channels]
            for unit in pruned:
                ratio = next(r for key, r in reversed(ratios.items())
                             if unit.name in units.match(key))
                unit.choose(range(int(unit.keep * (1 - ratio))))
        if number not in labels:
            continue
        cost = complexity(slim(MODELS.build(architecture), units), SIZE, flops=False)
        found.append(f'| {network} | {labels[number]} | {cost.params:,} | {cost.macs:,} | '
                     f'{f"{printed}M" if printed else "not printed"} |')
    return found


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    print('| network | round | parameters | MACs | published parameters |')
    print('| --- | --- | ---: | ---: | ---: |')
    with user_errors():
        for name, published in PUBLISHED.items():
            labels = {number: str(number or 'dense') for number in range(len(published))}
            print(*rows(f'l1_{name}_cifar10', name, labels, published), sep='\n')
            for model, printed in PAPER.get(name, {}).items():
                print(*rows(f'l1_{name}_cifar10_{model.lower()}', name, {1: model}, ('', printed)), sep='\n')
        print('\n| config | parameters | MACs | published |')
        print('| --- | ---: | ---: | --- |')
        for name in OTHERS:
            print(other_row(name))


if __name__ == '__main__':
    main()
