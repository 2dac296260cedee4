#!/usr/bin/env python3
"""Print the table of docs/chip.md: size of the CHIP configs' networks, beside the published size.

Weights make no difference to sizes, so none are loaded.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmengine.registry import DefaultScope

from mmprune_ext.analysis import Complexity, complexity
from mmprune_ext.cli.errors import user_errors
from mmprune_ext.compact import slim
from mmprune_ext.compact.compact_model import build_architecture
from mmprune_ext.mutators import CHIPMutator
from mmprune_ext.settings import reading
from mmprune_ext.targets.target import keeps_from_ratios
from mmprune_ext.units import UnitSet, trace_units

FOLDER = Path(__file__).resolve().parents[1] / 'configs' / 'pruning' / 'mmcls' / 'chip'
# Parameters and FLOPs that the published tables print, by network and row.
PUBLISHED: dict[str, dict[str, tuple[str, str]]] = {
    'resnet56_cifar10': {'dense': ('0.85M', '125.49M'), 's47': ('0.48M', '65.94M'),
                         's74': ('0.24M', '34.78M')},
    'resnet110_cifar10': {'dense': ('1.72M', '252.89M'), 's44': ('1.04M', '140.54M'),
                          's52': ('0.89M', '121.09M'), 's71': ('0.54M', '71.69M')},
    'vgg16bn_cifar10': {'dense': ('14.98M', '313.73M'), 's58': ('2.76M', '131.17M'),
                        's66': ('2.50M', '104.78M'), 's78': ('1.90M', '66.95M')},
    'resnet50_8xb32_in1k': {'dense': ('25.55M', '4.11B'), 's44': ('15.09M', '2.26B'),
                            's48': ('14.28M', '2.19B'), 's62': ('11.05M', '1.52B'),
                            's76': ('8.02M', '0.95B')},
}


def count(name: str, row: str, units: UnitSet | None) -> tuple[UnitSet, Complexity]:
    """Return a network's units, traced if they are not known, and what a row's network costs."""
    rows = PUBLISHED[name]
    config = reading.read_config(str(FOLDER / f'chip_{name}_{[*rows][1] if row == "dense" else row}.py'))
    size = tuple(config.model.mutator.demo_inputs)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        model = build_architecture(config.model.architecture.to_dict(), config.data_preprocessor)
    units = trace_units(model, (64, 64) if size[0] > 64 else size) if units is None else units
    chosen = units.copy()
    if row != 'dense':
        for unit, keep in keeps_from_ratios(units, config.model.target_pruning_ratio,
                                            CHIPMutator.sparsity_layouts).items():
            chosen[unit].choose(range(keep))
    return units, complexity(slim(model, chosen), size, flops=False)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    print('| config | parameters | published | MACs | FLOPs by thop | published |')
    print('| --- | ---: | ---: | ---: | ---: | ---: |')
    with user_errors():
        for name, rows in PUBLISHED.items():
            units = None
            for row, (params, flops) in rows.items():
                units, cost = count(name, row, units)
                label = f'{name}, dense' if row == 'dense' else f'`chip_{name}_{row}.py`'
                print(f'| {label} | {cost.params:,} | {params} | {cost.macs:,} | '
                      f'{cost.flops_thop:,} | {flops} |')


if __name__ == '__main__':
    main()
