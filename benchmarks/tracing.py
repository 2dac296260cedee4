#!/usr/bin/env python3
"""Measure how long channel units take to find, and compact models to build.

Example: python benchmarks/tracing.py --models ResNet-50 ShuffleNetV2
"""

from __future__ import annotations

import argparse
import gc
import logging
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.machine import Spent, header, timed
from benchmarks.networks import CIFAR, TASKS, ZOO, read, select
from mmprune_ext.analysis.tables import render
from mmprune_ext.cli.errors import user_errors
from mmprune_ext.compact.compact_model import build_architecture, forget_pretrained
from mmprune_ext.units import trace_units
from mmprune_ext.units.demo_inputs import tracing_inputs

COLUMNS = ('network', 'params (M)', 'units', 'prunable', 'trace cpu s', 'wall s', 'dense cpu s',
           'compact cpu s', 'ratio', 'with init')


class Row(NamedTuple):
    """What was measured on one network; times are medians."""

    name: str
    params: int
    units: int
    prunable: int
    trace: Spent
    dense: float
    compact: float
    initialised: float


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--models', nargs='+', metavar='NAME',
                        help='networks by the beginning of their names; default: those of '
                             'classification and of the four tasks')
    parser.add_argument('--repeats', type=int, default=5, help='of each build (trace: a third)')
    parser.add_argument('--threads', type=int, default=1)
    return parser.parse_args()


def median(values: list[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def measure(name: str, repeats: int) -> Row:
    """Trace a network, prune every unit to half, and time dense and compact builds in turn."""
    config = read(name)
    inputs = tracing_inputs(config)
    architecture = config.model.to_dict()
    preprocessor = config.get('data_preprocessor')
    if preprocessor is not None:
        architecture.setdefault('data_preprocessor', preprocessor)
    model = build_architecture(architecture)
    params = sum(p.numel() for p in model.parameters())
    traces = []
    for _ in range(max(1, repeats // 3)):
        units, spent = timed(partial(trace_units, model, inputs))
        traces.append(spent)
    for unit in units.prunable.values():
        unit.choose(range(unit.kept_number(0.5)))
    del model
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'units.json'
        units.save(path)
        compact = {'type': 'mmprune_ext.CompactModel', 'architecture': architecture,
                   'units': str(path)}
        builds: dict[str, list[float]] = {'dense': [], 'compact': []}
        inits: dict[str, list[float]] = {'dense': [], 'compact': []}
        for _ in range(repeats):
            for kind, settings in (('dense', architecture), ('compact', compact)):
                gc.collect()
                built, build = timed(partial(build_architecture, settings))
                forget_pretrained(built)  # nothing is fetched
                _, init = timed(built.init_weights)
                del built
                builds[kind].append(build.cpu)
                inits[kind].append(build.cpu + init.cpu)
    return Row(name, params, len(units), len(units.prunable),
               Spent(median([t.wall for t in traces]), median([t.cpu for t in traces])),
               median(builds['dense']), median(builds['compact']),
               median(inits['compact']) / median(inits['dense']))


def cells(row: Row) -> list[str]:
    """Return a row of the table."""
    return [row.name, f'{row.params / 1e6:.1f}', str(row.units), str(row.prunable),
            f'{row.trace.cpu:.2f}', f'{row.trace.wall:.2f}', f'{row.dense:.3f}',
            f'{row.compact:.3f}', f'{row.compact / row.dense:.2f}', f'{row.initialised:.2f}']


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    logging.disable(logging.INFO)  # init_weights logs every layer
    with user_errors():
        names = select(args.models, [*ZOO, *CIFAR, *TASKS])
        title = header('benchmarks/tracing.py')
        rows = []
        for name in names:
            rows.append(measure(name, args.repeats))
            print(*cells(rows[-1]), sep='  ', file=sys.stderr, flush=True)
    print(f'{title}\n')
    print(render(COLUMNS, [cells(row) for row in rows], numbers=range(1, len(COLUMNS))), end='')
    print(f'median of {args.repeats} builds, dense and compact in turn; every prunable unit of the '
          'compact model at half its channels;\ncompact builds read the unit file; ratio: compact '
          'to dense, with init: of build and init_weights, as the Runner does it;\ntrace: whole trace_units '
          'with its check by execution, on the images that the tools trace on: of the size in the config, '
          'in mmdet\nand mmseg with sides reduced to at most 320')


if __name__ == '__main__':
    main()
