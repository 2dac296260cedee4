#!/usr/bin/env python3
"""Measure what ChipNet's gates cost in training, in time and memory, and how long a search takes to build.

Example: python benchmarks/chipnet.py --network ResNet-50 --repeats 10
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import logging
import multiprocessing
import statistics
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from mmengine.registry import MODELS
from torch import nn

from benchmarks.machine import extra_memory, header, timed
from benchmarks.networks import CIFAR, ZOO, read
from benchmarks.steps import step_of, time_in_turn
from mmprune_ext.analysis import CostModel, complexity
from mmprune_ext.analysis.soft_cost import SoftCost
from mmprune_ext.analysis.tables import render
from mmprune_ext.cli import arguments
from mmprune_ext.cli.errors import user_errors
from mmprune_ext.mutators.chipnet_mutator import KINDS
from mmprune_ext.units import trace_units
from mmprune_ext.units.demo_inputs import image_size_from_config
from mmprune_ext.units.tracing.gate_sites import find_gate_sites

MEMORY_STEPS = 3  # from the second on the optimizer's momentum is there
M_MMAP_THRESHOLD, LARGE = -3, 2 ** 20  # of malloc.h; bytes
PARTS = ('trace', 'count', 'price', 'sites')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--network', choices=[*ZOO, *CIFAR], default='ResNet-50', metavar='NAME',
                        help='a network for classification (default: ResNet-50)')
    parser.add_argument('--budget', nargs='+', action=arguments.SettingsAction, default={'flops': 0.5},
                        metavar='RESOURCE=SHARE', help='one or several (default: flops=0.5)')
    parser.add_argument('--batch', type=arguments.positive, default=8)
    parser.add_argument('--size', nargs=2, type=arguments.positive, metavar=('H', 'W'),
                        help='of the images (default: the size in the config)')
    parser.add_argument('--repeats', type=arguments.positive, default=10,
                        help='training steps of each kind, in turn (builds: a third)')
    parser.add_argument('--threads', type=arguments.positive, default=1)
    return parser.parse_args()


def dense_model(name: str) -> nn.Module:
    """Return a network with fresh weights."""
    model = MODELS.build(read(name).model.to_dict())
    model.init_weights()
    return model


def search_model(dense: nn.Module, size: tuple[int, int], budget: Mapping[str, float]) -> nn.Module:
    """Return a dense model with gates, as it is searched; the model is changed in place."""
    return MODELS.build({'type': 'mmprune_ext.ChipNet', 'architecture': dense, 'budget': dict(budget),
                         'mutator': {'type': 'mmprune_ext.ChipNetMutator', 'demo_inputs': size}})


def both(name: str, size: tuple[int, int], budget: Mapping[str, float]) -> dict[str, nn.Module]:
    """Return the dense model, and the same with gates."""
    dense = dense_model(name)
    gated = search_model(copy.deepcopy(dense), size, budget)
    gated.set_step(0)
    return {'dense': dense, 'gated': gated}


def give_back_freed_memory() -> None:
    """Let the C library give large blocks back as soon as they are freed, and now what it still keeps.

    By itself glibc keeps more and more of them, which moves the peak by a tenth from run to run.
    """
    library = ctypes.CDLL(None) if sys.platform == 'linux' else None
    if hasattr(library, 'mallopt') and hasattr(library, 'malloc_trim'):
        library.mallopt(M_MMAP_THRESHOLD, LARGE)
        library.malloc_trim(0)


def step_memory(kind: str, args: argparse.Namespace) -> float:
    """Return by how many MB training steps of a model raise the memory of a new process at their peak."""
    torch.set_num_threads(args.threads)
    logging.disable(logging.INFO)
    # Both kinds are built, so that both processes have the same past.
    model = both(args.network, args.size, args.budget)[kind]
    step = step_of(model, torch.randn(args.batch, 3, *args.size))
    gc.collect()
    give_back_freed_memory()
    return extra_memory(lambda: [step() for _ in range(MEMORY_STEPS)])


def memory_in_a_new_process(kind: str, args: argparse.Namespace) -> float:
    """Return :func:`step_memory`, of a process that has not trained before."""
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        return pool.submit(step_memory, kind, args).result()


def build_times(args: argparse.Namespace) -> dict[str, float]:
    """Return the processor seconds of what a search begins with, and of all of it, medians."""
    dense, spent = dense_model(args.network), {key: [] for key in (*PARTS, 'whole')}
    for _ in range(max(1, args.repeats // 3)):
        units, trace = timed(partial(trace_units, dense, args.size))
        counted, count = timed(partial(complexity, dense, args.size, flops=False))

        def price(units=units, counted=counted) -> None:
            cost = CostModel(units, counted.per_layer, dense, '', counted.per_layer_outputs)
            for name in args.budget:
                SoftCost(cost, KINDS[name])
        model = copy.deepcopy(dense)
        parts = (trace, count, timed(price)[1], timed(partial(find_gate_sites, dense, units, args.size))[1],
                 timed(partial(search_model, model, args.size, args.budget))[1])
        for key, part in zip(spent, parts, strict=True):
            spent[key].append(part.cpu)
    return {key: statistics.median(values) for key, values in spent.items()}


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    logging.disable(logging.INFO)  # init_weights logs every layer
    with user_errors():
        args.size = tuple(args.size or image_size_from_config(read(args.network)))
        title = header('benchmarks/chipnet.py')
        models = both(args.network, args.size, args.budget)
        inputs = torch.randn(args.batch, 3, *args.size)
        times = time_in_turn({kind: step_of(model, inputs) for kind, model in models.items()}, args.repeats)
        del models
        memory = {kind: memory_in_a_new_process(kind, args) for kind in times}
        built = build_times(args)
    budget = ', '.join(f'{name}={share}' for name, share in args.budget.items())
    print(f'{title}\n')
    print(render((f'{args.network}, batch {args.batch}', 'median s', 'least s', 'to dense', 'extra MB', 'to dense'),
                 [[kind, f'{time.median:.3f}', f'{time.least:.3f}', f'{time.to_dense:.3f}', f'{memory[kind]:.0f}',
                   f'{memory[kind] / memory["dense"]:.3f}'] for kind, time in times.items()],
                 numbers=range(1, 6)), end='')
    print(f'training steps on images of {args.size[0]} x {args.size[1]}, budget {budget}; in turn, processor time,\n'
          f'{args.repeats} of each after one that is not counted; to dense: median of the ratios to the dense step of '
          f'the same round;\nextra MB: peak of resident memory in {MEMORY_STEPS} steps above that before them, each '
          'kind in a new process,\nwhere the C library gives freed blocks of 1 MiB and more back at once\n')
    print(render(('', 'cpu s', 'to trace'), [[key, f'{value:.2f}', f'{value / built["trace"]:.2f}']
                                             for key, value in built.items()], numbers=(1, 2)), end='')
    print('trace: whole trace_units with its check by execution; count: of multiply-accumulates and output values;\n'
          'price: the costs as functions of the channels; sites: the layers to gate; whole: a search from a dense '
          'model')


if __name__ == '__main__':
    main()
