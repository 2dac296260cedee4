"""CHIP in mmengine's Runner, and the rows of the paper."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

import mmprune_ext.mutators.calibration
from mmprune_ext.algorithms import CHIP
from mmprune_ext.compact.checkpoint import RUN_UNITS, load_weights
from mmprune_ext.compact.compact_model import build_architecture
from mmprune_ext.engine import runs
from mmprune_ext.errors import ConfigError, UnitFileError
from mmprune_ext.mutators import CHIPMutator
from mmprune_ext.mutators.calibration import Calibration, calibrate
from mmprune_ext.mutators.score_file import ScoreFile
from mmprune_ext.registry import MODELS
from mmprune_ext.settings import checks, completion, reading
from mmprune_ext.units import origin, trace_units
from mmprune_ext.units.parameters.fingerprint import weights_digest


def build(config: Config) -> CHIP:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build({**config.model, 'data_preprocessor': config.data_preprocessor})


@pytest.fixture
def chip_config(tiny_config: Callable[..., Config], dense_checkpoint: Path) -> Callable[..., Config]:
    """Return a function that makes the config of a CHIP run of the tiny classifier."""
    def make(**options: Any) -> Config:
        config = tiny_config()
        config.model = {
            'type': 'mmprune_ext.CHIP', 'architecture': config.model, 'checkpoint': str(dense_checkpoint),
            'mutator': dict(type='mmprune_ext.CHIPMutator', demo_inputs=[32, 32]),
            'calibration': dict(num_batches=2, dataloader=config.train_dataloader),
            'target_pruning_ratio': 0.5, **options}
        return config
    return make


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """No dataloader for calibration can be built."""
    def build_dataloader(*_: Any, **__: Any) -> None:
        raise AssertionError('calibrated')
    monkeypatch.setattr(mmprune_ext.mutators.calibration.Calibration, 'build_dataloader', build_dataloader)


def dense_scores(config: Config, dense_checkpoint: Path) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = build_architecture(config.model.architecture, config.data_preprocessor)
        load_weights(model, str(dense_checkpoint))
        units = trace_units(model, (32, 32))
        return model, units, calibrate(model, units, Calibration(2, config.train_dataloader))


def test_compact_when_built(chip_config, dense_checkpoint):
    config = chip_config()
    model = build(config)
    dense, units, scores = dense_scores(config, dense_checkpoint)
    for name, unit in units.prunable.items():
        best = sorted(scores[name].topk(unit.num_channels // 2).indices.tolist())
        assert model.units[name].indices == best, name
    kept = model.units['backbone.layer2.0.conv1'].indices
    entered = model.units['backbone.conv1'].indices
    found = model.backbone.layer2[0].conv1.weight
    torch.testing.assert_close(found, dense.backbone.layer2[0].conv1.weight[kept][:, entered], rtol=0, atol=0)
    again = build(chip_config())
    assert again.units.to_json() == model.units.to_json()


def test_not_the_choice_of_l1(chip_config, pruning_config):
    """Else the scores of data would be ignored and nobody would notice."""
    by_norm = build(pruning_config({'model.target_pruning_ratio': 0.5}))
    assert any(unit.indices != by_norm.units[name].indices for name, unit in build(chip_config()).units.items())


def test_tools_fill_in_the_data(chip_config):
    config = chip_config(calibration=None)
    completion.prepare_pruning(config)
    assert config.model.calibration.dataloader == config.train_dataloader
    assert build(config).units.to_json() != build(chip_config()).units.to_json()  # 5 batches, not 2
    given = dict(num_batches=3, dataloader=dict(config.train_dataloader, batch_size=7))
    config = chip_config(calibration=given)
    completion.prepare_pruning(config)
    assert config.model.calibration.dataloader.batch_size == 7
    config = chip_config(calibration=dict(num_batches=3))
    completion.prepare_pruning(config)
    assert config.model.calibration.to_dict() == {'num_batches': 3, 'dataloader': config.train_dataloader.to_dict()}


def test_overrides_of_the_data_reach_the_calibration(chip_config, tmp_path):
    """Its dataloader is a copy of the training's; what differs from that on purpose stays."""
    config = chip_config()
    config.model.calibration.dataloader = dict(config.train_dataloader, batch_size=7)
    config.dump(tmp_path / 'run.py')
    root = config.train_dataloader.dataset.data_root
    for options, expected in (({'train_dataloader.dataset.data_root': 'none'}, ('none', 7)),
                              ({'train_dataloader.batch_size': 3}, (root, 7)),
                              ({'model.calibration.dataloader.dataset.data_root': 'other',
                                'train_dataloader.dataset.data_root': 'none'}, ('other', 7))):
        loader = reading.read_config(str(tmp_path / 'run.py'), options).model.calibration.dataloader
        assert (loader.dataset.data_root, loader.batch_size) == expected
    config = reading.read_config(str(tmp_path / 'run.py'), {'train_dataloader.dataset.data_root': 'none'})
    with pytest.raises(ConfigError, match='model.calibration.dataloader: data_root none does not exist'):
        checks.check_calibration(config.model)
    checks.check_calibration({**config.model, 'units': 'epoch_1.pth'})


@pytest.mark.parametrize('calibration', [5, 'coco', [1]])
def test_no_settings(chip_config, calibration):
    config = chip_config(calibration=calibration)
    completion.prepare_pruning(config)
    with pytest.raises(ConfigError, match='calibration: expected settings such as dict'):
        build(config)


def test_no_data(chip_config):
    with pytest.raises(ConfigError, match='calibration needs data'):
        build(chip_config(calibration=None))


def test_calibration_of_a_built_mutator(chip_config):
    config = chip_config()
    with pytest.raises(ConfigError, match='give calibration to the mutator'):
        CHIP(config.model.architecture, CHIPMutator(), 0.5, calibration=dict(num_batches=1))


# ---------------------------------------------------------------- in the Runner


def test_resume_calibrates_nothing(chip_config, tmp_path, monkeypatch):
    """The structure comes from the checkpoint; the dense weights and the calibration's data may be gone."""
    config = chip_config()
    config.work_dir = str(tmp_path)
    completion.prepare_pruning(config)
    Runner.from_cfg(config).train()

    def gone(*_: Any, **__: Any) -> None:
        raise AssertionError('calibrated')
    monkeypatch.setattr(Calibration, 'build_dataloader', gone)
    config = chip_config(checkpoint=str(tmp_path / 'deleted.pth'), scores=str(tmp_path / 'deleted.json'),
                         calibration=dict(num_batches=2, dataloader=dict(dataset=dict(type='Deleted'))))
    config.work_dir = str(tmp_path)
    config.train_cfg.max_epochs = 2
    runs.set_resume(config, str(tmp_path / 'epoch_1.pth'))
    completion.prepare_pruning(config)
    Runner.from_cfg(config).train()
    first, second = (torch.load(tmp_path / f'epoch_{n}.pth', weights_only=False)['state_dict'] for n in (1, 2))
    assert first._metadata[''][RUN_UNITS] == second._metadata[''][RUN_UNITS]
    key = 'backbone.layer2.0.conv1.weight'
    assert first[key].shape == second[key].shape
    assert not torch.equal(first[key], second[key])


# ---------------------------------------------------------------- scores from a file


@pytest.fixture
def score_path(chip_config, dense_checkpoint, tmp_path) -> Path:
    model, units, scores = dense_scores(chip_config(), dense_checkpoint)
    ScoreFile('chip', units.architecture, weights_digest(model), scores,
              {'num_batches': 2}).save(tmp_path / 'scores.json')
    return tmp_path / 'scores.json'


def test_scores_from_a_file(chip_config, score_path, forbidden, monkeypatch):
    from_file = build(chip_config(scores=str(score_path), calibration=None))
    monkeypatch.undo()
    assert from_file.units.to_json() == build(chip_config()).units.to_json()


def changed(score_path: Path, change: Callable[[dict[str, Any]], Any]) -> str:
    content = json.loads(score_path.read_text())
    change(content)
    score_path.write_text(json.dumps(content))
    return str(score_path)


@pytest.mark.parametrize(('change', 'message'), [
    (lambda c: c.update(method='l1'), 'holds scores of method "l1", not of "chip"'),
    (lambda c: c.update(architecture='0' * 16), 'was written for another model .fingerprint 0000000000000000'),
    (lambda c: c['scores'].update({'backbone.layer9.0.conv1': [1.0]}), 'unknown channel unit "backbone.layer9'),
    (lambda c: c['scores'].pop('backbone.conv1'), 'lacks unit "backbone.conv1", which can be pruned'),
    (lambda c: c['scores']['backbone.conv1'].pop(), 'unit "backbone.conv1" has 7 channels, in the model it has 8'),
    (lambda c: c['scores'].update({'backbone.conv1': [float('nan')] * 8}), 'score of channel 0 is nan, not a finite'),
    (lambda c: c['scores'].update({'backbone.conv1': 'a'}), 'unit "backbone.conv1": expected a list of scores'),
    (lambda c: c.update(schema=7), 'not a file of scores of schema 1'),
    (lambda c: c.pop('scores'), 'not a file of scores of schema 1')])
def test_a_file_that_does_not_fit(chip_config, score_path, change, message, forbidden):
    with pytest.raises(UnitFileError, match=message):
        build(chip_config(scores=changed(score_path, change)))


def test_scores_of_other_weights(chip_config, score_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(origin, 'print_log', lambda text, **_: said.append(text))
    build(chip_config(scores=str(score_path)))
    assert said == []
    build(chip_config(scores=changed(score_path, lambda c: c.update(weights='0' * 16))))
    assert said[0].startswith(f'{score_path}: these scores are of other weights of this model')


def test_a_file_that_is_none(chip_config, score_path):
    score_path.write_text('{')
    with pytest.raises(UnitFileError, match='not valid JSON .*; write it anew with tools/score.py'):
        build(chip_config(scores=str(score_path)))
    with pytest.raises(UnitFileError, match='no such file'):
        build(chip_config(scores='missing.json'))
