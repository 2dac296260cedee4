#!/usr/bin/env python3
"""Measure the accuracy of a CIFAR network at one budget by how its ratios are found: by spread, by sensitivity.

A sparsity string may stand beside the budget. Each network gets new batch statistics, on other batches for each seed,
as do methods that score on data, and no fine-tuning. Accuracy is that of the validation images which no sensitivity
file was measured on, and of all. Each measurement is one entry of the results file; those that are there are not
repeated.

Example: python benchmarks/ratios.py --data data/cifar10 --checkpoint checkpoints/resnet56_cifar10.pth
--flops 0.5 --sensitivity sens/sensitivity.json --results work_dirs/ratios.json
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner, set_random_seed
from torch import nn

from benchmarks.accuracy import markdown, over_seeds
from benchmarks.accuracy_runs import NETWORKS
from benchmarks.machine import header
from benchmarks.networks import ROOT
from mmprune_ext.algorithms import L1Norm, OneShotAlgorithm
from mmprune_ext.analysis import complexity
from mmprune_ext.atomic import atomic_write
from mmprune_ext.cli import arguments
from mmprune_ext.cli.errors import fail, user_errors
from mmprune_ext.repair.batch_norm import reestimate_batch_norm
from mmprune_ext.settings import reading
from mmprune_ext.targets import Sensitivity
from mmprune_ext.targets.sensitivity_choice import predicted_drop
from mmprune_ext.workflows.pruning import one_shot_algorithm


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data', required=True, metavar='DIR')
    parser.add_argument('--checkpoint', required=True, help='weights of the dense network')
    parser.add_argument('--network', default='resnet56',
                        choices=[name for name, network in NETWORKS.items() if network.root])
    parser.add_argument('--flops', type=float, default=0.5, help='share of the multiply-accumulates that remains')
    parser.add_argument('--algorithm', default='l1', help='short name of the method (default: l1)')
    parser.add_argument('--spreads', nargs='+', default=['uniform', 'global'], metavar='SPREAD')
    parser.add_argument('--ratio', metavar='RATIO', help='a sparsity string to measure beside the budgets')
    parser.add_argument('--batches', type=arguments.positive, default=5, help='to score on')
    parser.add_argument('--sensitivity', nargs='+', default=[], metavar='FILE', help='of tools/sensitivity.py')
    parser.add_argument('--seeds', nargs='+', type=arguments.not_negative, default=[0, 1, 2])
    parser.add_argument('--bn-batches', type=arguments.positive, default=20)
    parser.add_argument('--images', type=arguments.positive, metavar='N',
                        help='measure on N of the images that no file was measured on, spread evenly (default: on all)')
    parser.add_argument('--results', default='work_dirs/ratios.json', metavar='FILE')
    parser.add_argument('--threads', type=arguments.positive, default=1)
    return parser.parse_args()


def settings(args: argparse.Namespace) -> Config:
    config = reading.read_config(str(ROOT / NETWORKS[args.network].config))
    for split in ('train', 'val', 'test'):
        loader = config[f'{split}_dataloader']
        loader.dataset.data_root = args.data
        loader.num_workers, loader.persistent_workers = 0, False
    return config


class Images:
    """Validation images, and which of them no sensitivity file was measured on."""

    def __init__(self, config: Config, files: Sequence[Sensitivity], number: int | None) -> None:
        loader = copy.deepcopy(config.val_dataloader)
        total = len(Runner.build_dataloader(loader, seed=0).dataset)
        seen = {total * place // file.samples for file in files for place in range(file.samples)}
        chosen = [place for place in range(total) if place not in seen] if number is not None else list(range(total))
        if number is not None:
            chosen = [chosen[len(chosen) * place // number] for place in range(min(number, len(chosen)))]
            loader.dataset.indices = chosen
        self.unseen = np.array([place not in seen for place in chosen])
        self.batches = list(Runner.build_dataloader(loader, seed=0))

    def accuracy(self, model: nn.Module) -> dict[str, float]:
        """Return the top-1 accuracy in per cent, of the unseen images and of all."""
        model.eval().to(memory_format=torch.channels_last)
        with torch.no_grad():
            right = np.array([sample.pred_label.item() == sample.gt_label.item() for batch in self.batches
                              for sample in model.val_step(copy.deepcopy(batch))])
        return {'unseen': 100 * float(right[self.unseen].mean()), 'all': 100 * float(right.mean())}


def pruned(config: Config, args: argparse.Namespace, target: Mapping[str, Any], seed: int) -> OneShotAlgorithm:
    """Return the network pruned by the method of the arguments, for a seed; the whole one for a negative seed."""
    kind = L1Norm if seed < 0 else one_shot_algorithm(args.algorithm)
    mutator: dict[str, Any] = {'demo_inputs': NETWORKS[args.network].size}
    if kind.needs_data:
        mutator['calibration'] = {'num_batches': args.batches, 'dataloader': config.train_dataloader, 'seed': seed}
    return kind(config.model.to_dict(), mutator, checkpoint=args.checkpoint,
                data_preprocessor=config.data_preprocessor, **target)


def measure(config: Config, args: argparse.Namespace, target: Mapping[str, Any], seed: int,
            images: Images) -> dict[str, Any]:
    """Prune, take new batch statistics, measure."""
    found = pruned(config, args, target, seed)
    keeps = {name: unit.keep for name, unit in found.units.items()}
    model = found.export_model().to(memory_format=torch.channels_last)
    set_random_seed(seed)
    reestimate_batch_norm(model, Runner.build_dataloader(config.train_dataloader, seed=seed), args.bn_batches)
    cost = complexity(model, NETWORKS[args.network].size, flops=False)
    result = {**images.accuracy(model), 'params': cost.params, 'macs': cost.macs, 'keeps': keeps}
    file = target.get('budget', {}).get('sensitivity')
    if file is not None:
        result['predicted'] = predicted_drop(Sensitivity.load(file), keeps)
    return result


def results(args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Return the results of all seeds by how the ratios were found, from the file or measured now."""
    config = settings(args)
    images = Images(config, [Sensitivity.load(path) for path in args.sensitivity], args.images)
    budgets = {'dense': {'flops': 1.0},
               **{spread: {'flops': args.flops, 'spread': spread} for spread in args.spreads},
               **{path: {'flops': args.flops, 'spread': 'sensitivity', 'sensitivity': path}
                  for path in args.sensitivity}}
    targets = {name: {'budget': budget} for name, budget in budgets.items()}
    if args.ratio is not None:
        targets[args.ratio] = {'target_pruning_ratio': args.ratio}
    wanted = {key: value for key, value in vars(args).items()
              if key not in ('results', 'seeds', 'threads', 'spreads', 'ratio')}
    path = Path(args.results)
    stored = json.loads(path.read_text()) if path.is_file() else {'settings': wanted, 'runs': {}}
    if stored['settings'] != wanted:
        fail(f'{path} was measured with {stored["settings"]}, not {wanted}; give another --results file')
    for name, seed in [('dense', -1), *((name, seed) for name in targets if name != 'dense' for seed in args.seeds)]:
        if f'{name} {seed}' not in stored['runs']:
            stored['runs'][f'{name} {seed}'] = (
                images.accuracy(pruned(config, args, targets[name], seed).export_model()) if seed < 0
                else measure(config, args, targets[name], seed, images))
            atomic_write(json.dumps(stored, indent=1), path)
        print(name, seed, {key: value for key, value in stored['runs'][f'{name} {seed}'].items() if key != 'keeps'},
              file=sys.stderr, flush=True)
    return {name: [stored['runs'][f'{name} {seed}'] for seed in ([-1] if name == 'dense' else args.seeds)]
            for name in targets}


def table(found: Mapping[str, list[dict[str, Any]]]) -> str:
    """Return the results as Markdown, one line for each way to find the ratios."""
    lines = []
    for name, rows in found.items():
        sizes = [over_seeds(rows, key, ',.0f') if key in rows[0] else '' for key in ('params', 'macs')]
        guess = over_seeds(rows, 'predicted') if 'predicted' in rows[0] else ''
        lines.append([name, *sizes, over_seeds(rows, 'unseen'), over_seeds(rows, 'all'), guess])
    return markdown(['ratios', 'parameters', 'MACs', 'other images', 'all images', 'predicted drop'], lines, 1)


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)
    with user_errors(), DefaultScope.overwrite_default_scope('mmpretrain'):
        title = header('benchmarks/ratios.py')
        print(table(results(args)))
    print(f'\n{title}')


if __name__ == '__main__':
    main()
