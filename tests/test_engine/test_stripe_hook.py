"""Stripe-wise pruning in mmengine's Runner: which stripes die when, what stays dead, resume, export, two ranks."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner import Runner
from torch import Tensor, nn

from mmprune_ext.engine import runs
from mmprune_ext.errors import ConfigError, PruningError
from mmprune_ext.ops import SkeletonConv2d, StripeConv2d
from mmprune_ext.registry import MODELS
from mmprune_ext.settings import completion, reading
from mmprune_ext.units import UnitSet
from mmprune_ext.workflows.pruning import export_run
from tests import runs as runs_of_tests
from tests.runs import StopAt, differing, state

LAYER = 'backbone.layer2.0.conv1'
# The whole training, 24 iterations at lr 0.05 with momentum 0.9, takes about 0.75 from a number.
SR = 0.1


pytestmark = pytest.mark.usefixtures('mmpretrain_scope')


@pytest.fixture
def stripe_config(tiny_config, tmp_path) -> Callable[..., Config]:
    """Return a function that makes the config of a StripeWise run, as tools/train.py completes it."""
    def make(options: Mapping[str, Any] | None = None, prepare: bool = True, **model: Any) -> Config:
        config = tiny_config({'work_dir': str(tmp_path / 'run'), 'train_cfg.max_epochs': 4,
                              'train_cfg.val_interval': 4, **(options or {})})
        config.model = dict(dict(type='mmprune_ext.StripeWise', architecture=config.model, sr=SR), **model)
        if prepare:
            completion.prepare_pruning(config)
        return config
    return make


class Watch(Hook):
    """Note the skeleton of a layer after each iteration."""

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.skeletons: list[Tensor] = []

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        model = getattr(runner.model, 'module', runner.model)
        self.skeletons.append(model.get_submodule(LAYER).skeleton.detach().clone())


class Scatter(Hook):
    """Start the skeletons of a new run from 0.1 to 1.2, so that stripes die one after the other."""

    def before_train(self, runner: Runner) -> None:
        generator = torch.Generator().manual_seed(0)
        model = getattr(runner.model, 'module', runner.model)
        for _, layer in model.mutator.skeletons(model) if runner.iter == 0 else []:
            drawn = torch.rand(layer.skeleton.shape, generator=generator)
            layer.skeleton.data.copy_(0.1 + 1.1 * drawn)


def train(config: Config, *hooks: Hook, scatter: bool = True) -> tuple[Runner, Watch]:
    watch = Watch()
    return runs_of_tests.train(config, watch, *hooks, *([Scatter()] if scatter else [])), watch


def dead(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value == 0 for key, value in weights.items() if key.endswith('skeleton')}


def share_dead(weights: Mapping[str, Tensor]) -> float:
    marks = torch.cat([value.flatten() for value in dead(weights).values()])
    return float(marks.float().mean())


# ---------------------------------------------------------------- steps


@pytest.mark.parametrize(('sr', 'threshold'), [(SR, 0.9), (19., 0.01)])
def test_a_step_by_hand(stripe_config, sr, threshold):
    """One SGD step: gradient, decay and sr * sign; what is up to the threshold, or has changed its sign, is 0."""
    config = stripe_config({'train_cfg.max_epochs': 1}, sr=sr, threshold=threshold)
    noted: dict[str, Tensor] = {}

    class Note(Hook):
        def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
            if runner.iter:
                raise KeyboardInterrupt
            layer = runner.model.get_submodule(LAYER)
            with torch.no_grad():
                layer.skeleton.copy_(torch.linspace(0.9001, 1.0, layer.skeleton.numel()).view_as(layer.skeleton))
                layer.skeleton[0, 0] = -0.95
            noted['before'] = layer.skeleton.detach().clone()
            layer.skeleton.register_hook(lambda grad: noted.__setitem__('gradient', grad.clone()))

    runner, watch = Runner.from_cfg(config), Watch()
    runner.register_hook(Note())
    runner.register_hook(watch)
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    before, gradient = noted['before'], noted['gradient']
    stepped = before - 0.05 * (gradient + sr * before.sign() + 1e-4 * before)
    wanted = torch.where((stepped.abs() > threshold) & (stepped * before > 0), stepped, torch.zeros(()))
    torch.testing.assert_close(watch.skeletons[0], wanted)
    assert 0 < int((wanted == 0).sum()) < wanted.numel()


def test_stripes_die_and_stay_dead(stripe_config):
    """Against momentum, which goes on for a while, and gradients."""
    _, watch = train(stripe_config())
    marks = torch.stack([skeleton == 0 for skeleton in watch.skeletons])
    assert 0.05 < marks[-1].float().mean() < 0.95
    assert torch.equal(marks, marks.cummax(0).values)


@pytest.mark.parametrize('optimizer', [
    dict(type='SGD', lr=0.2, momentum=0.95, nesterov=True, weight_decay=1e-2), dict(type='AdamW', lr=0.02)],
    ids=['nesterov', 'adamw'])
def test_momentum_moves_no_dead_stripe(stripe_config, optimizer):
    """Nor do steps that reach far beyond the threshold jump over it."""
    sr = 0.01 if optimizer['type'] == 'SGD' else 0.3
    config = stripe_config({'optim_wrapper.optimizer': dict(_delete_=True, **optimizer)}, sr=sr, threshold=0.001)
    _, watch = train(config)
    marks = torch.stack([skeleton == 0 for skeleton in watch.skeletons])
    assert 0 < marks[-1].float().mean() < 1 and bool((watch.skeletons[-1] >= 0).all())
    assert torch.equal(marks, marks.cummax(0).values)


def test_gradients_that_are_accumulated(stripe_config):
    """L1 counts once a step of the optimizer, however many iterations that takes."""
    options = {'train_dataloader.batch_size': 10, 'optim_wrapper.accumulative_counts': 2, 'train_cfg.max_epochs': 1,
               'optim_wrapper.optimizer.momentum': 0., 'optim_wrapper.optimizer.weight_decay': 0.,
               # Nothing but L1 moves the skeletons.
               'model.head.loss.loss_weight': 0.}
    _, watch = train(stripe_config(options), scatter=False)
    values = torch.stack(watch.skeletons).flatten(1)
    steps = torch.arange(2, 14) // 2
    steps[::2] -= 1  # after the first of two iterations nothing has happened yet
    torch.testing.assert_close(values[:, 0], 1 - 0.05 * SR * steps.float())
    assert bool((values == values[:, :1]).all())


def test_a_threshold_has_an_effect(stripe_config):
    """A trap that users of masks met: the larger one kills more."""
    shares = [share_dead(train(stripe_config({'train_cfg.max_epochs': 1}, sr=0.02, threshold=threshold))[0]
                         .model.state_dict()) for threshold in (0.01, 0.9)]
    assert shares[0] == 0 and shares[1] > 0.5


def test_clipping_does_not_weaken_the_l1_norm(stripe_config):
    options = {'optim_wrapper.clip_grad': dict(max_norm=1e-12), 'train_cfg.max_epochs': 1,
               'optim_wrapper.optimizer.momentum': 0., 'optim_wrapper.optimizer.weight_decay': 0.}
    _, watch = train(stripe_config(options), scatter=False)
    torch.testing.assert_close(watch.skeletons[-1], torch.full_like(watch.skeletons[-1], 1 - 6 * 0.05 * SR))


def test_frozen_weights(stripe_config):
    """Skeletons alone are trained."""
    runner, _ = train(stripe_config(freeze_weights=True), start := Start())
    after = runner.model.state_dict()
    changed = {key.rpartition('.')[2] for key in differing(start.state, after) if '.bn' not in key}
    assert changed == {'skeleton'} and share_dead(after) > 0.05
    # Scale and shift of a batch norm are as they were, or silenced.
    for key in differing(start.state, after):
        if '.bn' in key and key.endswith(('weight', 'bias')):
            other = after[key] != start.state[key]
            assert not after[key][other].any()


class Start(Hook):
    """Keep the weights that training starts from."""

    state: dict[str, Tensor]

    def before_train(self, runner: Runner) -> None:
        self.state = {key: value.clone() for key, value in runner.model.state_dict().items()}


# ---------------------------------------------------------------- mixed precision, averages


@OPTIM_WRAPPERS.register_module()
class Bf16OptimWrapper(OptimWrapper):
    """bfloat16 on CPU: mmengine's own wrapper asks for an accelerator."""

    def optim_context(self, model: nn.Module) -> Any:
        return torch.autocast('cpu', torch.bfloat16)


def test_mixed_precision(stripe_config, tmp_path):
    config = stripe_config({'optim_wrapper.type': 'Bf16OptimWrapper'})
    runner, watch = train(config)
    assert watch.skeletons[-1].dtype is torch.float32
    marks = torch.stack([skeleton == 0 for skeleton in watch.skeletons])
    assert 0.05 < marks[-1].float().mean() < 0.95
    assert torch.equal(marks, marks.cummax(0).values)
    assert_exported_computes_the_same(config, tmp_path / 'run' / 'epoch_4.pth', tmp_path / 'out')


@pytest.mark.parametrize('update_buffers', [False, True])
def test_averaged_weights(stripe_config, tmp_path, update_buffers):
    """What is validated and saved, the average, is dead where the weights are, and exports as it computes."""
    config = stripe_config({'train_cfg.val_interval': 1})
    config.custom_hooks = [*config.custom_hooks, dict(type='EMAHook', momentum=0.1, update_buffers=update_buffers)]
    train(config)
    checkpoint = tmp_path / 'run' / 'epoch_4.pth'
    average = state(checkpoint)
    stored = torch.load(checkpoint, weights_only=False)['ema_state_dict']
    trained = {key.removeprefix('module.'): value for key, value in stored.items()}
    assert not torch.equal(average[f'{LAYER}.skeleton'], trained[f'{LAYER}.skeleton'])
    assert share_dead(trained) > 0.05
    for key, marks in dead(trained).items():
        assert torch.equal(average[key] == 0, marks)
    assert_exported_computes_the_same(config, checkpoint, tmp_path / 'out')


# ---------------------------------------------------------------- export, fine-tuning


def assert_exported_computes_the_same(config: Config, checkpoint: Path, folder: Path) -> Path:
    """Check an exported folder against the run's model with the weights of a checkpoint; return its config."""
    exported = export_run(config, str(checkpoint), folder)
    compact = reading.read_config(str(exported.config))
    model = MODELS.build({**compact.model, 'data_preprocessor': compact.data_preprocessor}).eval()
    run = MODELS.build({**config.model, 'units': state_units(checkpoint),
                        'data_preprocessor': config.data_preprocessor})
    run.load_state_dict(state(checkpoint), strict=True)
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[0], run.eval()(x)[0], rtol=1e-4, atol=1e-4)
    assert any(isinstance(module, SkeletonConv2d) for module in run.modules())
    assert not any(isinstance(module, SkeletonConv2d) for module in model.modules())
    return exported.config


def state_units(checkpoint: Path) -> dict[str, Any]:
    return torch.load(checkpoint, weights_only=False)['meta']['channel_units']


def test_exported_run_is_tuned_further(stripe_config, tmp_path):
    """Dead stripes stay dead in the compact model, which saves none of them, and rebuilds from its unit file."""
    config = stripe_config()
    train(config)
    path = assert_exported_computes_the_same(config, tmp_path / 'run' / 'epoch_4.pth', tmp_path / 'out')
    units = UnitSet.load(tmp_path / 'out' / 'units.json')
    assert units.stripes and all(layer.form in ('dense', 'stripes') for layer in units.stripes.values())
    compact = reading.read_config(str(path))
    assert {hook['type'] for hook in compact.custom_hooks} == {'mmprune_ext.EpochSeedHook'}
    compact.work_dir, compact.train_cfg.max_epochs = str(tmp_path / 'tuned'), 1
    runner = runs.build_runner(compact, 'none')
    runner.train()
    layers = {name: module for name, module in runner.model.named_modules() if isinstance(module, StripeConv2d)}
    assert layers
    before, after = state(tmp_path / 'out' / 'compact.pth'), state(tmp_path / 'tuned' / 'epoch_1.pth')
    for name, layer in layers.items():
        gone = ~layer.keep[:, None].expand_as(layer.to_conv().weight)
        assert not layer.to_conv().weight[gone].any()
        assert after[f'{name}.weight'].shape == (layer.num_stripes, layer.in_channels)
        assert not torch.equal(after[f'{name}.weight'], before[f'{name}.weight'])
    again = export_run(reading.read_config(str(path)), str(tmp_path / 'tuned' / 'epoch_1.pth'), tmp_path / 'again')
    saved = UnitSet.load(again.units)
    assert {name: layer.form for name, layer in saved.stripes.items()} == {
        name: layer.form for name, layer in units.stripes.items()}


def test_the_file_shrinks(stripe_config, tmp_path):
    """A trap that users of masks met."""
    config = stripe_config(sr=0.15)
    train(config)
    exported = export_run(config, str(tmp_path / 'run' / 'epoch_4.pth'), tmp_path / 'out')
    counts = [sum(value.numel() for value in state(path).values())
              for path in (exported.checkpoint, tmp_path / 'run' / 'epoch_4.pth')]
    assert counts[0] < 0.8 * counts[1]


def test_what_is_written(stripe_config, tmp_path):
    runner, watch = train(stripe_config({'default_hooks.logger.interval': 3}))
    log = next((tmp_path / 'run').glob('*/*.log')).read_text()
    assert 'stripes: 0.9' in log and 'filters: 1.0000' in log
    share = 1 - share_dead(runner.model.state_dict())
    assert share < 0.9 and f'stripes: {share:.4f}' in log and f'{share:.1%} of the stripes' in log
    assert (tmp_path / 'run' / 'stripes.png').read_bytes().startswith(b'\x89PNG')
    units = UnitSet.load(tmp_path / 'run' / 'units.json')
    alive = watch.skeletons[-1] != 0
    assert torch.equal(torch.from_numpy(units.stripes[LAYER].keep), alive)


# ---------------------------------------------------------------- resume


@pytest.mark.parametrize('ema', [False, True], ids=['plain', 'ema'])
def test_resumed_run_ends_as_an_uninterrupted_one(stripe_config, tmp_path, ema):
    """To the bit, with stripes dead before and after."""
    def make(folder: str, **settings: Any) -> Config:
        config = stripe_config({'work_dir': str(tmp_path / folder)}, **settings)
        if ema:
            config.custom_hooks = [*config.custom_hooks, dict(type='EMAHook', momentum=0.1)]
        return config
    train(make('whole'))
    with pytest.raises(KeyboardInterrupt):
        train(make('parts'), StopAt(epoch=3))
    assert share_dead(state(tmp_path / 'parts' / 'epoch_3.pth')) > 0
    resumed = make('parts', prepare=False)
    runs.set_resume(resumed, True)
    completion.prepare_pruning(resumed)
    train(resumed)
    whole = state(tmp_path / 'whole' / 'epoch_4.pth')
    assert share_dead(whole) > share_dead(state(tmp_path / 'parts' / 'epoch_3.pth'))
    assert differing(whole, state(tmp_path / 'parts' / 'epoch_4.pth')) == []


# ---------------------------------------------------------------- settings


def test_the_tools_add_the_hook(stripe_config):
    types = [hook['type'] for hook in stripe_config().custom_hooks]
    assert sorted(types) == ['mmprune_ext.EpochSeedHook', 'mmprune_ext.PruningHook', 'mmprune_ext.StripeHook']


def test_without_the_hook(stripe_config):
    """mmengine's own Runner with a bare config: told at the first step."""
    with pytest.raises(ConfigError, match=r"add dict\(type='mmprune_ext.StripeHook'\) to custom_hooks"):
        Runner.from_cfg(stripe_config(prepare=False)).train()


def test_skeletons_that_the_optimizer_leaves_alone(stripe_config):
    config = stripe_config(freeze_weights=True)
    config.optim_wrapper.paramwise_cfg = dict(custom_keys={'skeleton': dict(lr_mult=0.)})
    with pytest.raises(ConfigError, match=r'the optimizer leaves 7 of 7 skeletons as they are \(first: backbone.conv1'):
        Runner.from_cfg(config).train()


def test_frozen_stages(stripe_config):
    backbone = dict(_delete_=True, type='ResNet', depth=18, stem_channels=8, base_channels=8, frozen_stages=1)
    config = stripe_config({'model.backbone': backbone, 'model.head.in_channels': 64})
    with pytest.raises(ConfigError, match=r'5 of 20 skeletons .* set frozen_stages=-1 in the backbone'):
        Runner.from_cfg(config).train()


def test_all_stripes_dead(stripe_config):
    """Training a constant on would be a waste."""
    with pytest.raises(PruningError, match=r'by iteration 1 all stripes have died, .* smaller sr \(it is 100\)'):
        Runner.from_cfg(stripe_config(sr=100.)).train()


def test_hook_of_another_model(tiny_config, tmp_path):
    config = tiny_config({'work_dir': str(tmp_path)})
    config.custom_hooks = [dict(type='mmprune_ext.StripeHook')]
    with pytest.raises(ConfigError, match='the model is a ImageClassifier, not StripeWise'):
        Runner.from_cfg(config).train()


# ---------------------------------------------------------------- two ranks


@pytest.mark.e2e
def test_two_ranks_hold_the_same_skeleton(stripe_config, train_on_two_ranks):
    slower = dict(custom_keys={'layer1': dict(lr_mult=0.3)})
    config = stripe_config({'train_dataloader.batch_size': 10, 'optim_wrapper.paramwise_cfg': slower}, prepare=False,
                           sr=0.15)
    ranks_after = train_on_two_ranks(config)
    for epoch in range(4):
        ranks = ranks_after(epoch)
        # Batch statistics are each rank's own, as in every DDP run without SyncBN.
        assert all('running' in key for key in differing(*ranks))
    assert 0.05 < share_dead(ranks[0]) < 1
