"""Tasks worked on by several processes: all results, errors as they are, and no process left behind."""
from __future__ import annotations

import functools
import importlib
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mmprune_ext.errors import ConfigError, PruningError
from mmprune_ext.workflows.processes import in_processes

# What new processes can import, whatever else is called `tests` there.
MODULE = '''
import functools, os, signal, sys, time
import torch
from mmprune_ext.errors import ConfigError
from mmprune_ext.workflows.processes import in_processes

def square(number):
    if number < 0:
        raise ConfigError(f'{number} is below 0')
    if number == 99:
        os.kill(os.getpid(), signal.SIGKILL)
    return number ** 2, os.getpid(), torch.get_num_threads()

def build(path, work, fails=False):
    with open(path, 'a') as file:
        file.write(f'{os.getpid()}\\n')
    if fails:
        raise ConfigError('cannot be built')
    return work

if __name__ == '__main__':
    list(in_processes(functools.partial(build, sys.argv[1], time.sleep), [300, 300], 2))
'''


@pytest.fixture
def workers(tmp_path, monkeypatch) -> ModuleType:
    (tmp_path / 'workers_of_test.py').write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module('workers_of_test')
    del sys.modules['workers_of_test']


def test_every_task_is_done_and_a_process_is_made_ready_once(workers, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 6)
    found = dict(in_processes(functools.partial(workers.build, tmp_path / 'built', workers.square), range(6), 2))
    assert {task: square for task, (square, _, _) in found.items()} == {n: n * n for n in range(6)}
    assert {threads for _, _, threads in found.values()} == {3}
    pids = (tmp_path / 'built').read_text().split()
    assert len(pids) == len(set(pids)) <= 2 and str(os.getpid()) not in pids
    assert {str(pid) for _, pid, _ in found.values()} == set(pids)


@pytest.mark.parametrize('task, fails, error, text', [
    (-1, False, ConfigError, '-1 is below 0'), (1, True, ConfigError, 'cannot be built'),
    (99, False, PruningError, 'one of 2 processes was killed.*--jobs')])
def test_errors_come_through_and_no_process_stays(workers, tmp_path, task, fails, error, text):
    with pytest.raises(error, match=text):
        list(in_processes(functools.partial(workers.build, tmp_path / 'built', workers.square, fails), [task] * 3, 2))
    until = time.monotonic() + 60
    while multiprocessing.active_children() and time.monotonic() < until:
        time.sleep(0.1)
    assert not multiprocessing.active_children()


def test_processes_end_with_a_killed_parent(workers, tmp_path):
    built = tmp_path / 'built'
    root = Path(__file__).parents[2]
    parent = subprocess.Popen([sys.executable, workers.__file__, built], env={**os.environ, 'PYTHONPATH': str(root)})
    until = time.monotonic() + 240
    while len(built.read_text().split() if built.exists() else ()) < 2 and time.monotonic() < until:
        assert parent.poll() is None
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    pids = list(map(int, built.read_text().split()))
    while any(map(running, pids)) and time.monotonic() < until:
        time.sleep(0.1)
    assert len(pids) == 2 and not any(map(running, pids))


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
