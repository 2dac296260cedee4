"""The hook that DCFF needs: mixtures of filters by the progress of training."""

from __future__ import annotations

from mmengine.dist import broadcast
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner

from mmprune_ext.algorithms import DCFF
from mmprune_ext.engine.hooks import unwrapped
from mmprune_ext.errors import ConfigError
from mmprune_ext.registry import HOOKS


@HOOKS.register_module()
class FusionHook(Hook):
    """Update the mixtures of filters of a DCFF run, and log the temperature.

    When, the algorithm says (``by_epoch``, ``step_freq``). The temperature is a function of the
    epoch or iteration, and the mixtures of the filters at that moment, so that a resumed run goes
    on exactly. All ranks hold the same filters; that they apply the same mixtures does not depend
    on their processors computing alike, for rank 0 tells.

    Attributes:
        for_pruning_only: The config of the exported compact model goes without this hook.
    """

    for_pruning_only = True

    def before_train(self, runner: Runner) -> None:
        """Check that the run counts what the algorithm's schedule is counted in.

        Raises:
            ConfigError: If the model is not DCFF, or updates by epoch and the run has none.
        """
        model = unwrapped(runner)
        if not isinstance(model, DCFF):
            raise ConfigError(f'FusionHook: the model is a {type(model).__name__}, not DCFF; take '
                              'the hook out of custom_hooks')
        if model.by_epoch and isinstance(runner.train_loop, IterBasedTrainLoop):
            raise ConfigError('DCFF updates its mixtures by epoch, but this run counts iterations '
                              '(train_cfg.max_iters); set model.by_epoch=False and model.step_freq '
                              'to the iterations between two updates')
        model.scheduled = True

    def before_train_epoch(self, runner: Runner) -> None:
        """Update by epoch."""
        model = unwrapped(runner)
        if model.by_epoch and runner.epoch % model.step_freq == 0:
            self._update(runner, model, runner.epoch, runner.max_epochs)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        """Update by iteration."""
        model = unwrapped(runner)
        if not model.by_epoch and runner.iter % model.step_freq == 0:
            self._update(runner, model, runner.iter, runner.max_iters)

    def _update(self, runner: Runner, model: DCFF, step: int, total: int) -> None:
        temperature = model.update_fusion(step, total)
        for _, layer in model.fuse_layers():
            broadcast(layer.fusion)
            broadcast(layer.chosen)
        runner.message_hub.update_scalar('train/temperature', temperature)
