"""tools/score.py, and tools/prune.py on what it writes."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmprune_ext.mutators import calibration
from tests.in_process import run_tool


@pytest.fixture
def inputs(dense_config_file: Path, dense_checkpoint: Path) -> tuple[Path, Path]:
    return dense_config_file, dense_checkpoint


def test_scores_serve_any_target(inputs, tmp_path, monkeypatch):
    scores = tmp_path / 'scores.json'
    run_tool('score', *inputs, '--algorithm', 'chip', '--calib-batches', 2, '--input-size', 32, 32, '-o', scores)
    written = json.loads(scores.read_text())
    assert (written['method'], written['settings']['num_batches']) == ('chip', 2)
    assert len(written['scores']['backbone.layer3.0.conv1']) == 32
    assert not Path(f'{scores}.partial').exists()
    common = ('--algorithm', 'chip', '--input-size', 32, 32, '--bn-batches', 0)
    run_tool('prune', *inputs, *common, '--calib-batches', 2, '--ratio', 0.5, '-o', tmp_path / 'direct')

    def calibrated(*_: Any, **__: Any) -> None:
        raise AssertionError('calibrated')
    monkeypatch.setattr(calibration, 'calibrate', calibrated)
    run_tool('prune', *inputs, *common, '--scores', scores, '--ratio', 0.5, '-o', tmp_path / 'half')
    run_tool('prune', *inputs, *common, '--scores', scores, '--flops', 0.3, '-o', tmp_path / 'third')
    direct, half, third = ((tmp_path / name / 'units.json').read_text() for name in ('direct', 'half', 'third'))
    assert direct == half != third
    for name, unit in json.loads(third)['units'].items():
        if unit['prunable']:
            best = sorted(range(unit['num_channels']), key=lambda c, n=name: -written['scores'][n][c])
            assert unit.get('indices', sorted(best)) == sorted(best[:unit['keep']])


def test_scores_of_a_method_without_data(inputs, tmp_path):
    run_tool('score', *inputs, '--algorithm', 'l1', '--input-size', 32, 32, '-o', tmp_path / 'l1.json')
    for number, source in enumerate((['--scores', tmp_path / 'l1.json'], [])):
        run_tool('prune', *inputs, '--algorithm', 'l1', *source, '--ratio', 0.5, '--input-size', 32, 32,
                 '--bn-batches', 0, '-o', tmp_path / str(number))
    assert (tmp_path / '0' / 'units.json').read_text() == (tmp_path / '1' / 'units.json').read_text()


class Killed(BaseException):
    """The process is gone."""


def test_resume(inputs, tmp_path, monkeypatch):
    """Batches that were summed up before the interruption are not run again, and the result is the same."""
    def score(path: Path, *options: Any) -> None:
        run_tool('score', *inputs, '--algorithm', 'chip', '--calib-batches', 4, '--save-every', 1,
                 '--input-size', 32, 32, '-o', path, *options)
    score(tmp_path / 'whole.json')
    original, seen = calibration.Calibrator.add, []

    def add(self: Any, batch: Any) -> None:
        if len(seen) == 3:
            raise Killed
        seen.append(batch)
        original(self, batch)
    monkeypatch.setattr(calibration.Calibrator, 'add', add)
    path = tmp_path / 'scores.json'
    with pytest.raises(Killed):
        score(path)
    assert Path(f'{path}.partial').is_file() and not path.exists()
    seen.clear()
    score(path, '--resume')
    assert len(seen) == 1
    assert path.read_text() == (tmp_path / 'whole.json').read_text()
    assert not Path(f'{path}.partial').exists()


def test_overwrite_starts_afresh(inputs, tmp_path):
    Path(tmp_path / 'scores.json.partial').write_text('of something else')
    run_tool('score', *inputs, '--algorithm', 'chip', '--calib-batches', 1, '--input-size', 32, 32,
             '-o', tmp_path / 'scores.json', '--overwrite')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['scores.json']
