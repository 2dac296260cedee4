"""L1Norm in mmengine's Runner, and the rows of the paper."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import nn

import mmprune_ext.mutators.base
from mmprune_ext.algorithms import L1Norm
from mmprune_ext.analysis import complexity
from mmprune_ext.compact.checkpoint import RUN_UNITS, read_checkpoint
from mmprune_ext.engine import runs
from mmprune_ext.errors import CheckpointError, ConfigError, TargetError
from mmprune_ext.registry import MODELS
from mmprune_ext.settings import reading
from tests.runs import state

ROOT = Path(__file__).resolve().parents[2]
PFEC = {row['row']: row for row in
        json.loads((ROOT / 'tests' / 'data' / 'published_l1_rounds.json').read_text())}


def build(config: Config) -> L1Norm:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build({**config.model, 'data_preprocessor': config.data_preprocessor})


def parameter_count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# ---------------------------------------------------------------- construction


def test_compact_when_built(pruning_config, dense_checkpoint):
    config = pruning_config({'model.target_pruning_ratio': 0.5})
    model = build(config)
    kept = model.units['backbone.layer2.0.conv1'].indices
    dense = state(dense_checkpoint)['backbone.layer2.0.conv1.weight']
    assert kept == sorted(dense.abs().sum((1, 2, 3)).topk(8).indices.tolist())
    entered = model.units['backbone.conv1'].indices
    found = model.backbone.layer2[0].conv1.weight
    torch.testing.assert_close(found, dense[kept][:, entered], rtol=0, atol=0)


def test_passes_calls_to_the_architecture(pruning_config):
    from mmpretrain.structures import DataSample
    model = build(pruning_config())
    images, samples = torch.randn(2, 3, 32, 32), [DataSample().set_gt_label(i) for i in range(2)]
    model.eval()
    assert set(model(images, samples, mode='loss')) == {'loss'}
    exported = model.export_model()
    torch.testing.assert_close(model(images), exported(images), rtol=0, atol=0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.init_weights()  # the Runner calls it; it must not undo what was loaded
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize('options', [
    {'budget': dict(flops=0.5)}, {'target_pruning_ratio': None}], ids=['both', 'none'])
def test_exactly_one_target(pruning_config, options):
    config = pruning_config()
    config.model.update(options)
    with pytest.raises(TargetError, match='either target_pruning_ratio or budget'):
        build(config)


def test_mutator_must_be_one(pruning_config):
    config = pruning_config()
    config.model.mutator = dict(type='mmprune_ext.CifarVGG', depth=11)
    with pytest.raises(ConfigError, match='mutator should be a channel mutator .* but got CifarVGG'):
        build(config)


def test_no_calibration_is_taken(pruning_config):
    config = pruning_config()
    config.model.calibration = dict(num_batches=2)
    with pytest.raises(ConfigError, match='L1Norm: takes no calibration, for it scores weights alone; leave it out'):
        build(config)


def test_from_scratch_the_architecture_initialises(pruning_config):
    config = pruning_config({'model.checkpoint': None, 'model.from_scratch': True})
    config.model.architecture.backbone.init_cfg = [dict(type='Constant', layer='Conv2d', val=0.25)]
    model = build(config)
    assert set(model.backbone.layer3[0].conv1.weight.unique().tolist()) == {0.25}


# ---------------------------------------------------------------- in the Runner


class Watch(Hook):
    """Note what the Runner trains, from inside."""

    def before_train(self, runner: Runner) -> None:
        self.optimized = sum(p.numel() for group in runner.optim_wrapper.optimizer.param_groups
                             for p in group['params'])
        self.start = {key: value.clone() for key, value in runner.model.state_dict().items()}


def test_trains_what_is_left(pruning_config, dense_checkpoint, tmp_path):
    config = pruning_config({'work_dir': str(tmp_path)})
    config.custom_hooks = [*config.custom_hooks, dict(type='mmprune_ext.PruningHook')]
    runner = Runner.from_cfg(config)
    watch = Watch()
    runner.register_hook(watch)
    runner.train()
    dense = sum(value.numel() for key, value in state(dense_checkpoint).items()
                if 'running' not in key and 'num_batches' not in key)
    assert watch.optimized == parameter_count(runner.model) < 0.5 * dense
    assert watch.start.keys() == runner.model.state_dict().keys()
    key = 'backbone.layer3.0.conv2.weight'
    assert not torch.equal(watch.start[key], runner.model.state_dict()[key])

    checkpoint = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)
    units = read_checkpoint(tmp_path / 'epoch_1.pth')['run_units']
    assert units.to_json() == runner.model.units.to_json() == checkpoint['meta']['channel_units']
    assert json.loads((tmp_path / 'units.json').read_text()) == units.to_json()


def resumed(config: Config, path: Path) -> Config:
    """Set up a config as tools/train.py --resume does."""
    config.train_cfg.max_epochs = 2
    runs.set_resume(config, str(path))
    return config


def test_resume_takes_the_structure_from_the_checkpoint(pruning_config, pruning_run, tmp_path, monkeypatch):
    """Nothing is traced or scored, and the dense weights may be gone; even another target changes nothing."""
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError('traced')

    monkeypatch.setattr(mmprune_ext.mutators.base, 'trace_units', forbidden)
    config = pruning_config({'work_dir': str(tmp_path), 'model.checkpoint': str(tmp_path / 'deleted.pth'),
                             'model.target_pruning_ratio': 0.1})
    runner = Runner.from_cfg(resumed(config, pruning_run / 'epoch_1.pth'))
    runner.train()
    first, second = state(pruning_run / 'epoch_1.pth'), state(tmp_path / 'epoch_2.pth')
    assert first._metadata[''][RUN_UNITS] == second._metadata[''][RUN_UNITS]
    assert all(first[key].shape == second[key].shape for key in first)
    assert not (tmp_path / 'epoch_1.pth').exists()  # epoch 1 was not trained again
    # A resumed run can be resumed, too.
    again = pruning_config({'work_dir': str(tmp_path), 'model.checkpoint': None})
    assert build(resumed(again, tmp_path / 'epoch_2.pth')).units['backbone.conv1'].keep == 4


@pytest.mark.parametrize('ratio', [0.2, 0.4], ids=['other widths', 'same widths, other channels'])
def test_weights_of_another_structure(pruning_config, pruning_run, ratio):
    config = pruning_config({'model.target_pruning_ratio': ratio})
    if ratio == 0.4:
        units = read_checkpoint(pruning_run / 'epoch_1.pth')['run_units']
        unit = units['backbone.layer2.0.conv1']
        unit.choose(sorted(set(range(unit.num_channels)) - set(unit.indices))[:1] + unit.indices[1:])
        config.model.units = units.to_json()
    model = build(config)
    with pytest.raises(CheckpointError, match=r'the checkpoint was written by a run that pruned other channels '
                       r'\(first: unit "backbone\..*"\); resume with tools/train.py --resume'):
        model.load_state_dict(state(pruning_run / 'epoch_1.pth'), strict=False)


def test_ema(pruning_config, tmp_path):
    """The average is of the compact model; it is in the checkpoint, and a resumed run goes on with it."""
    def averaging(**options: Any) -> Config:
        config = pruning_config({'work_dir': str(tmp_path), **options})
        config.custom_hooks = [*config.custom_hooks, dict(type='EMAHook', momentum=0.1)]
        return config

    runner = Runner.from_cfg(averaging())
    runner.train()
    checkpoint = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)
    average, trained = checkpoint['state_dict'], checkpoint['ema_state_dict']
    key = 'backbone.layer3.0.conv2.weight'
    assert average[key].shape == trained[f'module.{key}'].shape
    assert not torch.equal(average[key], trained[f'module.{key}'])
    assert json.loads(average._metadata[''][RUN_UNITS]) == runner.model.units.to_json()

    again = averaging()
    Runner.from_cfg(resumed(again, tmp_path / 'epoch_1.pth')).train()
    assert state(tmp_path / 'epoch_2.pth').keys() == average.keys()


def test_training_step_in_bfloat16(pruning_config):
    """What mixed precision does: the loss and its gradients in another type than the weights."""
    from mmpretrain.structures import DataSample
    model = build(pruning_config())
    samples = [DataSample().set_gt_label(i) for i in range(4)]
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert model(torch.randn(4, 3, 32, 32)).dtype is torch.bfloat16
        loss = model(torch.randn(4, 3, 32, 32), samples, mode='loss')['loss']
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
        assert parameter.grad.dtype is torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason='mmengine has mixed precision on accelerators only')
def test_mixed_precision(pruning_config, tmp_path):
    config = pruning_config({'work_dir': str(tmp_path)})
    config.optim_wrapper = dict(type='AmpOptimWrapper', loss_scale='dynamic', optimizer=config.optim_wrapper.optimizer)
    Runner.from_cfg(config).train()
    weights = state(tmp_path / 'epoch_1.pth')
    assert all(bool(value.isfinite().all()) for value in weights.values() if value.is_floating_point())
    assert {value.dtype for value in weights.values()} == {torch.float32, torch.int64}


@pytest.mark.e2e
def test_two_ranks_hold_the_same_weights(pruning_config, train_on_two_ranks):
    """Each rank prunes by itself, before DDP: the same channels, and the same weights after training."""
    config = pruning_config({'train_dataloader.batch_size': 10})
    ranks = train_on_two_ranks(config)(0)
    assert ranks[0]._metadata[''][RUN_UNITS] == ranks[1]._metadata[''][RUN_UNITS]
    # Batch statistics are each rank's own, as in every DDP run without SyncBN.
    trained = [key for key in ranks[0] if 'running' not in key]
    assert [key for key in trained if not torch.equal(ranks[0][key], ranks[1][key])] == []
    assert any(not torch.equal(ranks[0][key], ranks[1][key]) for key in ranks[0] if 'running_mean' in key)


# ---------------------------------------------------------------- the paper's rows


# Layers that are sensitive, by their number, 1 being the stem (papers of this method count so).
SKIPPED = {56: (16, 20, 38, 54), 110: (36, 38, 74)}
RATIOS = {1: 0.1, 2: 0.2, 3: 0.3}


def rounds(depth: int, count: int) -> dict[str, float]:
    """Return the pruning ratio of each block's first convolution after a number of rounds."""
    blocks = (depth - 2) // 6
    ratios = {}
    for stage, ratio in RATIOS.items():
        for block in range(blocks):
            number = 2 + 2 * ((stage - 1) * blocks + block)
            if number in SKIPPED[depth]:
                continue
            dense = kept = 16 * 2 ** (stage - 1)
            for _ in range(count):
                kept = int(kept * (1 - ratio))
            # Half a channel keeps int(dense * (1 - ratio)) away from rounding.
            ratios[f'backbone.layer{stage}.{block}.conv1'] = 1 - (kept + 0.5) / dense
    return ratios


def resnet(depth: int) -> dict[str, Any]:
    return dict(type='ImageClassifier', backbone=dict(type='mmprune_ext.CifarResNet', depth=depth),
                neck=dict(type='GlobalAveragePooling'),
                head=dict(type='LinearClsHead', num_classes=10, in_channels=64))


def pruned_counts(depth: int, ratios: dict[str, float]) -> tuple[int, int]:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = L1Norm(resnet(depth), dict(type='mmprune_ext.L1Mutator', demo_inputs=[32, 32]), ratios,
                       from_scratch=True)
    counted = complexity(model.export_model(), (32, 32))
    return counted.params, counted.macs


@pytest.mark.parametrize('number', range(1, 6))
def test_rounds_of_resnet56(number):
    row = PFEC[f'PFEC resnet56 #{number}']
    assert pruned_counts(56, rounds(56, number)) == (row['params'], row['macs'])


# Millions of parameters as the paper's repository prints them.
@pytest.mark.parametrize(('number', 'printed'), [(1, 1.26), (2, 0.92), (3, 0.70), (4, 0.52), (5, 0.38)])
def test_rounds_of_resnet110(number, printed):
    assert pruned_counts(110, rounds(110, number))[0] / 1e6 == pytest.approx(printed, abs=0.01)


def test_widths_of_the_rounds():
    """Stage by stage, as algorithms of this method state them: 14 12 10 9 8 / 25 20 16 12 9 / 44 30 21 14 9."""
    widths = {stage: [int(16 * 2 ** (stage - 1) * (1 - rounds(56, n)[f'backbone.layer{stage}.2.conv1']))
                      for n in range(1, 6)] for stage in RATIOS}
    assert widths == {1: [14, 12, 10, 9, 8], 2: [25, 20, 16, 12, 9], 3: [44, 30, 21, 14, 9]}


# Table 1 of the paper: parameters in millions, cut off; FLOPs, rounded; the shares that are gone, in per cent.
TABLE_1 = {('resnet56', 'a'): (0.77, 1.12e8, 9.4, 10.4), ('resnet56', 'b'): (0.73, 9.09e7, 13.7, 27.6),
           ('resnet110', 'a'): (1.68, 2.13e8, 2.3, 15.9), ('resnet110', 'b'): (1.16, 1.55e8, 32.4, 38.6)}


@pytest.mark.parametrize(('network', 'name'), TABLE_1)
def test_models_of_the_paper(network, name):
    config = reading.read_config(str(ROOT / 'configs' / 'pruning' / 'mmcls' / 'l1' / f'l1_{network}_cifar10_{name}.py'))
    depth, ratios = int(network.removeprefix('resnet')), config.model.target_pruning_ratio.to_dict()
    (dense, dense_macs), (params, macs) = pruned_counts(depth, {}), pruned_counts(depth, ratios)
    printed = TABLE_1[network, name]
    assert int(params / 1e4) / 100 == printed[0]
    assert float(f'{macs:.3g}') == printed[1]
    assert 100 * (1 - params / dense) == pytest.approx(printed[2], abs=0.1)
    assert 100 * (1 - macs / dense_macs) == pytest.approx(printed[3], abs=0.1)
