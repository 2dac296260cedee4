"""The benchmarks run on one small network and print their table."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest

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


@pytest.mark.skipif(find_spec('torch_pruning') is not None, reason='Torch-Pruning is installed')
def test_without_torch_pruning():
    done = run('torch_pruning.py', '--models', NETWORK)
    assert done.returncode == 2
    assert 'Torch-Pruning is not installed' in done.stderr
