"""Checkpoints are read without running what they name, unless they are trusted."""
from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler import OneCycleParamScheduler

from mmprune_ext.compact.checkpoint import read_checkpoint
from mmprune_ext.compact.safe_files import allow_runs, load_file
from mmprune_ext.errors import CheckpointError
from mmprune_ext.trust import TRUST, checkpoints

FORCED = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'


class Calls:
    """An object that is unpickled by a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple]:
        return self.call


def crafted(folder: Path, *, legacy: bool = False) -> tuple[Path, Path]:
    """Write a checkpoint that makes a file when it is unpickled; return both paths."""
    ran = folder / 'ran'
    content = {'state_dict': {'weight': torch.ones(2)}, 'meta': Calls(os.makedirs, str(ran), 0o777, True)}
    torch.save(content, folder / 'crafted.pth', _use_new_zipfile_serialization=not legacy)
    return folder / 'crafted.pth', ran


@pytest.mark.parametrize('legacy', [False, True])
def test_a_crafted_checkpoint_runs_nothing(tmp_path, legacy):
    path, ran = crafted(tmp_path, legacy=legacy)
    with pytest.raises(CheckpointError, match='holds more than weights, .*makedirs.*--trust-checkpoint'):
        read_checkpoint(path)
    assert not ran.exists()


def test_a_trusted_checkpoint_is_read_whole(tmp_path):
    path, ran = crafted(tmp_path)
    with checkpoints(trust=True):
        assert read_checkpoint(path)['state_dict']['weight'].tolist() == [1, 1]
    assert ran.is_dir()


def test_what_names_nothing_new_is_refused_by_what_it_looks_up(tmp_path):
    """By the attributes of what is allowed one comes to everything else."""
    for number, value in enumerate([Calls(getattr, HistoryBuffer, '__init__'), Calls(getattr, 'x', 'join'),
                                    Calls(getattr, HistoryBuffer, '_statistics_methods')]):
        path = tmp_path / f'{number}.pth'
        torch.save({'state_dict': {'weight': torch.ones(1)}, 'meta': value}, path)
        with pytest.raises(CheckpointError, match='holds more than weights, getattr'):
            read_checkpoint(path)


def test_what_runs_keep_is_read(tmp_path):
    """Logs, schedules with their methods, numpy's arrays and numbers, nested settings."""
    log = HistoryBuffer()
    log.update(3.0)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1, momentum=0.9)
    schedule = OneCycleParamScheduler(optimizer, 'lr', eta_max=0.1, total_steps=10)
    content = {'state_dict': {'weight': torch.ones(1)}, 'message_hub': {'log': log},
               'param_schedulers': [schedule.state_dict()],
               'meta': {'dataset_meta': ConfigDict(classes=('a', ), sigmas=np.array([0.5], np.float32)),
                        'seed': np.int64(3), 'names': np.array(['a', None], object)}}
    torch.save(content, tmp_path / 'run.pth')
    found = read_checkpoint(tmp_path / 'run.pth')
    assert found['message_hub']['log'].current() == 3
    assert found['param_schedulers'][0]['anneal_func'] is OneCycleParamScheduler._annealing_cos
    assert found['meta']['dataset_meta'].classes == ('a', ) and found['meta']['dataset_meta']['sigmas'][0] == 0.5
    assert found['meta']['seed'] == 3 and found['meta']['names'].tolist() == ['a', None]


def test_a_run_is_read_as_before(pruning_run):
    found = load_file(pruning_run / 'epoch_1.pth')
    wanted = torch.load(pruning_run / 'epoch_1.pth', weights_only=False)
    assert found.keys() == wanted.keys() and found['meta'].keys() == wanted['meta'].keys()
    assert all(torch.equal(found['state_dict'][name], value) for name, value in wanted['state_dict'].items())
    assert found['state_dict']._metadata[''] == wanted['state_dict']._metadata['']


@pytest.mark.parametrize('content', [b'', b'no checkpoint', b'\x80\x02}q\x00.', pickle.dumps('text')])
def test_what_is_no_checkpoint_is_said_to_be_none(tmp_path, content):
    (tmp_path / 'a.pth').write_bytes(content)
    says = 'a.pth: (cannot be read, it is truncated|expected a dict|holds no weights)'
    with pytest.raises(CheckpointError, match=says):
        read_checkpoint(tmp_path / 'a.pth')


def test_the_environment_is_as_before(monkeypatch):
    monkeypatch.delenv(FORCED, raising=False)
    monkeypatch.delenv(TRUST, raising=False)
    with checkpoints():
        assert os.environ[FORCED] == '1' and TRUST not in os.environ
    with checkpoints(trust=True):
        assert os.environ[TRUST] == '1' and FORCED not in os.environ
        with checkpoints():  # of a command in a command that was told to trust
            assert FORCED not in os.environ
    assert not {FORCED, TRUST} & set(os.environ)


def test_what_was_allowed_before_stays_allowed(tmp_path):
    """A run allows mmengine's objects, reads a checkpoint by this, and lets mmengine read another one."""
    torch.save({'state_dict': {'weight': torch.ones(2)}, 'meta': {'sigmas': np.ones(3)}}, tmp_path / 'run.pth')
    before = torch.serialization.get_safe_globals()
    try:
        torch.serialization.clear_safe_globals()
        load_file(tmp_path / 'run.pth')
        assert not torch.serialization.get_safe_globals()  # what the file needed is allowed for it alone
        allow_runs()
        load_file(tmp_path / 'run.pth')
        assert torch.load(tmp_path / 'run.pth', weights_only=True)['meta']['sigmas'].tolist() == [1, 1, 1]
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)
