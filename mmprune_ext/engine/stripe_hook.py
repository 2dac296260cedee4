"""The hook that stripe-wise pruning needs: stripes that die with the steps of the optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mmcv
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor

from mmprune_ext.algorithms import StripeWise
from mmprune_ext.analysis.plots import stripes_png
from mmprune_ext.atomic import atomic_write
from mmprune_ext.engine.hooks import UNITS_FILE, parameters_left_alone, unwrapped
from mmprune_ext.errors import ConfigError, PruningError
from mmprune_ext.registry import HOOKS

PICTURE = 'stripes.png'


@HOOKS.register_module()
class StripeHook(Hook):
    """Draw the skeletons of a StripeWise run to zero, and let stripes die.

    Around every step that the optimizer takes, after gradients were accumulated, scaled back, clipped and averaged
    over processes: before it the subgradient of the L1 norm is added to that of the skeletons, which is 0 for dead
    stripes; after it stripes up to the threshold die, and those whose number has changed its sign, as a long step
    takes it past the threshold; what they leave without use is silenced. What is dead is exactly 0 in the weights, so
    that a resumed run and every process go on with the same stripes. Averages of weights (EMA) are 0 where the
    weights are.

    Logged are the shares of ``stripes`` and of ``filters`` that are left. The work folder gets ``units.json`` and a
    picture, ``stripes.png``, which also goes to the visualizer.

    Args:
        interval: Iterations from one log of the shares to the next.

    Attributes:
        for_pruning_only: The config of the exported compact model goes without this hook.
    """

    priority = 55  # after weights were averaged (NORMAL), before the log is written (BELOW_NORMAL)
    for_pruning_only = True

    def __init__(self, interval: int = 50) -> None:
        self.interval = interval
        self._handles: list[Any] = []
        self._before: dict[int, Tensor] = {}

    def before_train(self, runner: Runner) -> None:
        """Check that the run fits the algorithm, and attach to its optimizers.

        Raises:
            ConfigError: If the model is not StripeWise, or if the optimizer does not train the skeletons.
        """
        model = unwrapped(runner)
        if not isinstance(model, StripeWise):
            raise ConfigError(f'StripeHook: the model is a {type(model).__name__}, not StripeWise; take the hook out '
                              'of custom_hooks')
        if not model.is_learning:
            return
        wrapper = runner.optim_wrapper
        wrappers = list(wrapper.values()) if isinstance(wrapper, OptimWrapperDict) else [wrapper]
        optimizers = [one.optimizer for one in wrappers]
        runner.model.train()  # where backbones freeze stages
        check_optimizers(model, optimizers)
        model.settle()
        for optimizer in optimizers:
            self._attach(optimizer, model)
        model.scheduled = True

    def _attach(self, optimizer: torch.optim.Optimizer, model: StripeWise) -> None:
        own = {id(parameter) for group in optimizer.param_groups for parameter in group['params']}
        layers = [layer for _, layer in model.mutator.skeletons(model) if id(layer.skeleton) in own]
        if not layers:
            return

        def before(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            # An optimizer that scales gradients back by itself (fused ones, in mixed precision) has the factor here.
            scale = getattr(optimizer, 'grad_scale', None)
            for layer in layers:
                self._before[id(layer)] = layer.skeleton.detach().clone()
                layer.add_sparsity(model.sr if scale is None else model.sr * scale)

        def after(*_: Any) -> None:
            for layer in layers:
                layer.cut(model.threshold, self._before.pop(id(layer)))
            model.settle()

        self._handles += [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None,
                         outputs: Mapping[str, Any] | None = None) -> None:
        """Let averaged weights follow, and log what is left.

        Raises:
            PruningError: If nothing is.
        """
        model = unwrapped(runner)
        if not model.is_learning:
            return
        for averaged in _averages(runner):
            model.mutator.follow(averaged, model)
        if batch_idx == 0 or runner.iter + 1 == runner.max_iters or self.every_n_train_iters(runner, self.interval):
            statistics = model.stripe_statistics()
            for name, share in statistics.items():
                runner.message_hub.update_scalar(f'train/{name}', share)
            if statistics['stripes'] == 0:
                raise PruningError(f'StripeWise: by iteration {runner.iter + 1} all stripes have died, and the model '
                                   f'computes a constant; begin anew with a smaller sr (it is {model.sr:g}) or '
                                   'learning rate')

    def after_train(self, runner: Runner) -> None:
        """Write what is left at the end, and detach from the optimizers."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        unwrapped(runner).scheduled = False
        model = (_averages(runner) or [unwrapped(runner)])[0]  # whose weights checkpoints hold
        if not model.is_learning or not is_main_process():
            return
        left = model.stripe_statistics()
        runner.logger.info(f'StripeWise: {left["stripes"]:.1%} of the stripes and {left["filters"]:.1%} of the filters '
                           'are left')
        units = model.exported_units
        units.save(Path(runner.work_dir) / UNITS_FILE)
        png = stripes_png(units)
        atomic_write(png, Path(runner.work_dir) / PICTURE)
        runner.visualizer.add_image('stripes', mmcv.imfrombytes(png, channel_order='rgb'), step=runner.iter)


def _averages(runner: Runner) -> list[StripeWise]:
    return [hook.ema_model.module for hook in runner.hooks if isinstance(hook, EMAHook)]


def check_optimizers(model: StripeWise, optimizers: list[torch.optim.Optimizer]) -> None:
    """Check that optimizers train the skeletons.

    Raises:
        ConfigError: If a skeleton needs no gradient, is in no group of parameters, or has a learning rate of 0.
    """
    skeletons = {f'{path}.skeleton': layer.skeleton for path, layer in model.mutator.skeletons(model)}
    still = parameters_left_alone(skeletons, [group for optimizer in optimizers for group in optimizer.param_groups])
    if still:
        raise ConfigError(f'StripeWise: the optimizer leaves {len(still)} of {len(skeletons)} skeletons as they are '
                          f'(first: {still[0]}); set frozen_stages=-1 in the backbone, or leave frozen layers out by '
                          'mutator.exclude, and let no lr_mult in optim_wrapper.paramwise_cfg be 0 for "skeleton"')
