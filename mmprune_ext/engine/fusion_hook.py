"""The hook that DCFF needs: mixtures of filters by the progress of training."""

from __future__ import annotations

from mmengine.dist import broadcast
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import IterBasedTrainLoop, Runner
from torch.nn.modules.batchnorm import _BatchNorm

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
        """Check that the run fits the algorithm, and join the mixtures of averaged models to its own.

        Raises:
            ConfigError: If the model is not DCFF, if it updates by epoch and the run has none, or
                for layers that training leaves as they are (:func:`check_trained`).
        """
        model = unwrapped(runner)
        if not isinstance(model, DCFF):
            raise ConfigError(f'FusionHook: the model is a {type(model).__name__}, not DCFF; take '
                              'the hook out of custom_hooks')
        if model.by_epoch and isinstance(runner.train_loop, IterBasedTrainLoop):
            raise ConfigError('DCFF updates its mixtures by epoch, but this run counts iterations '
                              '(train_cfg.max_iters); set model.by_epoch=False and model.step_freq '
                              'to the iterations between two updates')
        # Backbones freeze stages and batch norm in train().
        runner.model.train()
        check_trained(model)
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):
                _share_mixtures(model, hook.ema_model.module)
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


def check_trained(model: DCFF) -> None:
    """Check that a model in training mode trains the filters it mixes, and the batch norm after them.

    Filters that are mixed or chosen anew are other filters than those that statistics of old, or
    weights that no gradient reaches, were made for.

    Raises:
        ConfigError: For fused convolutions without gradients, and batch norm in eval mode.
    """
    layers = dict(model.fuse_layers())
    frozen = [path for path, layer in layers.items() if not layer.weight.requires_grad]
    whole = 'or leave their units whole by mutator.exclude or mutator.scope'
    if frozen:
        raise ConfigError(f'DCFF trains all filters that it mixes, but {len(frozen)} of {len(layers)} fused '
                          f'convolutions are frozen (first: {frozen[0]}); set frozen_stages=-1 in the '
                          f'backbone, {whole}')
    modules = dict(model.named_modules())
    paths = {member.module: None for unit in model.units.values() if unit.keep < unit.num_channels
             for member in unit.followers}
    fixed = [path for path in paths if isinstance(modules.get(path), _BatchNorm)
             and not modules[path].training and modules[path].track_running_stats]
    if fixed:
        raise ConfigError(f'DCFF: {len(fixed)} batch norm layers that follow fused filters stay in eval mode '
                          f'in training (first: {fixed[0]}); set norm_eval=False in the backbone, {whole}')


def _share_mixtures(model: DCFF, average: DCFF) -> None:
    """Let an averaged copy of a model apply the model's own mixtures.

    A hook that averages buffers too would mix by an average of mixtures, and exchange it with those
    that are trained. One tensor in both models is its own average, whatever the order of hooks.
    """
    for path, layer in model.fuse_layers():
        copied = average.get_submodule(path)
        copied.fusion, copied.chosen = layer.fusion, layer.chosen
