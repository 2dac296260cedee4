"""The hook that ChipNet needs: gates that sharpen with the progress of a search, and what they are like."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mmcv
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import IterBasedTrainLoop, Runner, autocast

from mmprune_ext.algorithms import ChipNet
from mmprune_ext.analysis.gate_plots import BINS, GateRecord, gates_png
from mmprune_ext.atomic import atomic_write
from mmprune_ext.engine.hooks import UNITS_FILE, parameters_left_alone, unwrapped
from mmprune_ext.errors import ConfigError
from mmprune_ext.registry import HOOKS

HISTORY = 'gate_history'
PICTURE, RECORDS = 'gates.png', 'gates.json'
MOST_RECORDS = 100  # of a run that counts iterations


@HOOKS.register_module()
class GateHook(Hook):
    """Sharpen the gates of a ChipNet search, log and draw them.

    When, the algorithm says (``by_epoch``, ``step_freq``). How sharp the gates are is a function of the epoch or
    iteration, so that a resumed search goes on exactly. In the training of the compact model, the second part of
    a run, there are no gates and the hook does nothing.

    Logged are ``task_loss``, the sum of the model's own losses, ``beta``, ``gamma``, ``steepness`` and
    :meth:`mmprune_ext.algorithms.ChipNet.gate_statistics`: the share of ``crisp`` gates, of those that are crisp by
    themselves (``learned``), and of each resource of the budget the share that the gates leave (``soft_flops``) and
    that the model would have if it were pruned now (``hard_flops``). The work folder gets their history,
    ``gates.json``, and a picture of it, ``gates.png``, which also goes to the visualizer.

    Args:
        interval: Iterations from one log of the gates to the next.
        soft_validation: Whether to validate the network with its soft gates too. Validation measures the network
            as it would be pruned now; what it gives with soft gates is then logged as ``soft/...``. It takes as
            long again.

    Attributes:
        for_pruning_only: The config of the exported compact model goes without this hook.
    """

    # Before the hook that logs, and before averaged weights are taken out of a model that was validated.
    priority = 'ABOVE_NORMAL'
    for_pruning_only = True

    def __init__(self, interval: int = 50, soft_validation: bool = False) -> None:
        self.interval = interval
        self.soft_validation = soft_validation

    def before_train(self, runner: Runner) -> None:
        """Check that the run fits the algorithm.

        Raises:
            ConfigError: If the model is not ChipNet, if it counts epochs and the run has none, if its layers would be
                passed by, or if the optimizer does not train the gates.
        """
        model = unwrapped(runner)
        if not isinstance(model, ChipNet):
            raise ConfigError(f'GateHook: the model is a {type(model).__name__}, not ChipNet; take the hook out of '
                              'custom_hooks')
        if not model.is_searching:
            return
        if model.by_epoch and isinstance(runner.train_loop, IterBasedTrainLoop):
            raise ConfigError('ChipNet sharpens its gates by epoch, but this run counts iterations '
                              '(train_cfg.max_iters); set model.by_epoch=False and model.step_freq to the iterations '
                              'of a step')
        if runner.cfg.get('efficient_conv_bn_eval'):
            raise ConfigError('ChipNet: efficient_conv_bn_eval computes past the batch norm layers in which gates act; '
                              'leave it out of the search (search.efficient_conv_bn_eval=None)')
        check_optimizer(model, runner.optim_wrapper)
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):
                _share_decisions(model, hook.ema_model.module)
        model.set_step(self._step(runner, model))

    def before_train_epoch(self, runner: Runner) -> None:
        """Sharpen by epoch."""
        model = unwrapped(runner)
        if model.is_searching and model.by_epoch:
            model.set_step(self._step(runner, model))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        """Sharpen by iteration; let the gates settle."""
        model = unwrapped(runner)
        if not model.is_searching:
            return
        if not model.by_epoch:
            model.set_step(self._step(runner, model))
        model.set_progress(runner.iter, runner.max_iters)

    @staticmethod
    def _step(runner: Runner, model: ChipNet) -> int:
        return (runner.epoch if model.by_epoch else runner.iter) // model.step_freq

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None,
                         outputs: dict[str, Any] | None = None) -> None:
        """Log the gates; in a run that counts iterations, also record them."""
        model = unwrapped(runner)
        if not model.is_searching:
            return
        # Under a name that is averaged; the task's library may call one of its losses as mmengine calls the total.
        runner.message_hub.update_scalar('train/task_loss', float(model.task_loss))
        last = runner.iter + 1 == runner.max_iters
        if batch_idx == 0 or last or self.every_n_train_iters(runner, self.interval):
            for name, value in _statistics(model).items():
                runner.message_hub.update_scalar(f'train/{name}', value)
        every = max(model.step_freq, math.ceil(runner.max_iters / MOST_RECORDS))
        if not model.by_epoch and (last or self.every_n_train_iters(runner, every)):
            self._record(runner, model, runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        """Record the gates."""
        model = unwrapped(runner)
        if model.is_searching and model.by_epoch:
            self._record(runner, model, runner.epoch + 1)

    def _record(self, runner: Runner, model: ChipNet, time: int) -> None:
        """Add the gates to the history, which every checkpoint has in its message hub, and draw it."""
        with torch.no_grad():
            values = model.channel_gates.acting()
        histogram = torch.histc(values.float().cpu(), BINS, 0, 1).int().tolist()
        hub = runner.message_hub
        history = hub.get_info(HISTORY) if HISTORY in hub.runtime_info else []
        history = [*history, asdict(GateRecord(time, histogram, _statistics(model)))]
        hub.update_info(HISTORY, history)
        if not is_main_process():
            return
        records = [GateRecord(**record) for record in history]
        png = gates_png(records, dict(model.mutator.budget.shares), 'epoch' if model.by_epoch else 'iteration')
        atomic_write(png, Path(runner.work_dir) / PICTURE)
        atomic_write(json.dumps(history, indent=1), Path(runner.work_dir) / RECORDS)
        runner.visualizer.add_image('channel_gates', mmcv.imfrombytes(png, channel_order='rgb'), step=time)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Validate the network with soft gates too."""
        model = unwrapped(runner)
        if not self.soft_validation or not model.is_searching:
            return
        loop = runner.val_loop
        with model.soft_evaluation(), torch.no_grad(), autocast(enabled=loop.fp16):
            for batch in loop.dataloader:
                outputs = runner.model.val_step(batch)
                loop.evaluator.process(data_samples=outputs, data_batch=batch)
            found = loop.evaluator.evaluate(len(loop.dataloader.dataset))
        for name, value in found.items():
            runner.message_hub.update_scalar(f'val/soft/{name}', value)

    def after_train(self, runner: Runner) -> None:
        """Write the units with the channels that stay at the end of the search."""
        averages = [hook.ema_model.module for hook in runner.hooks if isinstance(hook, EMAHook)]
        model = (averages or [unwrapped(runner)])[0]  # whose weights checkpoints hold
        if model.is_searching and is_main_process():
            model.exported_units.save(Path(runner.work_dir) / UNITS_FILE)


def _statistics(model: ChipNet) -> dict[str, float]:
    gates = model.channel_gates
    return {'beta': gates.beta, 'gamma': gates.gamma, 'steepness': gates.steepness, **model.gate_statistics()}


def _share_decisions(model: ChipNet, average: ChipNet) -> None:
    """Let an averaged copy of a model keep the channels that the model does.

    An average of gates would decide for itself, and a hook that averages buffers leaves those of other types as they
    were at the start.
    """
    average.channel_gates.decided, average.channel_gates.step = model.channel_gates.decided, model.channel_gates.step
    for name, gate in model.channel_gates.items():
        average.channel_gates[name].chosen = gate.chosen


def check_optimizer(model: ChipNet, optim_wrapper: Any) -> None:
    """Check that an optimizer trains the gates.

    Raises:
        ConfigError: If a gate needs no gradient, is in no group of parameters, or has a learning rate of 0.
    """
    gates = {name: parameter for name, parameter in model.named_parameters() if name.startswith('channel_gates.')}
    still = parameters_left_alone(gates, optim_wrapper.param_groups)
    if still:
        raise ConfigError(f'ChipNet: the optimizer leaves {len(still)} of {len(gates)} gates as they are (first: '
                          f'{still[0]}); set the lr_mult of "channel_gates" in optim_wrapper.paramwise_cfg.'
                          'custom_keys to a positive number')
