"""A job of two parts, search and training, through the tools: what it leaves, killed and resumed, what is wrong."""
from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS

from mmprune_ext.settings import reading
from tests.in_process import TOOLS, own_globals, run_tool
from tests.runs import differing, state

pytestmark = pytest.mark.e2e


@pytest.fixture
def job(tiny_config, dense_checkpoint, tmp_path) -> Callable[..., Path]:
    """Return a function that writes the config of a search of three epochs and a training of two."""
    def write(options: Mapping[str, Any] | None = None) -> Path:
        config = tiny_config({'train_cfg.max_epochs': 2, 'train_cfg.val_interval': 2})
        config.pop('experiment_name')
        shutil.copy(dense_checkpoint, tmp_path / 'dense.pth')
        config.model = dict(type='mmprune_ext.ChipNet', architecture=config.model, budget=dict(params=0.4),
                            checkpoint=str(tmp_path / 'dense.pth'))
        config.optim_wrapper.optimizer.lr = 0.01
        config.param_scheduler = dict(type='CosineAnnealingLR', T_max=2, by_epoch=True, convert_to_iter_based=True)
        config.runner_type = 'mmprune_ext.SearchRunner'
        config.search = dict(
            train_cfg=dict(by_epoch=True, max_epochs=3, val_interval=3),
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3, weight_decay=1e-3), paramwise_cfg=dict(
                custom_keys={'channel_gates': dict(lr_mult=100.0, decay_mult=0.0)})),
            param_scheduler=[])
        config.default_hooks.logger.interval = 1
        config.merge_from_dict(dict(options or {}))
        config.dump(tmp_path / 'job.py')
        return tmp_path / 'job.py'
    return write


@pytest.fixture(autouse=True)
def _plain_dumps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Configs are formatted with every dump, which takes longer than these runs."""
    monkeypatch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **_: (text, True))


def train(config: Path, work: Path, *further: object) -> None:
    run_tool('train', config, '--work-dir', work, *further)


def log_of(folder: Path) -> str:
    return max(folder.glob('*/*.log'), key=lambda path: path.stat().st_mtime).read_text()


def same(first: Path, second: Path) -> bool:
    return differing(state(first), state(second)) == []


def indices(path: Path) -> dict[str, Any]:
    return {name: unit.get('indices') for name, unit in json.loads(path.read_text())['units'].items()}


# ---------------------------------------------------------------- what it leaves


def test_one_job(job, tmp_path):
    work = tmp_path / 'work'
    train(job(), work)
    # The search has its own optimizer and no schedule, the training those of the config.
    search, training = log_of(work / 'search'), log_of(work)
    assert 'Epoch(train) [3][6/6]  base_lr: 1.0000e-03 lr: 1.0000e-03' in search and 'soft_params' in search
    assert 'Epoch(train) [1][1/6]  lr: 1.0000e-02' in training and 'soft_params' not in training
    assert 'Epoch(train) [3]' not in training
    chosen = indices(work / 'search' / 'units.json')
    assert chosen == indices(work / 'units.json') == indices(work / 'search' / 'compact' / 'units.json')
    assert any(value is not None and len(value) < 8 for value in chosen.values())
    report = json.loads((work / 'search' / 'compact' / 'report.json').read_text())
    assert report['compact']['params'] <= 0.4 * report['dense']['params']
    # What was trained is the compact model, from the weights of the search.
    start, end = state(work / 'search' / 'compact' / 'compact.pth'), state(work / 'epoch_2.pth')
    assert {key: value.shape for key, value in start.items()} == {key: value.shape for key, value in end.items()}
    assert not torch.equal(start['head.fc.weight'], end['head.fc.weight'])

    # The one config tests and exports checkpoints of both parts.
    for checkpoint in (work / 'epoch_2.pth', work / 'search' / 'epoch_3.pth'):
        out = tmp_path / f'{checkpoint.parent.name}_out'
        run_tool('test', tmp_path / 'job.py', checkpoint, '--work-dir', out, '--json', out / 'run.json')
        run_tool('export_compact', tmp_path / 'job.py', checkpoint, '-o', out / 'compact')
        run_tool('test', out / 'compact' / 'compact_config.py', '--work-dir', out, '--json', out / 'compact.json')
        assert json.loads((out / 'run.json').read_text()) == json.loads((out / 'compact.json').read_text())
        assert indices(out / 'compact' / 'units.json') == chosen
    assert same(work / 'search' / 'compact' / 'compact.pth', tmp_path / 'search_out' / 'compact' / 'compact.pth')

    # Or the exported search is trained by a job of its own: it carries the training's settings.
    compact = Config.fromfile(work / 'search' / 'compact' / 'compact_config.py')
    assert compact.train_cfg.max_epochs == 2 and compact.optim_wrapper.optimizer.type == 'SGD'
    assert not {'search', 'runner_type'} & set(compact)
    assert [hook.type for hook in compact.custom_hooks] == ['mmprune_ext.EpochSeedHook']
    train(work / 'search' / 'compact' / 'compact_config.py', tmp_path / 'second')
    assert same(work / 'epoch_2.pth', tmp_path / 'second' / 'epoch_2.pth')


def test_tools_of_the_libraries_run_both_parts(job, tmp_path):
    """They build what `runner_type` names and call train(); hooks that this package's tools add are there."""
    with own_globals():
        config = reading.read_config(str(job({'custom_hooks': []})))
        config.work_dir = str(tmp_path / 'work')
        model = RUNNERS.build(config).train()
        assert not model.is_searching
        assert (tmp_path / 'work' / 'epoch_2.pth').is_file()
        assert (tmp_path / 'work' / 'search' / 'gates.png').is_file()


def test_resumed_by_tools_of_the_libraries(job, tmp_path):
    """They set `resume` and, for a checkpoint of one's choice, `load_from`."""
    path, work = job(), tmp_path / 'work'
    train(path, work)
    whole = state(work / 'epoch_2.pth')
    for checkpoint in (work / 'search' / 'epoch_2.pth', work / 'epoch_1.pth'):
        with own_globals():
            config = reading.read_config(str(path))
            config.work_dir, config.resume, config.load_from = str(work), True, str(checkpoint)
            RUNNERS.build(config).train()
        again = state(work / 'epoch_2.pth')
        assert differing(whole, again) == []


def test_each_part_has_its_own_logs(job, tmp_path):
    """Also where the config gives its visualizer a name, of which a process has one."""
    train(job({'visualizer': dict(type='UniversalVisualizer', name='visualizer', vis_backends=[
        dict(type='LocalVisBackend')])}), tmp_path / 'work')
    for folder, key in ((tmp_path / 'work', 'task_loss'), (tmp_path / 'work' / 'search', 'nothing')):
        scalars = next(folder.glob('*/vis_data/scalars.json')).read_text()
        assert scalars and f'"{key}"' not in scalars


def test_a_run_that_cannot_begin_leaves_an_earlier_one(job, tmp_path):
    train(job(), tmp_path / 'work')
    with pytest.raises(SystemExit):
        train(job({'search.train_cfg': dict(_delete_=True, type='IterBasedTrainLoop', max_iters=5)}), tmp_path / 'work')
    for name in ('last_checkpoint', 'search/last_checkpoint', 'search/compact/report.json'):
        assert (tmp_path / 'work' / name).is_file()


def test_channels_that_are_known_are_not_searched(job, tmp_path):
    train(job(), tmp_path / 'work')
    units = tmp_path / 'work' / 'units.json'
    train(tmp_path / 'job.py', tmp_path / 'again', '--cfg-options', f'model.units={units}')
    assert not (tmp_path / 'again' / 'search').exists()
    assert indices(tmp_path / 'again' / 'units.json') == indices(units)


# ---------------------------------------------------------------- killed and resumed


def kill_at(line: str, config: Path, work: Path) -> None:
    """Start the job and end it by SIGKILL when it has logged a line."""
    output = work.parent / f'{work.name}.log'
    variables = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONUNBUFFERED': '1'}
    with output.open('w') as log:
        process = subprocess.Popen([sys.executable, str(TOOLS / 'train.py'), str(config), '--work-dir', str(work)],
                                   stdout=log, stderr=subprocess.STDOUT, env=variables, cwd=work.parent)
        try:
            deadline = time.monotonic() + 240
            while line not in output.read_text():
                assert process.poll() is None, output.read_text()[-3000:]
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


def test_killed_in_either_part(job, tmp_path):
    """Ends with the same channels and the same weights, bit for bit, also without the dense checkpoint."""
    path = job()
    train(path, tmp_path / 'whole')
    for part, line in {'search': 'Epoch(train) [2][3/6]  base_lr: 1.0000e-03',
                       'training': 'Epoch(train) [2][3/6]  lr: 2'}.items():
        work = tmp_path / part
        kill_at(line, path, work)
        assert (work / 'epoch_1.pth').is_file() == (part == 'training')
        assert (work / 'search' / 'epoch_3.pth').is_file() == (part == 'training')
        shutil.move(tmp_path / 'dense.pth', tmp_path / 'away.pth')
        train(path, work, '--resume')
        shutil.move(tmp_path / 'away.pth', tmp_path / 'dense.pth')
        assert indices(work / 'units.json') == indices(tmp_path / 'whole' / 'units.json')
        assert same(work / 'search' / 'epoch_3.pth', tmp_path / 'whole' / 'search' / 'epoch_3.pth')
        assert same(work / 'epoch_2.pth', tmp_path / 'whole' / 'epoch_2.pth')
        if part == 'training':
            assert 'Epoch(train) [1]' not in log_of(work)


def test_killed_between_the_parts(job, tmp_path):
    """After the search was exported, before the training wrote anything."""
    path, work = job(), tmp_path / 'work'
    train(path, work)
    before = (work / 'search' / 'epoch_3.pth').stat().st_mtime_ns
    for name in ('epoch_1.pth', 'epoch_2.pth', 'last_checkpoint'):
        (work / name).rename(tmp_path / name)
    train(path, work, '--resume')
    assert (work / 'search' / 'epoch_3.pth').stat().st_mtime_ns == before
    assert same(work / 'epoch_2.pth', tmp_path / 'epoch_2.pth')


def test_begun_anew(job, tmp_path):
    """What an earlier run has left in the folder is not taken for a part of this one."""
    path, work = job(), tmp_path / 'work'
    train(path, work)
    first = indices(work / 'units.json')
    kill_at('Epoch(train) [1][3/6]  base_lr: 1.0000e-03', path, work)
    job({'model.budget.params': 0.2})
    train(path, work, '--resume')
    assert indices(work / 'units.json') != first
    report = json.loads((work / 'search' / 'compact' / 'report.json').read_text())
    assert report['compact']['params'] <= 0.2 * report['dense']['params']


# ---------------------------------------------------------------- what is wrong


BAD = {
    'unknown budget': (['model.budget.memory=0.5'], 'budget should have one or more of flops, params'),
    'budget of nothing': (['model.budget.params=0'], 'params is the share that remains, above 0 and below 1'),
    'budget of more than all': (['model.budget.params=1.5'], 'above 0 and below 1, but got 1.5'),
    'no budget': (['model.budget=None'], 'budget should say what remains, such as dict(flops=0.5)'),
    'budget out of reach': (['model.budget.params=0.001'], 'params cannot be reduced to 0.1%'),
    'budget of another module': (['model.budget.scope=body'], 'no submodule "body"'),
    'search without epochs': (['search.train_cfg.max_epochs=0'], 'search.train_cfg: a search needs max_epochs'),
    'no search': (['search=None'], 'does not say how long to search; set search=dict(train_cfg='),
    'no section': (['search=5'], 'does not say how long to search'),
    'nothing that reads the search': (['runner_type=None'], 'only runner_type='),
    'part of a section': (['search.train_dataloader.batch_size=64'], 'search.train_dataloader has no "dataset"'),
    'part of a hook': (['search.default_hooks.logger.interval=1'], 'search.default_hooks.logger has no "type"'),
    'epochs of a search by iterations': (['search.train_cfg.by_epoch=False'], 'needs max_iters, but got max_epochs'),
    'unknown optimizer of the search': (['search.optim_wrapper.optimizer.type=Foo'],
                                        'search.optim_wrapper.optimizer: Foo is not in the optimizer registry'),
    'method that searches nothing': (['model.type=mmprune_ext.L1Norm'], 'the model is a L1Norm, which searches'),
    'misspelt setting of the search': (['search.optim_wraper.type=OptimWrapper'], 'did you mean optim_wrapper?'),
    'model of the search': (['search.model.type=DCFF'], 'search: a search has no setting "model"'),
    'unknown optimizer of the training': (['optim_wrapper.optimizer.type=SGDD'],
                                          'optim_wrapper.optimizer: SGDD is not in the optimizer registry'),
    'frozen gates': (['search.optim_wrapper.paramwise_cfg.custom_keys.channel_gates.lr_mult=0'],
                     'search.optim_wrapper.paramwise_cfg.custom_keys.channel_gates: lr_mult is 0'),
    'mixed precision without an accelerator': (['search.optim_wrapper.type=AmpOptimWrapper'], 'AmpOptimWrapper'),
    'steps of no length': (['model.step_freq=0'], 'step_freq is the number of epochs of a step'),
    'no such weights': (['model.checkpoint=missing.pth'], 'checkpoint missing.pth: no such file'),
    'unknown setting': (['model.sparsity=0.5'], 'ChipNet has no setting "sparsity"'),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_input(name, job, tmp_path, capsys):
    options, message = BAD[name]
    path = job()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as raised:
        train(path, tmp_path / 'work', '--cfg-options', *options)
    assert raised.value.code == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error:')]
    assert len(error) == 1 and message in error[0], error
    assert sorted(tmp_path.iterdir()) == before


def test_units_of_another_network(job, pruned, tmp_path, capsys):
    units = json.loads((pruned / 'units.json').read_text())
    units['units'] = {name.replace('layer1', 'stage1'): unit for name, unit in units['units'].items()}
    (tmp_path / 'units.json').write_text(json.dumps(units).replace('layer1', 'stage1'))
    path = job()
    with pytest.raises(SystemExit) as raised:
        train(path, tmp_path / 'work', '--cfg-options', f'model.units={tmp_path / "units.json"}')
    assert raised.value.code == 2
    assert 'unknown channel unit "backbone.stage1.0.conv1"; did you mean' in capsys.readouterr().err
    assert not (tmp_path / 'work').exists()
