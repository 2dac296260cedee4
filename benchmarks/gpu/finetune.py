"""The fine-tuning of the L1 paper, 40 epochs of a CIFAR network after its first round, with the images on a device."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from benchmarks.gpu.bench import SIZE, Bench
from benchmarks.gpu.compare import computing_on
from benchmarks.gpu.results import DONE, LATE
from benchmarks.networks import ROOT
from mmprune_ext.analysis import complexity
from mmprune_ext.atomic import atomic_write
from mmprune_ext.engine.parts import LAST
from mmprune_ext.engine.runs import build_runner, set_resume
from mmprune_ext.settings import reading
from mmprune_ext.settings.completion import prepare_pruning

NETWORKS = ('resnet20', 'resnet56')  # the smaller one first
VALIDATED, SAVED = 10, 5  # every so many epochs
RESERVE = 1.5  # epochs of time that are left when an epoch begins


class TimeLimit(Hook):
    """Ends a training after the last epoch that is sure to be over in time, with a checkpoint to go on from.

    Args:
        seconds: From the start of the training.
    """

    priority = 'LOWEST'  # a checkpoint of this epoch is there, if it has one

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.epochs: list[float] = []
        self.accuracies: dict[int, float] = {}
        self.stopped = False

    def before_train(self, runner: Runner) -> None:
        """Start the clock."""
        self._start = time.monotonic()

    def before_train_epoch(self, runner: Runner) -> None:
        """Start the clock of an epoch."""
        self._began = time.monotonic()

    def after_train_epoch(self, runner: Runner) -> None:
        """Stop where the next epoch may not be over in time."""
        now = time.monotonic()
        self.epochs.append(now - self._began)
        if now - self._start + RESERVE * max(self.epochs[-3:]) > self.seconds and runner.epoch + 1 < runner.max_epochs:
            self.stopped = True
            runner.train_loop.stop_training = True
            name = f'epoch_{runner.epoch + 1}.pth'  # the loop counts this epoch when its hooks are done
            runner.save_checkpoint(runner.work_dir, name, by_epoch=True)
            atomic_write(str(Path(runner.work_dir) / name), Path(runner.work_dir) / LAST)

    def after_val_epoch(self, runner: Runner, metrics: Mapping[str, float] | None = None) -> None:
        """Keep an accuracy, and tell how far it is."""
        self.accuracies[runner.epoch] = metrics['accuracy/top1']
        print(f'  epoch {runner.epoch}: {metrics["accuracy/top1"]:.2f}', flush=True)


def run_config(bench: Bench, network: str, folder: Path, epochs: int | None, limit: int | None) -> Config:
    """Return the config of a network's published fine-tuning on images that lie on the device.

    Optimizer, schedule, batch and hooks are those of the config. Other are the images' way into a batch, and that it
    validates every 10 epochs and writes a checkpoint every 5.

    Args:
        bench: Images and weights.
        network: The network.
        folder: Of the run; it is gone on with.
        epochs: So many instead of 40, for a try.
        limit: Images of training and of validation, for a try.
    """
    config = reading.read_config(str(ROOT / f'configs/pruning/mmcls/l1/l1_{network}_cifar10.py'))
    bench.with_images(config, bench.device, augment=True, samples=False)
    for split in ('train', 'val'):
        config[f'{split}_dataloader'].dataset.limit = limit
    config.model.checkpoint = bench.checkpoint(network)
    config.work_dir = str(folder)
    config.train_cfg.val_interval = VALIDATED
    config.default_hooks.checkpoint.update(interval=SAVED, max_keep_ckpts=1, save_best=None)
    if epochs is not None:
        config.train_cfg.max_epochs = config.train_cfg.val_interval = epochs
    return config


def finetune(bench: Bench, network: str, folder: Path, seconds: float, epochs: int | None = None,
             limit: int | None = None) -> Mapping[str, Any]:
    """Train as long as there is time, or to the end, from where an earlier run in the same folder has stopped.

    Returns:
        A result, with the accuracies measured by epoch.
    """
    config = run_config(bench, network, folder, epochs, limit)
    with computing_on(bench.device):
        checkpoint = set_resume(config, True)
        config.resume = checkpoint is not None  # else each loop would look again for what to resume
        prepare_pruning(config)
        runner = build_runner(config, 'none', checkpoint)
        clock = TimeLimit(seconds)
        runner.register_hook(clock)
        started = time.monotonic()
        before = {} if checkpoint else {'pruned': runner.val()['accuracy/top1']}
        runner.train()
        if runner.epoch not in clock.accuracies:
            runner.val()
    accuracy = clock.accuracies[runner.epoch]
    cost = complexity(runner.model.export_model(), SIZE, flops=False)
    numbers = {'test accuracy': round(accuracy, 2), **before, 'epochs done': runner.epoch, 'of': runner.max_epochs,
               'by epoch': ' '.join(f'{epoch}: {value:.2f}' for epoch, value in clock.accuracies.items()),
               'parameters': cost.params, 'MACs': cost.macs, 'seconds of an epoch': min(clock.epochs, default=0.0),
               'seconds in all, this time': time.monotonic() - started}
    if clock.stopped:
        return {'status': LATE, 'numbers': numbers, 'text': 'out of time; the same command goes on from here'}
    text = 'to the end of the published schedule' if epochs is None else 'a try of the script, no result'
    return {'status': DONE, 'numbers': numbers, 'text': text}
