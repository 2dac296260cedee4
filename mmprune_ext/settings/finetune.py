"""A schedule for fine-tuning what has been pruned, in the place of the one that the dense model was trained by."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from mmprune_ext.compact.training import RECORD, learning_rate, length_of, optimizer_of, schedulers_of
from mmprune_ext.errors import ConfigError
from mmprune_ext.settings.schedule_length import Scale, fit_hooks, fit_loop

# The learning rate starts at this share of its value, and ends at that one.
FIRST, LAST = 0.1, 0.01
# A warm-up takes a tenth of the run, and no more iterations than these.
WARM_UP_SHARE, WARM_UP = 0.1, 500
# Iterations of a warm-up where it is not known how many the run has.
WARM_UP_BLIND = 100
# What has been trained is not trained further at more than so many times the learning rate that it began with.
HIGHEST_SCALE = 10


@dataclass(frozen=True)
class Finetune:
    """How long and how fast to fine-tune.

    Attributes:
        epochs: Epochs, at least 1.
        lr_scale: Factor of the config's own learning rate, above 0 and at most 10.

    Raises:
        ConfigError: If one is out of range.
    """

    epochs: int
    lr_scale: float = 0.1

    def __post_init__(self) -> None:
        if type(self.epochs) is not int or self.epochs < 1:
            raise ConfigError(f'finetune: epochs should be an integer of at least 1, but got {self.epochs!r}')
        if not (isinstance(self.lr_scale, (int, float)) and 0 < self.lr_scale <= HIGHEST_SCALE):
            raise ConfigError("finetune: lr_scale (--lr-scale) is a factor of the config's own learning rate, above 0 "
                              f'and at most {HIGHEST_SCALE}, but got {self.lr_scale!r}')


def with_schedule(config: Config, finetune: Finetune | None) -> Config:
    """Return a config whose schedule fits a fine-tuning; the same one where none is asked for.

    Its optimizer stays, with ``lr_scale`` times its learning rate: a linear warm-up of a tenth of the run, 500
    iterations at most, from a tenth of that, then a cosine to a hundredth. All schedulers of the config give way, and
    what else is bound to its length (:mod:`mmprune_ext.settings.schedule_length`) is brought to the new one in
    proportion. A config that counts iterations gets those of so many epochs, of one process; where its training data
    cannot be read, the number is one of iterations. Its entry ``finetune`` records all that.

    Args:
        config: The config of a run.
        finetune: How long and how fast.

    Raises:
        ConfigError: If the config has no single optimizer with a learning rate, or does not say how long it trains.
    """
    if finetune is None:
        return config
    rate, (unit, before) = _required(config)
    fitted = copy.deepcopy(config)
    epoch = _epoch_length(fitted.get('train_dataloader'))
    length, notes = _new_length(unit, finetune.epochs, epoch)
    fitted.optim_wrapper.optimizer.lr = rate * finetune.lr_scale
    fitted.param_scheduler = _schedulers(unit, length, epoch)
    scale = Scale(before, length)
    notes += fit_loop(fitted.train_cfg, scale) + fit_hooks(fitted, scale)
    dropped = [entry['type'] for entry in schedulers_of(config)]
    if dropped:
        notes.append('param_scheduler: replaced ' + ', '.join(getattr(kind, '__name__', str(kind)) for kind in dropped))
    counted = 'iterations' if unit == 'iterations' and epoch is None else 'epochs'
    fitted[RECORD] = {counted: finetune.epochs, 'lr_scale': finetune.lr_scale, 'notes': notes}
    for note in notes:
        print_log(f'--finetune: {note}', logger='current')
    return fitted


def _required(config: Mapping[str, Any]) -> tuple[float, tuple[str, int]]:
    if config.get('optim_wrapper') is None:
        raise ConfigError('--finetune: the config has no optim_wrapper, so nothing says how it trains; add one with an '
                          'optimizer')
    if optimizer_of(config) is None:
        raise ConfigError('--finetune: optim_wrapper has no "optimizer" of its own; a schedule can be written for one '
                          'optimizer only')
    rate = learning_rate(config)
    if not rate:
        raise ConfigError('--finetune: optim_wrapper.optimizer has no learning rate to scale; set lr')
    length = length_of(config)
    if length is None or length[1] < 1:
        raise ConfigError('--finetune: train_cfg says neither max_epochs nor max_iters, so that the length of its '
                          'schedule is not known; set one')
    return rate, length


def _epoch_length(dataloader: Any) -> int | None:
    """Return the iterations that one process has in an epoch, ``None`` if the data cannot be read."""
    if not isinstance(dataloader, Mapping) or not isinstance(dataloader.get('dataset'), Mapping):
        return None
    try:
        samples = len(DATASETS.build(copy.deepcopy(dataloader['dataset'])))
    except Exception as error:  # a dataset may fail in any way where its files are not at hand
        print_log(f'--finetune: the training data cannot be read ({type(error).__name__}: {error})', logger='current')
        return None
    sampler = dataloader.get('batch_sampler') or {}
    return math.ceil(samples / (dataloader.get('batch_size') or sampler.get('batch_size') or 1)) or None


def _new_length(unit: str, epochs: int, epoch: int | None) -> tuple[int, list[str]]:
    """Return the length of the new run in its unit, and what there is to say about it."""
    if unit == 'epochs':
        return epochs, []
    if epoch is None:
        return epochs, [f'train_cfg counts iterations and the training data cannot be read here: {epochs} is taken as '
                        'a number of iterations, not epochs']
    return epochs * epoch, [f'train_cfg counts iterations: {epochs} epochs of one process are {epochs * epoch} of them']


def _schedulers(unit: str, length: int, epoch: int | None) -> list[dict[str, Any]]:
    total = length if unit == 'iterations' else None if epoch is None else length * epoch
    warm_up = WARM_UP_BLIND if total is None else min(int(total * WARM_UP_SHARE), WARM_UP)
    found = []
    # A warm-up of a single iteration would have a first value and no last one.
    if warm_up > 1:
        found.append(dict(type='LinearLR', start_factor=FIRST, by_epoch=False, begin=0, end=warm_up))
    by_epoch = dict(by_epoch=True, convert_to_iter_based=True) if unit == 'epochs' else dict(by_epoch=False)
    return [*found, dict(type='CosineAnnealingLR', eta_min_ratio=LAST, begin=0, end=length, T_max=length, **by_epoch)]
