"""The benchmarks run on one small network and print their table."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from mmengine.config import Config

from benchmarks import dcff
from benchmarks.machine import Spent
from tests.test_docs.commands import ROOT

pytestmark = pytest.mark.e2e
NETWORK = 'ResNet-20 (CIFAR)'


def run(name: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(ROOT / 'benchmarks' / name), *arguments],
                          capture_output=True, text=True, cwd=ROOT,
                          env={**os.environ, 'PYTHONPATH': str(ROOT)})


def test_tracing():
    done = run('tracing.py', '--models', NETWORK, '--repeats', '1')
    assert done.returncode == 0, done.stderr[-500:]
    row = next(line for line in done.stdout.splitlines() if line.strip().startswith(NETWORK))
    params, units, prunable, *times = row.replace(NETWORK, '').split()
    assert (params, units, prunable) == ('0.3', '13', '12')
    assert all(float(value) > 0 for value in times)
    assert re.search(r'^machine: \d+-core', done.stdout, re.MULTILINE)


def test_an_unknown_network_is_named():
    done = run('tracing.py', '--models', 'NoSuchNet')
    assert done.returncode == 2
    assert 'unknown network "NoSuchNet"' in done.stderr
    assert 'Traceback' not in done.stderr


def test_chip():
    done = run('chip.py', '--network', NETWORK, '--size', '32', '32', '--batch', '2', '--channels', '2')
    assert done.returncode == 0, done.stderr[-500:]
    assert '19 layers' in done.stdout
    # The smallest of the feature maps would take 32 kB.
    assert 0 <= int(re.search(r'(\d+) bytes written', done.stdout)[1]) < 20_000
    assert 0 < int(re.search(r'extra memory at most (\d+) MiB', done.stdout)[1]) < 1024
    rows = [line.split() for line in done.stdout.splitlines() if re.match(r'^ +\d+ +\d+ ', line)]
    assert [row[:3] for row in rows] == [['7', '16', '1024'], ['6', '32', '256'], ['6', '64', '64']]
    assert all(float(row[4]) > 0 and 0 < float(row[-1]) < 1e-5 for row in rows)


def test_chip_accuracy(digits, classifier, tmp_path):
    network = classifier(Config.fromfile(ROOT / 'configs/cifar/resnet56_cifar10.py').model.backbone, 64)
    torch.save({'state_dict': network.state_dict()}, tmp_path / 'random.pth')
    arguments = ['chip_accuracy.py', '--data', str(digits), '--checkpoint', str(tmp_path / 'random.pth'),
                 '--results', str(tmp_path / 'results'), '--rows', '74.1', '--seeds', '0', '--batches', '1',
                 '--bn-batches', '1', '--iterations', '2']
    done = run(*arguments)
    assert done.returncode == 0, done.stderr[-500:]
    table = [line for line in done.stdout.splitlines() if line.startswith('|')]
    chip, l1 = (line.split('|')[2:] for line in table[-2:])
    assert (chip[0].strip(), l1[0].strip()) == ('chip', 'l1')
    assert chip[1:3] == l1[1:3], 'other numbers of channels'
    assert all(0 <= float(value) <= 100 for value in [*chip[3:6], *l1[3:6]])
    results = {path.name: path.stat().st_mtime_ns for path in (tmp_path / 'results').iterdir()}
    assert sorted(results) == ['chip_74.1_0.json', 'dense.json', 'l1_74.1_0.json']
    again = run(*arguments).stdout.splitlines()
    assert [line for line in again if line.startswith('|')] == table
    assert results == {path.name: path.stat().st_mtime_ns for path in (tmp_path / 'results').iterdir()}
    other = run(*arguments, '--lr', '0.5')
    assert other.returncode == 2 and 'give another --results folder' in other.stderr


def test_dcff():
    done = run('dcff.py', '--channels', '16', '32', '--definition', '16', '--model', NETWORK,
               '--rates', 'dcff: [0.5]*12', '--batch', '2', '--steps', '1')
    assert done.returncode == 0, done.stderr[-500:]
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in rows if len(row) == 6 and row[0].isdigit()] == ['16', '32']
    assert sum(bool(re.search(r'(dense|epoch|later|compact) +[\d.]+ +[\d.]+ +[\d.]+$', line.strip()))
               for line in done.stdout.splitlines()) == 4
    assert re.search(r'update of all mixtures: \d+\.\d\d s', done.stdout)
    assert 'to dense: median of the ratios to the step of dense in the same round' in done.stdout


def test_dcff_compares_steps_of_the_same_round(monkeypatch):
    """A slow spell spoils the ratios of its rounds, not the one that is printed."""
    seconds = iter([9.0, 9.0, 1.0, 0.5, 4.0, 0.6, 2.0, 1.0])  # dense and compact in turn, the first pair not counted
    monkeypatch.setattr(dcff, 'training_models', lambda *_: ({'dense': None, 'compact': None}, [0.0]))
    monkeypatch.setattr(dcff, 'step_of', lambda *_: None)
    monkeypatch.setattr(dcff, 'timed', lambda _: (None, Spent(0.0, next(seconds))))
    rows, _ = dcff.training_rows(NETWORK, '', 1, 3)
    assert rows == [['dense', '2.00', '1.00', '1.00'], ['compact', '0.60', '0.50', '0.50']]


@pytest.mark.skipif(find_spec('torch_pruning') is not None, reason='Torch-Pruning is installed')
def test_without_torch_pruning():
    done = run('torch_pruning.py', '--models', NETWORK)
    assert done.returncode == 2
    assert 'Torch-Pruning is not installed' in done.stderr
