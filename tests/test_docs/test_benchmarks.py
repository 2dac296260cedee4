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

from benchmarks import accuracy, steps
from benchmarks.accuracy_runs import NETWORKS
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


def accuracy_arguments(digits, classifier, folder, network, *rows):
    """Return arguments of a small run of accuracy.py on digits, with random weights."""
    model = Config.fromfile(ROOT / NETWORKS[network].config).model
    model = classifier(model.backbone, model.head.in_channels)
    torch.save({'state_dict': model.state_dict()}, folder / 'random.pth')
    return ['accuracy.py', '--data', str(digits), '--checkpoint', str(folder / 'random.pth'), '--network', network,
            '--results', str(folder / 'results'), '--rows', *rows, '--seeds', '0', '--batches', '1',
            '--bn-batches', '1', '--iterations', '2']


def markdown_cells(text):
    return [[cell.strip() for cell in line.split('|')[1:-1]] for line in text.splitlines() if line.startswith('|')]


def test_accuracy(digits, classifier, tmp_path):
    arguments = accuracy_arguments(digits, classifier, tmp_path, 'resnet56', '74.1')
    done = run(*arguments)
    assert done.returncode == 0, done.stderr[-500:]
    table = markdown_cells(done.stdout)
    assert table[0][0] == 'FLOPs removed, published'
    chip, l1 = table[-2:]
    assert (chip[:2], l1[:2]) == (['74.1%', 'chip'], ['74.1%', 'l1'])
    # Of the model that the string gives (docs/chip.md).
    assert chip[2:4] == l1[2:4] == ['240,086', '33,487,552']
    assert all(0 <= float(value) <= 100 for value in [*chip[4:7], *l1[4:7]])
    results = {path.name: path.stat().st_mtime_ns for path in (tmp_path / 'results').iterdir()}
    assert sorted(results) == ['chip_74.1_0.json', 'dense.json', 'l1_74.1_0.json']
    again = run(*arguments)
    assert markdown_cells(again.stdout) == table
    assert results == {path.name: path.stat().st_mtime_ns for path in (tmp_path / 'results').iterdir()}
    other = run(*arguments, '--lr', '0.5')
    assert other.returncode == 2 and 'give another --results folder' in other.stderr


def test_accuracy_within_a_budget(digits, classifier, tmp_path):
    arguments = [*accuracy_arguments(digits, classifier, tmp_path, 'resnet20', 'flops=0.50'), '--search-batch', '8',
                 '--search-iterations', '4', '--step-freq', '2']
    done = run(*arguments, '--methods', 'l1', 'chip', 'chipnet')
    assert done.returncode == 0, done.stderr[-500:]
    title, _, dense, *rows, second, _, search = markdown_cells(done.stdout)
    assert title[0] == second[0] == 'budget'
    assert {len(row) for row in rows} == {len(title)} == {len(dense)}
    assert [row[:3] for row in rows] == [['flops=0.5', *row] for row in (
        ('chip', 'uniform'), ('l1', 'uniform'), ('chipnet', ''))]
    whole = int(dense[4].replace(',', ''))
    for row in rows:
        macs = int(row[4].replace(',', ''))
        assert 0.495 * whole < macs <= 0.5 * whole
        assert float(row[5]) == pytest.approx(100 * macs / whole, abs=0.006)
        assert all(0 <= float(value) <= 100 for value in row[6:9])
    assert search[0] == 'flops=0.5' and search[3] == rows[2][5] and search[5] == rows[2][6]
    assert all(0 <= float(value) <= 100 for value in search[1:])
    # What a search is set to matters to the searches only.
    again = run(*arguments, '--search-lr', '0.5', '--methods', 'chip', 'l1')
    assert markdown_cells(again.stdout)[3:] == rows[:2]
    other = run(*arguments, '--search-lr', '0.5', '--methods', 'chipnet')
    assert other.returncode == 2 and 'chipnet_flops=0.5_0.json was measured with' in other.stderr


def test_accuracy_on_digits(digits, classifier, tmp_path):
    done = run(*accuracy_arguments(digits, classifier, tmp_path, 'digits', 'channels=0.5'), '--methods', 'l1', 'fisher',
               'obs', '--spreads', 'uniform', 'isomorphic', '--repair', '16')
    assert done.returncode == 0, done.stderr[-500:]
    title, _, dense, l1, *rows = markdown_cells(done.stdout)
    assert [row[1:3] for row in (l1, *rows)] == [[method, spread] for method in ('l1', 'fisher', 'obs')
                                                 for spread in ('uniform', 'isomorphic')]
    assert title[-7:] == ['pruned', 'new statistics', 'fine-tuned', 'repaired', 'repaired, fine-tuned',
                          'seconds to choose', 'seconds to repair']
    assert {len(row) for row in rows} == {len(title)} == {len(dense)}
    assert all(0 <= float(value) <= 100 for row in rows for value in row[6:11])
    # ResNet-20 of 8, 16 and 32 channels: the first layer, the blocks of three stages, the classifier.
    blocks = [3 * 2 * 9 * n * n - (9 * n * n // 2 if n > 8 else 0) for n in (8, 16, 32)]
    norms = 2 * (8 + 6 * (8 + 16 + 32))
    assert dense[3] == f'{27 * 8 + sum(blocks) + norms + 32 * 10 + 10:,}'
    assert l1[:2] == ['channels=0.5', 'l1'] and l1[5] == '50.00'
    assert all(0 <= float(value) <= 100 for value in l1[6:11])


@pytest.mark.parametrize('arguments, message', [
    (['--methods', 'l1', 'chipnet', '--rows', '47.4'], 'chipnet learns how much stays'),
    (['--methods', 'chipnet', '--rows', 'flops=0.5', '--repair', '64'], 'chipnet trains the weights while it searches'),
    (['--network', 'resnet20'], 'the published row 47.4 is of resnet56'),
    (['--rows', 'flops=1.5'], 'such as flops=0.5, got flops=1.5'),
    (['--rows', 'flops=half'], 'such as flops=0.5, got flops=half'),
    (['--rows', 'time=0.5'], 'such as flops=0.5, got time=0.5'),
    (['--rows', 'flops=0.5', '--methods', 'chipnet', '--settle', '1.5'], '--settle is a share of the search, 0 to 1'),
])
def test_accuracy_refuses(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['accuracy.py', '--data', 'data', '--checkpoint', 'a.pth', *arguments])
    with pytest.raises(SystemExit) as stopped:
        accuracy.parse_args()
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_accuracy_over_seeds():
    rows = [{'macs': 1000, 'tuned': 80.0}, {'macs': 1000, 'tuned': 81.0}, {'macs': 1003, 'tuned': 82.0}]
    assert accuracy.over_seeds(rows, 'tuned') == '81.00 ± 1.00'
    assert accuracy.over_seeds(rows[:1], 'tuned') == '80.00'
    assert accuracy.over_seeds(rows, 'macs', ',.0f') == '1,001 ± 2'
    assert accuracy.over_seeds(rows[:2], 'macs', ',.0f') == '1,000'


def test_chipnet():
    done = run('chipnet.py', '--network', NETWORK, '--batch', '8', '--repeats', '1', '--budget', 'flops=0.5',
               'params=0.25')
    assert done.returncode == 0, done.stderr[-500:]
    rows = {line.split()[0]: [float(cell) for cell in line.split()[1:]] for line in done.stdout.splitlines()
            if re.match(r' \w+ +\d+\.\d+ ', line)}
    assert list(rows) == ['dense', 'gated', 'trace', 'count', 'price', 'sites', 'whole']
    assert rows['dense'][2] == rows['dense'][4] == 1
    seconds, _, ratio, memory, more = rows['gated']
    assert ratio == pytest.approx(seconds / rows['dense'][0], rel=0.15)  # of one round, but for the digits shown
    # At least a gradient and a momentum for each of the 0.27 million parameters.
    assert min(memory, rows['dense'][3]) > 2 and more > 0
    assert rows['trace'][1] == 1 and min(rows['trace'][0], rows['whole'][0]) > 0
    assert 'budget flops=0.5, params=0.25' in done.stdout


def test_chipnet_refuses_a_budget():
    done = run('chipnet.py', '--network', NETWORK, '--budget', 'flops=1.5')
    assert done.returncode == 2 and 'above 0 and below 1, but got 1.5' in done.stderr


def test_stripe():
    done = run('stripe.py', '--quick', '--networks', NETWORK)
    assert done.returncode == 0, done.stderr[-500:]
    row = next(line for line in done.stdout.splitlines() if line.strip().startswith(NETWORK) and 'PyTorch' in line)
    share, _, ms, *ratios, layers = row.replace(NETWORK, '').split()
    assert share == '25%' and float(ms) > 0 and len(ratios) == 3 and all(float(ratio) > 0 for ratio in ratios)
    assert re.fullmatch(r'\d+/19', layers)


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


def test_steps_of_the_same_round_are_compared(monkeypatch):
    """A slow spell spoils the ratios of its rounds, not the one that is printed."""
    seconds = iter([9.0, 9.0, 1.0, 0.5, 4.0, 0.6, 2.0, 1.0])  # dense and compact in turn, the first pair not counted
    monkeypatch.setattr(steps, 'timed', lambda _: (None, Spent(0.0, next(seconds))))
    assert steps.time_in_turn({'dense': None, 'compact': None}, 3) == {'dense': (2.0, 1.0, 1.0),
                                                                       'compact': (0.6, 0.5, 0.5)}


@pytest.mark.skipif(find_spec('torch_pruning') is not None, reason='Torch-Pruning is installed')
def test_without_torch_pruning():
    done = run('torch_pruning.py', '--models', NETWORK)
    assert done.returncode == 2
    assert 'Torch-Pruning is not installed' in done.stderr
