#!/usr/bin/env python3
"""Measure what DCFF costs: the importance against its definition, updates, training steps.

Example: python benchmarks/dcff.py --channels 64 512 2048 --steps 3
"""

from __future__ import annotations

import argparse
import copy
import logging
import statistics
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from benchmarks.machine import extra_memory, header, timed
from benchmarks.networks import read, select
from benchmarks.steps import step_of, time_in_turn
from mmprune_ext.analysis.tables import render
from mmprune_ext.cli import arguments
from mmprune_ext.cli.errors import user_errors
from mmprune_ext.scores import fusion_importance
from mmprune_ext.units.demo_inputs import image_size_from_config

# The published pruning ratios of ResNet-50: the stem, then three a block.
RATES = '[0.0]+[0.35,0.4,0.1]*10+[0.3,0.3,0.1]*6'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--channels', nargs='*', type=arguments.positive, metavar='C',
                        default=[64, 128, 256, 512, 1024, 2048], help='sizes of the importance table')
    parser.add_argument('--definition', type=arguments.positive, default=512, metavar='C',
                        help='the definition is run up to this size; beyond, its cost is extrapolated')
    parser.add_argument('--model', default='ResNet-50', help='network of the training table')
    parser.add_argument('--rates', default=RATES, help='pruning ratios of that network')
    parser.add_argument('--batch', type=arguments.positive, default=8)
    parser.add_argument('--steps', type=arguments.not_negative, default=5,
                        help='training steps of each kind, in turn; 0: no training table')
    parser.add_argument('--threads', type=arguments.positive, default=1)
    return parser.parse_args()


def definition(weight: Tensor, temperature: float) -> Tensor:
    """Return the importance by the formula as it stands, on a tensor of ``(C, C, C)``."""
    filters = weight.double().flatten(1)
    q = (-temperature * torch.cdist(filters, filters)).softmax(1)
    return (q[:, None] * (q[:, None] / (q[None] + 1e-7)).log()).mean(2).sum(1)


def importance_row(channels: int, limit: int, known: list[float]) -> list[str]:
    """Time both forms on one layer; ``known`` is the definition's cost (s, MB) at ``limit`` channels."""
    weight = 0.02 * torch.randn(channels, 64, 3, 3, generator=torch.Generator().manual_seed(0))
    function = partial(fusion_importance, weight, 1.0)
    memory = extra_memory(function)  # of the first call: later ones find memory that it left
    fast = statistics.median(timed(function)[1].cpu for _ in range(5))
    mark = ''
    if channels <= limit:
        plain = partial(definition, weight, 1.0)
        slow_memory = extra_memory(plain)
        torch.testing.assert_close(function(), plain(), rtol=1e-5, atol=1e-12)
        known[:] = channels, timed(plain)[1].cpu, slow_memory
        slow, slow_memory = known[1:]
    else:
        growth = (channels / known[0]) ** 3
        slow, slow_memory, mark = known[1] * growth, known[2] * growth, '*'
    return [str(channels), f'{1e3 * fast:.1f}', f'{memory:.0f}', f'{1e3 * slow:.0f}{mark}',
            f'{slow_memory:.0f}{mark}', f'{slow / fast:.0f}{mark}']


def training_models(name: str, rates: str) -> tuple[dict[str, nn.Module], list[float]]:
    """Return the models to train by kind, and the seconds of updates of all mixtures."""
    config = read(name)
    architecture = config.model.to_dict()
    mutator = {'type': 'mmprune_ext.DCFFMutator', 'demo_inputs': list(image_size_from_config(config))}
    dense = MODELS.build(architecture)
    first = MODELS.build({'type': 'mmprune_ext.DCFF', 'architecture': architecture, 'mutator': mutator,
                          'target_pruning_ratio': rates})
    for model in (dense, first):
        model.init_weights()
    updates = [timed(partial(first.update_fusion, step, 100))[1].cpu for step in (1, 2, 0)]
    later = copy.deepcopy(first)
    later.update_fusion(50, 100)
    models = {'dense': dense, 'DCFF, first epoch': first, 'DCFF, later': later,
              'compact': first.export_model()}
    return models, updates


def training_rows(name: str, rates: str, batch: int, count: int) -> tuple[list[list[str]], list[float]]:
    """Time training steps of all kinds in turn."""
    models, updates = training_models(name, rates)
    inputs = torch.randn(batch, 3, *image_size_from_config(read(name)))
    times = time_in_turn({kind: step_of(model, inputs) for kind, model in models.items()}, count)
    rows = [[kind, f'{time.median:.2f}', f'{time.least:.2f}', f'{time.to_dense:.2f}'] for kind, time in times.items()]
    return rows, updates


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    logging.disable(logging.INFO)  # init_weights logs every layer
    with user_errors():
        select([args.model])
        title = header('benchmarks/dcff.py')
        known: list[float] = []
        table = [importance_row(c, max(args.definition, min(args.channels)), known)
                 for c in sorted(args.channels)]
        rows, updates = training_rows(args.model, args.rates, args.batch, args.steps) if args.steps else ([], [])
    print(f'{title}\n')
    if table:
        print(render(('channels', 'cpu ms', 'extra MB', 'definition ms', 'MB', 'ratio'), table,
                     numbers=range(6)), end='')
        print('importance of one layer of C filters of 64 x 3 x 3; cpu: processor time, median of 5;\n'
              'extra MB: peak of resident memory above that before; definition: on a (C, C, C) tensor, '
              f'run up to C = {int(known[0])};\n*: that cost times (C / {int(known[0])}) ** 3\n')
    if rows:
        print(render((f'{args.model}, batch {args.batch}', 'median s', 'least s', 'to dense'), rows,
                     numbers=(1, 2, 3)), end='')
        print(f'training steps in turn, processor time, {args.steps} of each after one that is not counted;\n'
              'to dense: median of the ratios to the step of dense in the same round;\n'
              'first epoch: at temperature 1, every mixture holds all filters; later: each chooses one\n'
              f'update of all mixtures: {statistics.median(updates):.2f} s, median of 3')


if __name__ == '__main__':
    main()
