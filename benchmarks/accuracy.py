#!/usr/bin/env python3
"""Measure the accuracy of a network that several methods prune to the same size: classifiers, detectors, and others.

Needs the dense weights and the data: of classifiers the images as folders (DATA/train/<class>/, DATA/val/<class>/), of
the other tasks the folder that holds the data set (docs/data.md). Rows are those of CHIP's
published table, or budgets. Each measurement is one file in the results folder; those that are there are not
repeated, so that a run can be stopped, continued and split by --methods, --rows or --seeds.

Example: python benchmarks/accuracy.py --data data/cifar10 --checkpoint checkpoints/resnet56_cifar10.pth
--rows flops=0.5 flops=0.25 --methods l1 chip chipnet --results work_dirs/accuracy
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.accuracy_runs import METHODS, NETWORKS, PUBLISHED, budget_of, measure, measure_dense, settings
from benchmarks.machine import header, machine
from mmprune_ext.atomic import atomic_write
from mmprune_ext.cli import arguments
from mmprune_ext.cli.errors import fail, user_errors
from mmprune_ext.targets.budget import RESOURCES

STAGES = {'pruned': 'pruned', 'statistics': 'new statistics', 'tuned': 'fine-tuned'}
REPAIRED = {'repaired': 'repaired', 'repaired_tuned': 'repaired, fine-tuned'}
SPREADS = ('uniform', 'global', 'isomorphic')
ONE_SHOT = [method for method in METHODS if method != 'chipnet']


def row(text: str) -> str:
    """Read an argument that is a published row or a budget."""
    if text in PUBLISHED:
        return text
    resource, _, share = text.partition('=')
    try:
        if resource in RESOURCES and 0 < float(share) < 1:
            return f'{resource}={float(share):g}'
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f'expected {", ".join(PUBLISHED)}, or what remains, above 0 and below 1, of '
                                     f'{", ".join(RESOURCES)}, such as flops=0.5, got {text}')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data', required=True, metavar='DIR')
    parser.add_argument('--checkpoint', required=True, help='weights of the dense network')
    parser.add_argument('--network', choices=list(NETWORKS), default='resnet56')
    parser.add_argument('--results', default='work_dirs/accuracy', metavar='DIR')
    parser.add_argument('--rows', nargs='+', type=row, default=list(PUBLISHED), metavar='ROW',
                        help=f'published rows of ResNet-56 by the share of FLOPs removed ({", ".join(PUBLISHED)}), or '
                             'budgets, what remains: flops=0.5, params=, channels=, volume= (default: the published)')
    parser.add_argument('--methods', nargs='+', choices=list(METHODS), default=['chip', 'l1'])
    parser.add_argument('--seeds', nargs='+', type=arguments.not_negative, default=[0, 1, 2])
    parser.add_argument('--spreads', nargs='+', choices=SPREADS, default=['uniform'],
                        help='of a budget over the units, by methods that score')
    parser.add_argument('--batches', type=arguments.positive, default=5, help='of calibration, 128 images each')
    parser.add_argument('--bn-batches', type=arguments.positive, default=20)
    parser.add_argument('--iterations', type=arguments.not_negative, default=200,
                        help='of fine-tuning, 128 images each; 0 for none (default: 200)')
    parser.add_argument('--lr', type=float, help="of fine-tuning, at its start (default: the network's)")
    parser.add_argument('--repair', type=arguments.not_negative, default=0, metavar='IMAGES',
                        help='also solve for the weights on so many training images, and fine-tune these (default: 0)')
    search = parser.add_argument_group('search of ChipNet')
    search.add_argument('--search-iterations', type=arguments.positive, default=1000)
    search.add_argument('--search-batch', type=arguments.positive, default=32)
    search.add_argument('--search-lr', type=float, default=1e-3, help='of AdamW')
    search.add_argument('--gate-lr-mult', type=float, default=20.0, help='the gates learn so much faster')
    search.add_argument('--step-freq', type=arguments.positive, default=35,
                        help='iterations of a step of the schedule, after 14 of which gamma is at its limit')
    search.add_argument('--settle', type=float, default=0.3,
                        help='share of the search, its last, in which gates go to what was decided')
    parser.add_argument('--threads', type=arguments.positive, default=1)
    args = parser.parse_args()
    args.lr = NETWORKS[args.network].lr if args.lr is None else args.lr
    published = [name for name in args.rows if budget_of(name) is None]
    if published and 'chipnet' in args.methods:
        parser.error(f'chipnet learns how much stays of a unit and takes budgets only, not the row {published[0]}; '
                     'give --rows flops=0.5')
    if published and args.network != 'resnet56':
        parser.error(f'the published row {published[0]} is of resnet56; give --rows flops=0.5 for {args.network}')
    if args.repair and 'chipnet' in args.methods:
        parser.error('chipnet trains the weights while it searches, and leaves no dense network to repair by; measure '
                     'it without --repair')
    if not 0 <= args.settle <= 1:
        parser.error(f'--settle is a share of the search, 0 to 1, got {args.settle}')
    return args


def results(args: argparse.Namespace) -> Iterable[dict[str, Any]]:
    """Yield the dense network's result and all others, from the folder or measured now."""
    jobs = [('dense', '', '', 0)] + [
        (method, name, spread, seed) for seed in args.seeds for name in args.rows for method in args.methods
        for spread in (args.spreads if budget_of(name) and method in ONE_SHOT else [''])]
    for method, name, spread, seed in jobs:
        parts = method, name, spread, str(seed)
        path = Path(args.results) / (f'{"_".join(filter(None, parts))}.json' if name else 'dense.json')
        wanted = settings(method, name, spread, args)
        if not path.exists():
            found = measure(method, name, spread, seed, args) if name else measure_dense(args)
            atomic_write(json.dumps({**found, 'settings': wanted, 'machine': machine()}, indent=1), path)
        stored = json.loads(path.read_text())
        if stored['settings'] != wanted:
            fail(f'{path} was measured with {stored["settings"]}, not {wanted}; give another --results folder')
        print({key: value for key, value in stored.items() if key not in ('keeps', 'settings', 'machine')},
              file=sys.stderr, flush=True)
        yield stored


def over_seeds(rows: list[Mapping[str, Any]], key: str, form: str = '.2f', factor: float = 1.0) -> str:
    """Return mean and standard deviation of what was measured; of one seed, or of equal integers, the value.

    Nothing where it was not measured.
    """
    values = [factor * row[key] for row in rows if key in row]
    if not values:
        return ''
    many = len(values) > 1 and (form != ',.0f' or len(set(values)) > 1)
    return f'{statistics.mean(values):{form}}' + (f' ± {statistics.stdev(values):{form}}' if many else '')


def markdown(columns: list[str], lines: list[list[str]], text: int) -> str:
    """Return a Markdown table, whose first columns are text and the others numbers."""
    rule = ['---'] * text + ['---:'] * (len(columns) - text)
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in (columns, rule, *lines))


def tables(rows: list[Mapping[str, Any]], names: list[str]) -> str:
    """Return the results as Markdown, one line for a method at a row; what ChipNet's searches were like below."""
    dense = next(row for row in rows if row['method'] == 'dense')
    budgets = [name for name in names if budget_of(name)]
    stages = {key: title for key, title in {**STAGES, **REPAIRED}.items() if any(key in row for row in rows)}
    repaired = 'repaired' in stages
    empty = [''] * (len(stages) + repaired)  # seconds to choose count for 'pruned'
    lines = [['dense', '', *[''] * bool(budgets), f'{dense["params"]:,}', f'{dense["macs"]:,}', *[''] * bool(budgets),
              f'{dense["pruned"]:.2f}', *empty]]
    searches = []
    for name in dict.fromkeys(names):
        for method, spread in [(method, spread) for method in METHODS for spread in ('', *SPREADS)]:
            same = [row for row in rows if (row['method'], row.get('row'), row.get('spread', '')) == (
                method, name, spread)]
            if not same:
                continue
            left = [over_seeds(same, 'left', '.2f', 100) if name in budgets else ''] * bool(budgets)
            lines.append([name if name in budgets else f'{name}%', method, *[spread] * bool(budgets),
                          over_seeds(same, 'params', ',.0f'), over_seeds(same, 'macs', ',.0f'), *left,
                          *(over_seeds(same, stage) for stage in stages),
                          *(over_seeds(same, key, '.0f') for key in ('choosing', 'repairing')[:1 + repaired])])
            if method == 'chipnet':
                searches.append([name, *(over_seeds(same, key, '.2f', 100) for key in ('crisp', 'soft', 'hard')),
                                 over_seeds(same, 'searched'), over_seeds(same, 'pruned')])
    kinds = ['FLOPs removed, published'] * (len(budgets) < len(names)) + ['budget'] * bool(budgets)
    seconds = ['seconds to choose', *['seconds to repair'] * repaired]
    text = markdown([' or '.join(kinds), 'method', *['spread'] * bool(budgets), 'parameters', 'MACs',
                     *['left of the budgeted, %'] * bool(budgets), *stages.values(), *seconds],
                    lines, 2 + bool(budgets))
    if searches:
        text += '\n\n' + markdown(['budget', 'crisp gates, %', 'soft share, %', 'hard share, %', 'accuracy, soft gates',
                                   'pruned'], searches, 1)
    return text


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)
    with user_errors():
        title = header('benchmarks/accuracy.py')
        print(tables(list(results(args)), args.rows))
    print(f'\n{title}')


if __name__ == '__main__':
    main()
