"""tools/score.py, and tools/prune.py on what it writes."""
from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope

from mmprune_ext.mutators import calibration

TOOLS = Path(__file__).resolve().parents[2] / 'tools'


@contextlib.contextmanager
def own_globals() -> Iterator[None]:
    before = dict(MMLogger._instance_dict), dict(DefaultScope._instance_dict)
    MMLogger._instance_dict.clear()
    try:
        yield
    finally:
        for shared, content in zip((MMLogger._instance_dict, DefaultScope._instance_dict), before):
            shared.clear()
            shared.update(content)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that runs a tool in this process."""
    def run_tool(tool: str, *arguments: Any) -> None:
        spec = importlib.util.spec_from_file_location(f'tool_{tool}', TOOLS / f'{tool}.py')
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, arguments)])
        with own_globals():
            module.main()
    return run_tool


@pytest.fixture
def inputs(dense_config_file: Path, dense_checkpoint: Path) -> tuple[Path, Path]:
    return dense_config_file, dense_checkpoint


def test_scores_serve_any_target(run, inputs, tmp_path, monkeypatch):
    scores = tmp_path / 'scores.json'
    run('score', *inputs, '--algorithm', 'chip', '--calib-batches', 2, '--input-size', 32, 32, '-o', scores)
    written = json.loads(scores.read_text())
    assert (written['method'], written['settings']['num_batches']) == ('chip', 2)
    assert len(written['scores']['backbone.layer3.0.conv1']) == 32
    assert not Path(f'{scores}.partial').exists()
    common = ('--algorithm', 'chip', '--input-size', 32, 32, '--bn-batches', 0)
    run('prune', *inputs, *common, '--calib-batches', 2, '--ratio', 0.5, '-o', tmp_path / 'direct')

    def calibrated(*_: Any, **__: Any) -> None:
        raise AssertionError('calibrated')
    monkeypatch.setattr(calibration, 'calibrate', calibrated)
    run('prune', *inputs, *common, '--scores', scores, '--ratio', 0.5, '-o', tmp_path / 'half')
    run('prune', *inputs, *common, '--scores', scores, '--flops', 0.3, '-o', tmp_path / 'third')
    direct, half, third = ((tmp_path / name / 'units.json').read_text() for name in ('direct', 'half', 'third'))
    assert direct == half != third
    for name, unit in json.loads(third)['units'].items():
        if unit['prunable']:
            best = sorted(range(unit['num_channels']), key=lambda c, n=name: -written['scores'][n][c])
            assert unit.get('indices', sorted(best)) == sorted(best[:unit['keep']])


def test_scores_of_a_method_without_data(run, inputs, tmp_path):
    run('score', *inputs, '--algorithm', 'l1', '--input-size', 32, 32, '-o', tmp_path / 'l1.json')
    for number, source in enumerate((['--scores', tmp_path / 'l1.json'], [])):
        run('prune', *inputs, '--algorithm', 'l1', *source, '--ratio', 0.5, '--input-size', 32, 32, '--bn-batches', 0,
            '-o', tmp_path / str(number))
    assert (tmp_path / '0' / 'units.json').read_text() == (tmp_path / '1' / 'units.json').read_text()


class Killed(BaseException):
    """The process is gone."""


def test_resume(run, inputs, tmp_path, monkeypatch):
    """Batches that were summed up before the interruption are not run again, and the result is the same."""
    def score(path: Path, *options: Any) -> None:
        run('score', *inputs, '--algorithm', 'chip', '--calib-batches', 4, '--save-every', 1, '--input-size', 32, 32,
            '-o', path, *options)
    score(tmp_path / 'whole.json')
    original, seen = calibration.Calibrator._add, []

    def add(self: Any, batch: Any) -> None:
        if len(seen) == 3:
            raise Killed
        seen.append(batch)
        original(self, batch)
    monkeypatch.setattr(calibration.Calibrator, '_add', add)
    path = tmp_path / 'scores.json'
    with pytest.raises(Killed):
        score(path)
    assert Path(f'{path}.partial').is_file() and not path.exists()
    seen.clear()
    score(path, '--resume')
    assert len(seen) == 1
    assert path.read_text() == (tmp_path / 'whole.json').read_text()
    assert not Path(f'{path}.partial').exists()


def test_without_resume_it_starts_afresh(run, inputs, tmp_path):
    Path(tmp_path / 'scores.json.partial').write_text('of something else')
    run('score', *inputs, '--algorithm', 'chip', '--calib-batches', 1, '--input-size', 32, 32,
        '-o', tmp_path / 'scores.json')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['scores.json']
