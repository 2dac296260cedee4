"""The runs that `accuracy.py` measures: prune a trained network by a method, repair or fine-tune it, validate it."""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn

from benchmarks.networks import ROOT
from mmprune_ext.analysis import complexity
from mmprune_ext.compact.checkpoint import load_weights
from mmprune_ext.compact.compact_model import build_architecture
from mmprune_ext.repair import reestimate_batch_norm, repair_least_squares
from mmprune_ext.settings import reading
from mmprune_ext.settings.as_tested import training_images
from mmprune_ext.settings.completion import prepare_pruning
from mmprune_ext.targets.budget import measure_of
from mmprune_ext.units import UnitSet


@dataclass(frozen=True)
class Network:
    """A trained network that is pruned.

    Attributes:
        config: Path of its config.
        title: How it is called.
        metric: The validation's metric.
        factor: What makes a percentage of the metric.
        size: Height and width of the images that costs are counted on.
        lr: Learning rate that its fine-tuning starts with.
        scope: The part that a budget is a share of; empty for the whole network.
        root: Whether ``--data`` is the data set's own folder, or the one that holds it (``MMPRUNE_DATA``).
    """

    config: str
    title: str
    metric: str = 'accuracy/top1'
    factor: float = 1.0
    size: tuple[int, int] = (32, 32)
    lr: float = 0.01
    scope: str = ''
    root: bool = True


_SMALL = {'lr': 1e-4, 'scope': 'backbone', 'root': False}
NETWORKS = {
    'resnet56': Network('configs/cifar/resnet56_cifar10.py', 'ResNet-56, CIFAR-10'),
    'resnet20': Network('configs/cifar/resnet20_cifar10.py', 'ResNet-20, CIFAR-10'),
    'vgg16bn': Network('configs/cifar/vgg16bn_cifar10.py', 'VGG-16-BN, CIFAR-10'),
    'digits': Network('configs/demo/digits_resnet20.py', 'ResNet-20 of half the width, handwritten digits'),
    'bccd': Network('configs/small/retinanet_r18_bccd.py', 'RetinaNet-R18, BCCD blood cells', 'coco/bbox_mAP', 100.0,
                    (240, 320), **_SMALL),
    'camvid': Network('configs/small/fcn_r18_camvid.py', 'FCN-R18, CamVid street scenes', 'mIoU', 1.0, (360, 480),
                      **_SMALL),
    'lspet': Network('configs/small/heatmap_r18_lspet.py', 'heatmap-R18, Leeds Sports Pose', 'coco/AP', 100.0,
                     (128, 128), **_SMALL),
}
# The sparsity strings of CHIP's published table of ResNet-56, by the share of FLOPs it says they remove; read
# alike for both methods.
PUBLISHED = {
    '47.4': 'chip: [0.]+[0.15]*2+[0.4]*27',
    '74.1': 'chip: [0.]+[0.4]*2+[0.5]*9+[0.6]*9+[0.7]*9',
}
METHODS = {'chip': ('mmprune_ext.CHIP', 'mmprune_ext.CHIPMutator'),
           'l1': ('mmprune_ext.L1Norm', 'mmprune_ext.L1Mutator'),
           'fisher': ('mmprune_ext.Fisher', 'mmprune_ext.FisherMutator'),
           'obs': ('mmprune_ext.OBS', 'mmprune_ext.OBSMutator'),
           'chipnet': ('mmprune_ext.ChipNet', 'mmprune_ext.ChipNetMutator')}
CALIBRATED = ('chip', 'fisher', 'obs')
SEARCH_DECAY = 1e-3  # weight decay of a search, ChipNet's published one


def budget_of(row: str) -> dict[str, float] | None:
    """Return what a row such as ``flops=0.5`` keeps, or nothing for a published one."""
    if row in PUBLISHED:
        return None
    resource, _, share = row.partition('=')
    return {resource: float(share)}


def network_of(args: argparse.Namespace) -> Network:
    """Return the network that is measured."""
    return NETWORKS[args.network]


def settings(method: str, row: str, spread: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return what a result depends on beside method, row and seed."""
    found = {'network': args.network, 'checkpoint': Path(args.checkpoint).name}
    if method == 'dense':
        return found
    found |= {'bn_batches': args.bn_batches, 'iterations': args.iterations, 'lr': args.lr}
    if method == 'chipnet':
        return found | {'search': {
            'iterations': args.search_iterations, 'batch': args.search_batch, 'lr': args.search_lr,
            'gate_lr_mult': args.gate_lr_mult, 'step_freq': args.step_freq, 'settle': args.settle,
            'weight_decay': SEARCH_DECAY}}
    if method in CALIBRATED:
        found['batches'] = args.batches
    if spread:
        found['spread'] = spread
    if args.repair:
        found['repair'] = args.repair
    return found


def dense_config(args: argparse.Namespace, seed: int, folder: str | Path) -> Config:
    """Return the config of a short run of the dense network that writes no checkpoint."""
    network = network_of(args)
    if not network.root:
        os.environ['MMPRUNE_DATA'] = args.data  # by which configs name their metrics' files too
    config = reading.read_config(str(ROOT / network.config))
    for split in ('train', 'val', 'test'):
        if network.root:
            config[f'{split}_dataloader'].dataset.data_root = args.data
        config[f'{split}_dataloader'].num_workers = 0
        config[f'{split}_dataloader'].persistent_workers = False
    config.merge_from_dict({
        'randomness.seed': seed, 'work_dir': str(folder), 'experiment_name': Path(folder).name,
        'default_hooks.checkpoint': None, 'visualizer.vis_backends': [], 'log_level': 'WARNING',
        'optim_wrapper.optimizer.lr': args.lr})
    iterations = max(args.iterations, 1)  # what is not trained is built none the less
    config.train_cfg = dict(by_epoch=False, max_iters=iterations, val_interval=iterations + 1)
    config.param_scheduler = dict(type='CosineAnnealingLR', by_epoch=False, T_max=iterations)
    return config


def model_config(config: Config, method: str, args: argparse.Namespace, **target: Any) -> dict[str, Any]:
    """Return the config of the network in the hands of a method."""
    kind, mutator = METHODS[method]
    return dict(type=kind, architecture=config.model.to_dict(),
                mutator=dict(type=mutator, demo_inputs=network_of(args).size), **target)


def search_config(config: Config, row: str, args: argparse.Namespace, folder: Path) -> Config:
    """Return the config of ChipNet's search, which validates nothing: that is no part of what it takes."""
    config = copy.deepcopy(config)
    config.model = model_config(config, 'chipnet', args, checkpoint=args.checkpoint, by_epoch=False,
                                budget={**budget_of(row), 'scope': network_of(args).scope}, step_freq=args.step_freq,
                                settle=args.settle)
    config.merge_from_dict({'work_dir': str(folder), 'experiment_name': f'{config.experiment_name}_search'})
    config.train_dataloader.batch_size = args.search_batch
    config.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
    config.train_cfg = dict(by_epoch=False, max_iters=args.search_iterations, val_begin=args.search_iterations + 1)
    config.param_scheduler = []
    config.optim_wrapper = dict(
        optimizer=dict(type='AdamW', lr=args.search_lr, weight_decay=SEARCH_DECAY),
        paramwise_cfg=dict(custom_keys={'channel_gates': dict(decay_mult=0.0, lr_mult=args.gate_lr_mult)}))
    prepare_pruning(config)
    return config


def build(config: Config) -> Runner:
    """Return the runner of a config, its model in the memory format that takes a third less time on CPUs."""
    runner = Runner.from_cfg(config)
    runner.model.to(memory_format=torch.channels_last)
    return runner


def accuracy(runner: Runner, args: argparse.Namespace) -> float:
    """Return the network's metric on the validation images, in per cent."""
    network = network_of(args)
    with contextlib.redirect_stdout(io.StringIO()):  # tables that metrics print
        return network.factor * float(runner.val()[network.metric])


def prune_at_once(config: Config, method: str, row: str, spread: str, seed: int,
                  args: argparse.Namespace) -> tuple[Runner, dict[str, Any]]:
    """Return the run that fine-tunes a network pruned by its scores, and how long they took to choose by."""
    budget = budget_of(row)
    target = ({'target_pruning_ratio': PUBLISHED[row]} if budget is None
              else {'budget': {**budget, 'spread': spread, 'scope': network_of(args).scope}})
    model = model_config(config, method, args, checkpoint=args.checkpoint, **target)
    if method in CALIBRATED:
        model['calibration'] = dict(num_batches=args.batches, seed=seed, dataloader=config.train_dataloader.to_dict())
    config.model = model
    started = time.time()
    runner = build(config)
    return runner, {'choosing': round(time.time() - started, 1)}


def search(config: Config, row: str, args: argparse.Namespace, folder: Path) -> tuple[Runner, dict[str, Any]]:
    """Return the run that fine-tunes what a search leaves, and what the search was like at its end."""
    started = time.time()
    searching = build(search_config(config, row, args, folder))
    searching.train()
    model = searching.model
    units, compact = model.exported_units, model.export_model()
    found: dict[str, Any] = {'choosing': round(time.time() - started, 1)}
    gates = model.gate_statistics()
    found |= {key: gates[f'{key}{suffix}'] for key, suffix in (
        ('crisp', ''), *((kind, f'_{row.partition("=")[0]}') for kind in ('soft', 'hard')))}
    with model.soft_evaluation():
        found['searched'] = accuracy(searching, args)
    units.save(folder / 'units.json')
    # By its path: the Runner formats its config, which takes long with all units in it.
    config.model = model_config(config, 'chipnet', args, units=str(folder / 'units.json'))
    runner = build(config)
    runner.model.load_state_dict(compact.state_dict())
    return runner, found


def build_dense(config: Config) -> nn.Module:
    """Return the dense network of a run's config, with random weights."""
    return build_architecture(config.model.to_dict(), config.get('data_preprocessor'))


def left_of_budget(config: Config, row: str, units: UnitSet, args: argparse.Namespace) -> float:
    """Return the share of a row's resource that is left of what the budget is of."""
    (resource, _), = budget_of(row).items()
    network = network_of(args)
    measure = measure_of(units, resource, build_dense(config), network.scope, network.size)
    return measure({name: unit.keep for name, unit in units.prunable.items()}) / measure({})


def repair(config: Config, method: str, units: UnitSet, seed: int, args: argparse.Namespace,
           folder: Path) -> dict[str, Any]:
    """Prune a network to the same channels again, repair it, measure, fine-tune, measure.

    Args:
        config: The config of the run of the dense network.
        method: Whose channels they are.
        units: The channels.
        seed: Of the data.
        args: The settings.
        folder: Of the run.
    """
    dense = build_dense(config)
    load_weights(dense, args.checkpoint)
    dense.to(memory_format=torch.channels_last)
    units.save(folder / 'units.json')
    config.model = model_config(config, method, args, checkpoint=args.checkpoint, units=str(folder / 'units.json'))
    config.experiment_name = f'{config.experiment_name}_repaired'
    runner = build(config)
    loader = Runner.build_dataloader(training_images(config), seed=seed)
    started = time.process_time()
    report = repair_least_squares(runner.model, dense, units, loader, args.repair, seed=seed, quiet=True)
    found = {'repairing': round(time.process_time() - started, 1), 'repair_images': report.num_images,
             'repaired': accuracy(runner, args)}
    if args.iterations:
        runner.train()
        found['repaired_tuned'] = accuracy(runner, args)
    return found


def measure(method: str, row: str, spread: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Prune, measure, take new batch statistics, measure, fine-tune, measure; and once more, repaired instead."""
    started = time.time()
    with tempfile.TemporaryDirectory() as folder:
        config = dense_config(args, seed, folder)
        dense = copy.deepcopy(config)
        runner, chosen = (search(config, row, args, Path(folder) / 'search') if method == 'chipnet'
                          else prune_at_once(config, method, row, spread, seed, args))
        units = runner.model.units
        cost = complexity(runner.model.export_model(), network_of(args).size, flops=False)
        found: dict[str, Any] = {
            'method': method, 'row': row, 'spread': spread, 'seed': seed, 'params': cost.params, 'macs': cost.macs,
            **chosen, 'keeps': {name: unit.keep for name, unit in units.prunable.items()}}
        found['pruned'] = accuracy(runner, args)
        loader = Runner.build_dataloader(config.train_dataloader, seed=seed)
        reestimate_batch_norm(runner.model, loader, args.bn_batches)
        found['statistics'] = accuracy(runner, args)
        if args.iterations:
            runner.train()
            found['tuned'] = accuracy(runner, args)
        if args.repair:
            found |= repair(copy.deepcopy(dense), method, units, seed, args, Path(folder))
        if budget_of(row) is not None:
            found['left'] = left_of_budget(dense, row, units, args)
    return {**found, 'seconds': round(time.time() - started)}


def measure_dense(args: argparse.Namespace) -> dict[str, Any]:
    """Return size and accuracy of the dense network."""
    with tempfile.TemporaryDirectory() as folder:
        config = dense_config(args, 0, folder)
        config.load_from = args.checkpoint
        runner = Runner.from_cfg(config)
        cost = complexity(runner.model, network_of(args).size, flops=False)
        runner.load_or_resume()
        return {'method': 'dense', 'params': cost.params, 'macs': cost.macs, 'pruned': accuracy(runner, args)}
