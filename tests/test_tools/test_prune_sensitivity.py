"""`prune.py --sensitivity`, `--max-drop`, and a config with a sensitivity file: what runs, and what is refused."""
from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

from mmprune_ext.compact.checkpoint import load_weights
from mmprune_ext.compact.compact_model import build_architecture
from mmprune_ext.mutators import L1Mutator
from mmprune_ext.targets import Curve, Point, Sensitivity
from mmprune_ext.targets.sensitivity_choice import SensitivityChoice
from mmprune_ext.units.parameters.fingerprint import weights_digest
from mmprune_ext.workflows import max_drop
from tests.in_process import run_tool
from tests.test_tools.test_bad_inputs import Bad, Files, assert_refused

RATIOS = (0.25, 0.5, 0.75)


@pytest.fixture
def files(dense_config_file, dense_checkpoint, pruned, pruning_run, tmp_path) -> Files:
    return Files(dense_config_file, dense_checkpoint, pruned, pruning_run, tmp_path)


def dense_model(files: Files) -> tuple[nn.Module, L1Mutator]:
    config = Config.fromfile(files.config)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = build_architecture(config.model.to_dict(), config.data_preprocessor)
    load_weights(model, str(files.checkpoint))
    mutator = L1Mutator(demo_inputs=(32, 32))
    mutator.prepare(model)
    return model, mutator


def sensitivity(files: Files, **changes: Any) -> Sensitivity:
    """Return a file of made-up drops: the later a unit, the more; a metric of 80 per cent on all 60 images."""
    model, mutator = dense_model(files)
    curves = {name: Curve(unit.num_channels, tuple(
        Point(ratio, unit.kept_number(ratio), 80.0 - (place + 1) * ratio ** 2 * 8) for ratio in RATIOS))
        for place, (name, unit) in enumerate(mutator.units.prunable.items())}
    file = Sensitivity('l1', mutator.units.architecture, weights_digest(model), 'accuracy/top1', True, 80.0, 60, 0,
                       True, curves)
    return dataclasses.replace(file, **changes)


def written(files: Files, **changes: Any) -> str:
    path = str(files.folder / 's.json')
    sensitivity(files, **changes).save(path)
    return path


def prune(*target: str) -> Callable[[Files], list[Any]]:
    return lambda f: [f.config, f.checkpoint, '-o', f.out, '--algorithm', 'l1', '--input-size', '32', '32',
                      '--bn-batches', '0', *target]


def by_file(*target: str, **changes: Any) -> Callable[[Files], list[Any]]:
    """Return the arguments of tools/prune.py with a sensitivity file and a target."""
    return lambda f: [*prune(*target)(f), '--sensitivity', written(f, **changes)]


def without(*names: str) -> Callable[[Files], dict[str, Curve]]:
    return lambda f: {name: curve for name, curve in sensitivity(f).curves.items() if name not in names}


def renamed(files: Files) -> list[Any]:
    curves = {name.replace('layer3.0.conv1', 'layer9.0.conv1'): c for name, c in sensitivity(files).curves.items()}
    return by_file('--flops', '0.5', curves=curves)(files)


BAD = [
    Bad('no file', 'prune', prune('--flops', '0.5', '--sensitivity', 'none.json'), ('none.json', 'no such file')),
    Bad('a file of another kind', 'prune',
        lambda f: prune('--flops', '0.5', '--sensitivity', str(f.pruned / 'units.json'))(f),
        ('units.json', 'not a file of sensitivities', 'tools/sensitivity.py')),
    Bad('no budget', 'prune', prune('--sensitivity', 's.json'), ('--flops', '--max-drop', 'required')),
    Bad('ratios of its own', 'prune', prune('--ratio', '0.5', '--sensitivity', 's.json'),
        ('--sensitivity: not allowed with --ratio', '--max-drop')),
    Bad('another spread', 'prune', prune('--flops', '0.5', '--sensitivity', 's.json', '--spread', 'global'),
        ('--sensitivity: not allowed with --spread',)),
    Bad('channels of another model', 'prune',
        lambda f: [f.config, f.checkpoint, '-o', f.out, '--units', 'u.json', '--sensitivity', 's.json'],
        ('--units: not allowed with --sensitivity',)),
    Bad('drop and budget', 'prune', prune('--flops', '0.5', '--max-drop', '1', '--sensitivity', 's.json'),
        ('--max-drop: not allowed with argument --flops',)),
    Bad('drop without a file', 'prune', prune('--max-drop', '1'), ('--max-drop: needs --sensitivity FILE',)),
    Bad('negative drop', 'prune', prune('--max-drop=-1', '--sensitivity', 's.json'),
        ('--max-drop', 'at least 0, got -1')),
    Bad('drop that is no number', 'prune', prune('--max-drop', 'nan', '--sensitivity', 's.json'),
        ('--max-drop', 'nan')),
    Bad('resource of a budget', 'prune', prune('--flops', '0.5', '--sensitivity', 's.json', '--resource', 'params'),
        ('--resource: belongs to --max-drop',)),
    Bad('drop of the whole metric', 'prune', by_file('--max-drop', '90'),
        ('--max-drop 90', 'all of accuracy/top1, which is 80', "metric's own unit")),
    Bad('incomplete file', 'prune', by_file('--flops', '0.5', complete=False),
        ('s.json', 'is not complete', 'the same tools/sensitivity.py command goes on')),
    Bad('incomplete file for a drop', 'prune', by_file('--max-drop', '1', complete=False),
        ('s.json', 'is not complete')),
    Bad('another network', 'prune', renamed,
        ('s.json', 'unknown channel unit "backbone.layer9.0.conv1"', 'did you mean')),
    Bad('another architecture', 'prune', by_file('--flops', '0.5', architecture='0' * 16),
        ('s.json', 'written for another model')),
    Bad('a unit is missing', 'prune',
        lambda f: by_file('--flops', '0.5', curves=without('backbone.layer3.0.conv1')(f))(f),
        ('s.json', 'lacks unit "backbone.layer3.0.conv1"', '--exclude')),
    Bad('another method', 'prune', by_file('--flops', '0.5', algorithm='chip'),
        ('s.json', 'of method "chip", not of "l1"')),
    Bad('unreachable budget', 'prune', by_file('--flops', '0.01'),
        ('flops cannot be reduced to 1.0%', 's.json', 'allow leave')),
    Bad('another metric', 'prune', by_file('--max-drop', '1', metric='coco/bbox_mAP'),
        ('val_evaluator: gives no "coco/bbox_mAP"', 'accuracy/top1')),
    Bad('train: no file', 'train', lambda f: [
        f.child('c.py', 'model = dict(target_pruning_ratio=None, budget=dict('
                "flops=0.5, spread='sensitivity', sensitivity='none.json'))", f.run / 'run.py'),
        '--work-dir', f.out], ('none.json', 'no such file')),
]


@pytest.mark.parametrize('bad', BAD, ids=lambda bad: bad.id)
def test_bad_input(files, bad, monkeypatch, capsys):
    assert_refused(bad, files, monkeypatch, capsys)


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / 'report.json').read_text())


def test_a_budget_by_sensitivity(files, capsys):
    path = written(files)
    run_tool('prune', *prune('--flops', '0.5', '--sensitivity', path)(files))
    out = Path(files.out)
    keeps = {name: unit['keep'] for name, unit in json.loads((out / 'units.json').read_text())['units'].items()}
    model, mutator = dense_model(files)
    choice = SensitivityChoice(sensitivity(files), mutator.units, 'flops', model, '', (32, 32))
    assert {name: keeps[name] for name in choice.options} == choice.keeps(0.5)
    report = report_of(out)
    assert report['compact']['macs'] <= 0.5 * report['dense']['macs']
    expected = sum((place + 1) * 8 * ratio ** 2 for place, curve in enumerate(choice.sensitivity.curves.items())
                   for ratio in RATIOS if int(curve[1].channels * (1 - ratio)) == keeps[curve[0]])
    assert report['drop']['predicted'] == pytest.approx(expected)
    assert report['drop']['measured'] is None
    line = f'predicted drop of accuracy/top1: {expected:.4g} (by {path})'
    assert line in capsys.readouterr().out.splitlines()
    assert line in (out / 'report.txt').read_text()


@pytest.mark.e2e
def test_a_drop_that_was_allowed(files, capsys):
    """What was measured on all validation images is what tools/test.py measures of the exported network."""
    run_tool('test', files.config, files.checkpoint, '--json', files.folder / 'dense.json', '--work-dir',
             files.folder / 'test')
    capsys.readouterr()
    run_tool('prune', *prune('--max-drop', '12', '--sensitivity', written(files))(files), '--bn-batches', '2')
    lines = capsys.readouterr().out.splitlines()
    assert any('--max-drop 12: accuracy/top1 may fall by 15.0%, from 80 of the dense model to 68' in line
               and 'WARNING' not in line for line in lines)
    drop = report_of(Path(files.out))['drop']
    assert drop['measured'] <= 12 and drop['samples'] == 60
    assert drop['share'] < 1 and f'budget found: flops {drop["share"]:.4f}' in lines
    run_tool('test', Path(files.out) / 'compact_config.py', '--json', files.folder / 'compact.json', '--work-dir',
             files.folder / 'test')
    dense, compact = (json.loads((files.folder / f'{name}.json').read_text())['accuracy/top1']
                      for name in ('dense', 'compact'))
    assert (drop['dense'], drop['pruned']) == (pytest.approx(dense), pytest.approx(compact))
    assert drop['measured'] == pytest.approx(dense - compact)
    assert any(line.startswith(f'measured drop of accuracy/top1: {drop["measured"]:.4g} (') for line in lines)
    report = report_of(Path(files.out))
    assert report['compact']['macs'] / report['dense']['macs'] == pytest.approx(drop['share'])


@pytest.mark.parametrize(('dense', 'greater', 'allowed', 'says'), [
    (0.6, True, 0.5, ('WARNING', 'coco/bbox_mAP may fall by 83.3%, from 0.6 of the dense model to 0.1; it counts in '
                      "the metric's own unit, in which a point may be 0.01")),
    (0.6, True, 0.005, ('INFO', 'coco/bbox_mAP may fall by 0.8%, from 0.6 of the dense model to 0.595')),
    (2.0, False, 0.1, ('INFO', 'coco/bbox_mAP may rise by 5.0%, from 2 of the dense model to 2.1')),
    (0.0, True, 0.1, None), (float('nan'), True, 0.1, None), (0.6, True, 0.0, None)])
def test_what_a_drop_means_is_said(dense, greater, allowed, says, monkeypatch):
    told = []
    monkeypatch.setattr('mmprune_ext.workflows.max_drop.print_log', lambda text, logger, level: told.append(
        (logging.getLevelName(level), text)))
    file = Sensitivity('l1', '', '', 'coco/bbox_mAP', greater, dense, 60, 0, True, {})
    max_drop._tell_allowed(file, allowed)
    assert told == ([] if says is None else [(says[0], f'--max-drop {allowed:g}: {says[1]}')])


def test_a_drop_that_no_network_has(files, monkeypatch, capsys):
    """The dense model is the best there is, so that less than nothing cannot be met; nothing is written."""
    monkeypatch.setattr('mmprune_ext.workflows.max_drop._Trials.drop', lambda self, keeps: 0.5)
    with pytest.raises(SystemExit) as caught:
        run_tool('prune', *by_file('--max-drop', '0')(files))
    assert caught.value.code == 2
    assert 'no network of measured widths falls by at most 0: the largest that was tried leaves flops ' in (
        capsys.readouterr().err)
    assert not Path(files.out).exists()
