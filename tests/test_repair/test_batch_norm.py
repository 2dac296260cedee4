"""Batch statistics after pruning, against their definition, and where a run takes them anew by itself."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmprune_ext.registry import MODELS
from mmprune_ext.repair import reestimate_batch_norm


def test_the_mean_over_batches(tiny_config):
    config = tiny_config()
    init_default_scope('mmpretrain')
    model = MODELS.build({**config.model, 'data_preprocessor': config.data_preprocessor})
    loader = list(Runner.build_dataloader(config.train_dataloader, seed=0))[:4]
    seen: list[Tensor] = []
    conv = model.backbone.conv1
    handle = conv.register_forward_hook(lambda module, args, out: seen.append(out))
    model.backbone.layer1.eval()
    flags = [module.training for module in model.modules()]
    momentum = model.backbone.bn1.momentum
    assert reestimate_batch_norm(model, loader, 3) == 3
    handle.remove()
    assert len(seen) == 3
    means, variances = zip(*((out.mean((0, 2, 3)), out.transpose(0, 1).flatten(1).var(1)) for out in seen))
    torch.testing.assert_close(model.backbone.bn1.running_mean, torch.stack(means).mean(0))
    torch.testing.assert_close(model.backbone.bn1.running_var, torch.stack(variances).mean(0))
    assert flags == [module.training for module in model.modules()]
    assert model.backbone.bn1.momentum == momentum


# ---------------------------------------------------------------- in a run


class Statistics(Hook):
    """Keep the running means that an epoch starts with."""

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self.means: list[dict[str, Tensor]] = []

    def before_train_epoch(self, runner: Runner) -> None:
        self.means.append(means_of(runner.model))


def means_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: module.running_mean.clone() for name, module in model.named_modules()
            if isinstance(module, _BatchNorm)}


@pytest.fixture
def fixed_config(pruning_config: Callable[..., Config], tmp_path: Path) -> Callable[..., Config]:
    """Return a function that makes a pruning run whose backbone keeps its statistics in training."""
    def make(norm_eval: bool = True, **hook: Any) -> Config:
        config = pruning_config({'work_dir': str(tmp_path), 'train_cfg.max_epochs': 1,
                                 'model.target_pruning_ratio': 0.5})
        config.model.update(checkpoint=None, from_scratch=True)
        config.model.architecture.backbone = dict(type='ResNet_CIFAR', depth=18, stem_channels=8, base_channels=8,
                                                  norm_eval=norm_eval)
        config.model.architecture.head.in_channels = 64
        config.custom_hooks = [*config.custom_hooks, dict(type='mmprune_ext.PruningHook', **hook)]
        return config
    return make


def trained(config: Config) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Run an epoch; return the means when it was built, when it started, when it ended."""
    runner = Runner.from_cfg(config)
    built, statistics = means_of(runner.model), Statistics()
    runner.register_hook(statistics)
    runner.train()
    return built, statistics.means[0], means_of(runner.model)


def test_fixed_statistics_are_taken_anew_before_training(fixed_config):
    built, started, ended = trained(fixed_config())
    for name, mean in built.items():
        assert not torch.equal(mean, started[name]), name
        assert torch.equal(started[name], ended[name]), name


def test_statistics_that_training_mends_are_left(fixed_config):
    built, started, _ = trained(fixed_config(norm_eval=False))
    assert all(torch.equal(mean, started[name]) for name, mean in built.items())


def test_not_where_it_is_switched_off(fixed_config):
    built, started, _ = trained(fixed_config(bn_batches=0))
    assert all(torch.equal(mean, started[name]) for name, mean in built.items())


def test_not_in_a_resumed_run(fixed_config, tmp_path):
    trained(fixed_config())
    state = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)['state_dict']
    config = fixed_config()
    config.resume, config.load_from, config.train_cfg.max_epochs = True, str(tmp_path / 'epoch_1.pth'), 2
    config.model.units = str(tmp_path / 'epoch_1.pth')
    _, started, _ = trained(config)
    assert all(torch.equal(mean, state[f'{name}.running_mean']) for name, mean in started.items())


@pytest.mark.e2e
def test_two_ranks_take_the_same(fixed_config, train_on_two_ranks):
    first, second = train_on_two_ranks(fixed_config())(0)
    names = [name for name in first if name.endswith(('running_mean', 'running_var'))]
    assert len(names) > 30
    assert all(torch.equal(first[name], second[name]) for name in names)
    assert any(bool(first[name].ne(0).any()) for name in names)
