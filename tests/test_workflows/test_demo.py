"""The demonstrations from their command line, on a handful of drawn scenes and an epoch each."""
from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmprune_ext.datasets import write_scenes
from mmprune_ext.workflows import demo
from mmprune_ext.workflows.demo import DEMOS, Steps
from tests.in_process import run_tool

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs the tool in this process, its steps in others, on few scenes."""
    few = {name: replace(entry, write=lambda data: write_scenes(data / 'scenes', train=12, val=10))
           for name, entry in DEMOS.items() if name != 'digits'}
    monkeypatch.setattr(demo, 'DEMOS', {**DEMOS, **few})
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')

    def call(*arguments: str) -> tuple[int, str, str]:
        try:
            run_tool('demo', *arguments, '--work-dir', tmp_path / 'out')
            code = 0
        except SystemExit as error:
            code = error.code
        return (code, *capsys.readouterr())
    return call


def test_interrupted_and_resumed(run, tmp_path, monkeypatch):
    """Interrupted after the dense training; with --resume that is not done again, but all the rest."""
    original = Steps.run

    def interrupted(self, text, tool, *arguments):
        if tool == 'test.py':
            raise KeyboardInterrupt
        original(self, text, tool, *arguments)
    with monkeypatch.context() as patch:
        patch.setattr(Steps, 'run', interrupted)
        code, _, err = run('detection', '--epochs', '1', '--finetune-epochs', '1')
    assert (code, err.splitlines()[-1]) == (130, 'error: interrupted')
    folder = tmp_path / 'out'
    trained = (folder / 'dense' / 'epoch_1.pth').read_bytes()

    code, out, err = run('detection', '--epochs', '1', '--finetune-epochs', '1', '--resume')
    assert code == 0, out[-2000:] + err[-3000:]
    assert 'resumed epoch: 1' in (folder / 'step2.log').read_text()
    assert (folder / 'dense' / 'epoch_1.pth').read_bytes() == trained
    assert (folder / 'compact' / 'compact.pth').is_file()
    # The exported config reads the data from where they were written.
    assert str(folder / 'data' / 'scenes') in (folder / 'compact' / 'compact_config.py').read_text()
    check_results('detection', (128, 128), folder, out)


def check_results(task: str, size: tuple[int, int], folder: Path, out: str) -> None:
    """Check numbers, the table that shows them, and the pictures."""
    results = json.loads((folder / 'summary.json').read_text())
    dense, compact = results['dense'], results['compact']
    assert dense['input_shape'] == compact['input_shape'] == [3, *size]
    assert 0.4 < compact['backbone_macs'] / dense['backbone_macs'] <= 0.5
    assert compact['macs'] < dense['macs'] and compact['params'] < dense['params']
    assert dense['latency_ms'] > 0 and compact['latency_ms'] > 0
    cells = [line.split() for line in out.splitlines()]
    rows = {row[0]: row[1:] for row in cells if len(row) == 7}  # the table's are the only ones of seven words
    for name, values in results.items():
        keys = ('params', 'macs', 'backbone_params', 'backbone_macs')
        assert rows[name] == [f'{values["metric"]:.4g}', *(f'{values[key]:,}' for key in keys),
                              f'{values["latency_ms"]:.1f}']
        stored = json.loads((folder / f'{name}.json').read_text())
        assert values['metric'] == stored.get(DEMOS[task].metric, 0)  # nothing is reported where nothing is found
        pictures = sorted((folder / 'drawn' / name).rglob('*.png'))
        assert len(pictures) == demo.DRAWN
        for path in pictures:
            with Image.open(path) as picture:
                assert len(np.unique(np.asarray(picture.convert('RGB')).reshape(-1, 3), axis=0)) > 100


def test_failed_step_names_its_log(run, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, 'DEMOS', {'digits': replace(DEMOS['digits'], write=lambda data: None)})
    code, out, err = run('digits')
    assert code == 2
    assert f'step 2 ended with exit code 2; its whole output: {tmp_path / "out" / "step2.log"}' in err
    assert 'data_root' in err and 'does not exist' in err  # the end of that output
