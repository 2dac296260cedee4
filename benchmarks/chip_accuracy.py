#!/usr/bin/env python3
"""Measure the accuracy of ResNet-56 on CIFAR-10, pruned by CHIP and by L1 to the same channel counts.

Needs the images as folders (DATA/train/<class>/, DATA/val/<class>/) and the dense weights. Each
measurement is one file in the results folder; those that are there are not repeated, so that a run
can be stopped, continued and split by --methods or --seeds.

Example: python benchmarks/chip_accuracy.py --data data/cifar10 --checkpoint
checkpoints/resnet56_cifar10.pth --results work_dirs/chip_accuracy
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from mmengine.config import Config
from mmengine.runner import Runner

from benchmarks.machine import header
from benchmarks.networks import read
from mmprune_ext.analysis import complexity
from mmprune_ext.atomic import atomic_write
from mmprune_ext.cli import arguments
from mmprune_ext.cli.errors import fail, user_errors
from mmprune_ext.repair.batch_norm import reestimate_batch_norm

# The sparsity strings of the published table, by the share of FLOPs it says they remove; read alike
# for both methods.
ROWS = {
    '47.4': 'chip: [0.]+[0.15]*2+[0.4]*27',
    '74.1': 'chip: [0.]+[0.4]*2+[0.5]*9+[0.6]*9+[0.7]*9',
}
METHODS = {'chip': 'mmprune_ext.CHIP', 'l1': 'mmprune_ext.L1Norm'}
STAGES = ('pruned', 'statistics', 'tuned')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data', required=True, metavar='DIR')
    parser.add_argument('--checkpoint', required=True, help='weights of the dense network')
    parser.add_argument('--results', default='work_dirs/chip_accuracy', metavar='DIR')
    parser.add_argument('--rows', nargs='+', choices=list(ROWS), default=list(ROWS))
    parser.add_argument('--methods', nargs='+', choices=list(METHODS), default=list(METHODS))
    parser.add_argument('--seeds', nargs='+', type=arguments.not_negative, default=[0, 1, 2])
    parser.add_argument('--batches', type=arguments.positive, default=5, help='of calibration, 128 images each')
    parser.add_argument('--bn-batches', type=arguments.positive, default=20)
    parser.add_argument('--iterations', type=arguments.positive, default=200, help='of fine-tuning, 128 images each')
    parser.add_argument('--lr', type=float, default=0.01, help='of fine-tuning, at its start')
    parser.add_argument('--threads', type=arguments.positive, default=1)
    return parser.parse_args()


def dense_config(args: argparse.Namespace, seed: int, folder: str) -> Config:
    """Return the config of a short run of the dense network that writes no checkpoint."""
    config = read('ResNet-56 (CIFAR)')
    for split in ('train', 'val', 'test'):
        config[f'{split}_dataloader'].dataset.data_root = args.data
        config[f'{split}_dataloader'].num_workers = 0
        config[f'{split}_dataloader'].persistent_workers = False
    config.merge_from_dict({
        'randomness.seed': seed, 'work_dir': folder, 'experiment_name': Path(folder).name,
        'default_hooks.checkpoint': None, 'visualizer.vis_backends': [], 'log_level': 'WARNING',
        'optim_wrapper.optimizer.lr': args.lr})
    config.train_cfg = dict(by_epoch=False, max_iters=args.iterations, val_interval=args.iterations + 1)
    config.param_scheduler = dict(type='CosineAnnealingLR', by_epoch=False, T_max=args.iterations)
    return config


def pruning_config(config: Config, method: str, row: str, seed: int, args: argparse.Namespace) -> Config:
    """Return the run's config with the network pruned by a method."""
    model = dict(type=METHODS[method], architecture=config.model.to_dict(), checkpoint=args.checkpoint,
                 mutator=dict(type=f'mmprune_ext.{"CHIP" if method == "chip" else "L1"}Mutator',
                              demo_inputs=(32, 32)),
                 target_pruning_ratio=ROWS[row])
    if method == 'chip':
        model['calibration'] = dict(num_batches=args.batches, seed=seed,
                                    dataloader=config.train_dataloader.to_dict())
    config.model = model
    return config


def accuracy(runner: Runner) -> float:
    """Return the top-1 accuracy on the validation images, in per cent."""
    return runner.val()['accuracy/top1']


def measure(method: str, row: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Prune, measure, take new batch statistics, measure, fine-tune, measure."""
    started = time.time()
    with tempfile.TemporaryDirectory() as folder:
        config = pruning_config(dense_config(args, seed, folder), method, row, seed, args)
        runner = Runner.from_cfg(config)
        runner.model.to(memory_format=torch.channels_last)  # a third less time on CPUs
        cost = complexity(runner.model.export_model(), (32, 32), flops=False)
        found: dict[str, Any] = {
            'method': method, 'row': row, 'seed': seed, 'params': cost.params, 'macs': cost.macs,
            'keeps': {name: unit.keep for name, unit in runner.model.units.prunable.items()},
            'pruned': accuracy(runner)}
        loader = Runner.build_dataloader(config.train_dataloader, seed=seed)
        reestimate_batch_norm(runner.model, loader, args.bn_batches)
        found['statistics'] = accuracy(runner)
        runner.train()
        found['tuned'] = accuracy(runner)
    found['seconds'] = round(time.time() - started)
    return found


def measure_dense(args: argparse.Namespace) -> dict[str, Any]:
    """Return size and accuracy of the dense network."""
    with tempfile.TemporaryDirectory() as folder:
        config = dense_config(args, 0, folder)
        config.load_from = args.checkpoint
        runner = Runner.from_cfg(config)
        cost = complexity(runner.model, (32, 32), flops=False)
        runner.load_or_resume()
        return {'method': 'dense', 'params': cost.params, 'macs': cost.macs, 'pruned': accuracy(runner)}


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the results depend on beside method, row and seed."""
    return {'checkpoint': Path(args.checkpoint).name, 'batches': args.batches, 'bn_batches': args.bn_batches,
            'iterations': args.iterations, 'lr': args.lr}


def results(args: argparse.Namespace) -> Iterable[dict[str, Any]]:
    """Yield the dense network's result and all others, from the folder or measured now."""
    jobs = [('dense', '', 0)] + [(method, row, seed) for seed in args.seeds for row in args.rows
                                 for method in args.methods]
    for method, row, seed in jobs:
        path = Path(args.results) / (f'{method}_{row}_{seed}.json' if row else 'dense.json')
        if not path.exists():
            found = measure(method, row, seed, args) if row else measure_dense(args)
            atomic_write(json.dumps({**found, 'settings': settings(args)}, indent=1), path)
        stored = json.loads(path.read_text())
        if stored['settings'] != settings(args):
            fail(f'{path} was measured with {stored["settings"]}, not {settings(args)}; give another '
                     '--results folder')
        print({key: value for key, value in stored.items() if key not in ('keeps', 'settings')},
              file=sys.stderr, flush=True)
        yield stored


def spread(values: list[float]) -> str:
    """Return mean and standard deviation."""
    deviation = f' ± {statistics.stdev(values):.2f}' if len(values) > 1 else ''
    return f'{statistics.mean(values):.2f}{deviation}'


def table(rows: list[Mapping[str, Any]]) -> str:
    """Return the results as a Markdown table, one line for a method at a row."""
    dense = next(row for row in rows if row['method'] == 'dense')
    lines = ['| FLOPs removed, published | method | parameters | MACs | pruned | new statistics | fine-tuned |',
             '| --- | --- | ---: | ---: | ---: | ---: | ---: |',
             f'| dense |  | {dense["params"]:,} | {dense["macs"]:,} | {dense["pruned"]:.2f} |  |  |']
    for row in ROWS:
        for method in METHODS:
            same = [r for r in rows if r['method'] == method and r['row'] == row]
            if same:
                lines.append(f'| {row}% | {method} | {same[0]["params"]:,} | {same[0]["macs"]:,} | '
                             + ' | '.join(spread([r[stage] for r in same]) for stage in STAGES) + ' |')
    return '\n'.join(lines)


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)
    with user_errors():
        title = header('benchmarks/chip_accuracy.py')
        print(table(list(results(args))))
    print(f'\n{title}')


if __name__ == '__main__':
    main()
