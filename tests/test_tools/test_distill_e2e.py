"""tools/train.py beside teachers: on every task, killed and resumed, and what it says where something is wrong."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from mmengine.registry import DefaultScope
from mmengine.runner import save_checkpoint

from mmprune_ext.compact.compact_model import build_architecture
from mmprune_ext.settings.reading import read_config
from tests.in_process import run_tool
from tests.runs import differing, state
from tests.scenes import scenes_in

ROOT = Path(__file__).resolve().parents[2]
SCOPES = {'classification': 'mmpretrain', 'detection': 'mmdet', 'segmentation': 'mmseg', 'pose': 'mmpose'}


@pytest.fixture(autouse=True)
def _plain_dumps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Configs are formatted with every dump, which takes longer than these runs."""
    monkeypatch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **_: (text, True))


@pytest.fixture(scope='module')
def _scenes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with scenes_in(tmp_path_factory.mktemp('data'), train=16, val=5):
        yield


def scalars(folder: Path) -> list[dict[str, float]]:
    path, = folder.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in path.read_text().splitlines()]


SETTINGS = {'detection': ["model.outputs=['rpn_head']", "model.maps=['neck']"]}


@pytest.mark.e2e
@pytest.mark.usefixtures('_scenes')
@pytest.mark.parametrize('task', SCOPES)
def test_every_task(task, tmp_path):
    """Two iterations of a config whose model section names the student, beside a teacher of other weights."""
    path = str(ROOT / 'tests' / 'data' / f'scenes_{task}.py')
    config = read_config(path)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(SCOPES[task]):
        model = build_architecture(config.model, config.get('data_preprocessor'))
    save_checkpoint(dict(state_dict=model.state_dict(), meta={}), str(tmp_path / 'teacher.pth'))
    config.dump(tmp_path / 'teacher.py')
    config.model = dict(type='mmprune_ext.Distilled', student=config.model, teachers=[
        dict(config=str(tmp_path / 'teacher.py'), checkpoint=str(tmp_path / 'teacher.pth'))])
    config.experiment_name = uuid.uuid4().hex
    config.dump(tmp_path / 'run.py')
    run_tool('train', tmp_path / 'run.py', '--work-dir', tmp_path / 'work', '--cfg-options', 'train_cfg.max_epochs=1',
             'train_dataloader.dataset.indices=16', *SETTINGS.get(task, []))
    lines = [line for line in scalars(tmp_path / 'work') if 'loss_distill' in line]
    assert len(lines) == 2 and all(0 < line['loss_distill'] < 100 for line in lines)
    assert all('loss_distill_neck' in line for line in lines) == (task == 'detection')
    run_tool('test', tmp_path / 'run.py', tmp_path / 'work' / 'epoch_1.pth', '--work-dir', tmp_path / 'tested',
             '--json', tmp_path / 'metrics.json')
    assert json.loads((tmp_path / 'metrics.json').read_text())


@pytest.fixture
def run_of(pruned: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Return a function that makes the command of a run of the pruned digits' network beside two teachers."""
    def make(folder: Path, *more: object) -> list[str]:
        return [str(pruned / 'compact_config.py'), '--work-dir', str(folder), *map(str, more), '--cfg-options',
                'train_cfg.max_epochs=3', 'train_cfg.val_interval=3', 'default_hooks.logger.interval=1',
                f'experiment_name={uuid.uuid4().hex}']
    return make


@pytest.fixture
def teachers(pruned: Path, dense_config_file: Path, dense_checkpoint: Path) -> list[str]:
    return ['--teachers', f'{dense_config_file}:{dense_checkpoint}', str(pruned / 'compact_config.py'), '--temperature',
            '4']


@pytest.mark.e2e
def test_killed_and_resumed(run_of, teachers, tmp_path):
    """Ends with the weights of a run that was left alone."""
    run_tool('train', *run_of(tmp_path / 'whole', *teachers))
    command = [sys.executable, str(ROOT / 'tools' / 'train.py'), *run_of(tmp_path / 'killed', *teachers)]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
    log = tmp_path / 'log'
    with log.open('w') as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    try:
        deadline = time.monotonic() + 240
        while 'Epoch(train) [2][3/6]' not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / 'killed' / 'epoch_2.pth').exists()
    run_tool('train', *run_of(tmp_path / 'killed', '--resume', *teachers))
    ends = [state(tmp_path / name / 'epoch_3.pth') for name in ('whole', 'killed')]
    assert differing(*ends) == []
    plain = state(tmp_path / 'whole' / 'epoch_1.pth')
    run_tool('train', *run_of(tmp_path / 'plain'), 'train_cfg.max_epochs=1')
    assert differing(plain, state(tmp_path / 'plain' / 'epoch_1.pth')) != []
    run_tool('export_compact', tmp_path / 'whole' / 'compact_config.py', tmp_path / 'whole' / 'epoch_3.pth', '-o',
             tmp_path / 'out', '--input-size', '32', '32')
    assert state(tmp_path / 'out' / 'compact.pth').keys() == ends[0].keys()


BAD = {
    'no such config': (['--teachers', 'missing.py:a.pth'], 'teachers[0] (missing.py): config missing.py: no such file'),
    'no config': (['--teachers', 'a.pth'], '--teachers: expected CONFIG.py or CONFIG.py:CHECKPOINT, got "a.pth"'),
    'no weights': (['--teachers', '{dense}'], 'no weights; give its checkpoint'),
    'no such weights': (['--teachers', '{dense}:missing.pth'], 'checkpoint missing.pth: no such file'),
    'temperature': (['--teachers', '{dense}:{weights}', '--temperature', '0'],
                    'temperature should be a number above 0, but got 0.0'),
    'temperature of nothing': (['--temperature', '5'], '--temperature: there are no teachers'),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_input(name, dense_config_file, dense_checkpoint, tmp_path, capsys):
    """One line, exit code 2, and nothing left behind."""
    arguments, message = BAD[name]
    filled = [text.format(dense=dense_config_file, weights=dense_checkpoint) for text in arguments]
    capsys.readouterr()
    with pytest.raises(SystemExit) as raised:
        run_tool('train', dense_config_file, '--work-dir', tmp_path / 'work', *filled)
    assert raised.value.code == 2
    line, = [line for line in capsys.readouterr().err.splitlines() if 'error:' in line]
    assert message in line
    assert not (tmp_path / 'work').exists()
