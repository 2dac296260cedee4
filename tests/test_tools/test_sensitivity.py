"""tools/sensitivity.py: what it prints and writes, what it refuses, and that a killed run goes on."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmprune_ext.targets import Sensitivity
from tests.in_process import TOOLS, run_tool
from tests.test_tools.test_bad_inputs import Bad, Files, assert_refused, nan_weights, occupied, other_model

COMMON = ('--algorithm', 'l1', '--input-size', 32, 32)


@pytest.fixture
def files(dense_config_file, dense_checkpoint, pruned, pruning_run, tmp_path) -> Files:
    return Files(dense_config_file, dense_checkpoint, pruned, pruning_run, tmp_path)


def given(*options: Any, **replaced: Any) -> Callable[[Files], list[Any]]:
    """Return the arguments of tools/sensitivity.py with inputs replaced and options added."""
    def arguments(files: Files) -> list[Any]:
        values = {'config': files.config, 'checkpoint': files.checkpoint, 'out': files.out}
        values.update({key: value(files) for key, value in replaced.items()})
        return [values['config'], values['checkpoint'], '-o', values['out'], *COMMON, *options]
    return arguments


BAD = [
    Bad('misspelt metric', 'sensitivity', given('--metric', 'acuracy/top1'), ('"acuracy/top1"', 'accuracy/top1')),
    Bad('ratio of one', 'sensitivity', given('--ratios', 0.5, 1), ('--ratios', 'above 0 and below 1, got 1')),
    Bad('ratio of nothing', 'sensitivity', given('--ratios', 'half'), ('--ratios', 'got half')),
    Bad('negative samples', 'sensitivity', given('--samples', -1), ('--samples', 'at least 0')),
    Bad('unknown algorithm', 'sensitivity', given('--algorithm', 'dcff'),
        ('unknown algorithm "dcff"', 'chip, fisher, l1')),
    Bad('no config', 'sensitivity', given(config=lambda f: 'none.py'), ('none.py', 'no such file')),
    Bad('no checkpoint', 'sensitivity', given(checkpoint=lambda f: 'none.pth'), ('none.pth', 'no such file')),
    Bad('weights of another model', 'sensitivity', given(checkpoint=other_model), ('does not fit', )),
    Bad('weights with NaN', 'sensitivity', given(checkpoint=nan_weights), ('NaN', )),
    Bad('a pruning config', 'sensitivity', given(config=lambda f: f.run / 'run.py'), ('L1Norm', 'dense model')),
    Bad('no data', 'sensitivity', given('--cfg-options', 'val_dataloader.dataset.data_root=none'),
        ('val_dataloader', 'none', 'does not exist')),
    Bad('no training data', 'sensitivity', given('--bn-batches', 1, '--cfg-options',
                                                 'train_dataloader.dataset.data_root=none'),
        ('train_dataloader', 'none', 'does not exist')),
    Bad('nothing left to re-estimate', 'sensitivity', given('--fold', '--bn-batches', 1), ('--fold', '--bn-batches')),
    Bad('no evaluator', 'sensitivity', given(config=lambda f: f.child(
        'c.py', 'val_evaluator = test_evaluator = None')), ('lacks val_dataloader and val_evaluator', )),
    Bad('no file of scores', 'sensitivity', given('--scores', 'none.json'), ('none.json', 'no such file')),
    Bad('units instead of scores', 'sensitivity', lambda f: given('--scores', f.pruned / 'units.json')(f),
        ('units.json', 'not a file of scores')),
    Bad('an unknown unit', 'sensitivity', given('--exclude', 'backbone.layer9.*'), ('backbone.layer9.*', )),
    Bad('output below a file', 'sensitivity', given(out=occupied), ('output folder', )),
    Bad('an earlier file of another kind', 'sensitivity', lambda f: given(out=lambda f: f.folder)(
        f) if f.write('sensitivity.json', (f.pruned / 'units.json').read_text()) else [],
        ('sensitivity.json', 'not a file of sensitivities')),
    Bad('an earlier file that is broken', 'sensitivity', lambda f: given(out=lambda f: f.folder)(
        f) if f.write('sensitivity.json', '{"schema": 1, ') else [], ('sensitivity.json', 'not valid JSON')),
]


@pytest.mark.parametrize('bad', BAD, ids=lambda bad: bad.id)
def test_bad_input(files, bad, monkeypatch, capsys):
    assert_refused(bad, files, monkeypatch, capsys)


def test_what_is_printed_and_written(files, capsys):
    run_tool('sensitivity', *given('--ratios', 0.9, 0.5, 0.5, '--samples', 30)(files))
    lines = capsys.readouterr().out.splitlines()
    found = Sensitivity.load(f'{files.out}/sensitivity.json')
    assert found.complete and found.samples == 30 and found.settings['ratios'] == [0.5, 0.9]
    assert [f'{files.out}/sensitivity.{kind}' for kind in ('json', 'csv', 'png')] == lines[-3:]
    table = {line.split()[0]: line.split()[1:] for line in lines if line.startswith(' backbone.')}
    assert list(table) == list(found.curves)
    for name, curve in found.curves.items():
        # One point of accuracy in percent is allowed.
        fitting = [point for point in curve.points if point.metric >= found.dense - 1]
        best = [f'{fitting[-1].ratio:g}', f'{fitting[-1].metric:.4g}'] if fitting else ['none']
        assert table[name] == [str(curve.channels), *best, f'{curve.points[-1].metric:.4g}']
    assert sorted(path.name for path in Path(files.out).iterdir()) == [
        'scores.json', 'sensitivity.csv', 'sensitivity.json', 'sensitivity.png']


def test_given_scores_are_taken(files):
    """Those of a method that needs data, measured without any."""
    chip = ('--algorithm', 'chip')
    run_tool('sensitivity', *given('--ratios', 0.5, '--calib-batches', 2, *chip)(files))
    scores = f'{files.out}/scores.json'
    run_tool('sensitivity', *given('--ratios', 0.5, '--scores', scores, *chip, '--cfg-options',
                                   'train_dataloader.dataset.data_root=none', out=lambda f: f.folder / 'other')(files))
    first, second = (Sensitivity.load(path / 'sensitivity.json') for path in (
        Path(files.out), files.folder / 'other'))
    assert first.curves == second.curves and first.algorithm == 'chip'


@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_a_killed_run_goes_on(files):
    """SIGKILL after the first units; the same command ends with the file of a run that was left alone."""
    command = [sys.executable, str(TOOLS / 'sensitivity.py'), *map(str, given()(files))]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
    file = Path(files.out) / 'sensitivity.json'
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not (file.is_file() and json.loads(file.read_text())['units']):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    stopped = Sensitivity.load(file)
    assert not stopped.complete
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'goes on after' in done.stdout + done.stderr
    resumed = Sensitivity.load(file)
    run_tool('sensitivity', *given(out=lambda f: f.folder / 'whole')(files))
    whole = Sensitivity.load(files.folder / 'whole' / 'sensitivity.json')
    assert resumed.complete and resumed.curves == whole.curves
    assert all(resumed.curves[name] == curve for name, curve in stopped.curves.items())
