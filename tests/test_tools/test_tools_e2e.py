"""The tools as a user starts them, one after the other, on the handwritten digits."""
from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmprune_ext.compact.compact_model import build_architecture
from tests.runs import differing, state

TOOLS = Path(__file__).resolve().parents[2] / 'tools'

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def command(tool: str, *arguments: object) -> list[str]:
    return [sys.executable, str(TOOLS / f'{tool}.py'), *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}


def run(tool: str, *arguments: object, cwd: Path) -> str:
    """Run a tool; return its stdout after checking its exit status."""
    done = subprocess.run(command(tool, *arguments), cwd=cwd, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_units_prune_fine_tune_test_export(dense_config_file, dense_checkpoint, tmp_path):
    """From a dense model to a compact one that was trained further, each step on the last one's files."""
    config = dense_config_file
    table = run('get_channel_units', config, '--input-size', 32, 32, cwd=tmp_path)
    assert re.search(r'backbone\.layer1\.0\.conv1\s.*\b8\b', table)
    assert 'its channels are an output of the model' in table

    run('get_channel_units', config, '-c', '-i', '-o', 'units.json', '--input-size', 32, 32, cwd=tmp_path)
    written = json.loads((tmp_path / 'units.json').read_text())
    unit = written['units']['backbone.layer2.0.conv1']
    assert unit['num_channels'] == 16 and unit['prunable'] and unit['keep'] == 16
    assert unit['init_args'] == {'divisor': 1, 'min_channels': 1}
    assert unit['channels']['producers'] == [{'module': 'backbone.layer2.0.conv1', 'start': 0, 'end': 16}]

    # The template of ratios, edited, is a target.
    ratios = json.loads(run('get_channel_units', config, '--choice', '--input-size', 32, 32, cwd=tmp_path))
    assert set(ratios.values()) == {0.0} and 'head.fc' not in ratios
    ratios['backbone.layer2.0.conv1'] = 0.5
    (tmp_path / 'ratios.json').write_text(json.dumps(ratios))
    printed = run('prune', config, dense_checkpoint, '--algorithm', 'l1', '--ratio', 'ratios.json', '-o', 'pruned',
                  '--bn-batches', 2, '--input-size', 32, 32, cwd=tmp_path)
    assert str(Path('pruned/compact_config.py')) in printed
    pruned = tmp_path / 'pruned'
    assert state(pruned / 'compact.pth')['backbone.layer2.0.conv1.weight'].shape == (8, 8, 3, 3)

    run('train', pruned / 'compact_config.py', '--work-dir', 'tuned', cwd=tmp_path)
    tuned = tmp_path / 'tuned' / 'epoch_1.pth'
    assert state(tuned).keys() == state(pruned / 'compact.pth').keys()
    run('export_compact', pruned / 'compact_config.py', tuned, '-o', 'final', '--input-size', 32, 32, cwd=tmp_path)
    by_export, by_checkpoint = (
        run('test', *arguments, '--work-dir', 'tested', '--json', 'tested.json', cwd=tmp_path)
        and json.loads((tmp_path / 'tested.json').read_text())
        for arguments in ([tmp_path / 'final' / 'compact_config.py'], [pruned / 'compact_config.py', tuned]))
    assert by_export == by_checkpoint


def test_fine_tuning_to_another_number_of_classes(pruned, tmp_path):
    """By one override: the outputs start anew, which one line says, all else from the compact weights."""
    printed = run('train', pruned / 'compact_config.py', '--work-dir', 'other', '--cfg-options',
                  'model.head.num_classes=12', 'optim_wrapper.optimizer.lr=0.0', cwd=tmp_path)
    warnings = [line for line in printed.splitlines() if 'WARNING' in line]
    assert len([line for line in warnings if 'start anew' in line]) == 1, warnings
    assert 'do not match' not in printed
    start, end = state(pruned / 'compact.pth'), state(tmp_path / 'other' / 'epoch_1.pth')
    assert end['head.fc.weight'].shape[0] == 12
    kept = [key for key in start if not key.startswith('head.fc') and 'running' not in key and 'num_' not in key]
    assert kept and all(torch.equal(start[key], end[key]) for key in kept)
    changed = ['--cfg-options', 'model.head.num_classes=12']
    run('export_compact', pruned / 'compact_config.py', tmp_path / 'other' / 'epoch_1.pth', '-o', 'final',
        '--input-size', 32, 32, *changed, cwd=tmp_path)
    run('test', tmp_path / 'final' / 'compact_config.py', '--work-dir', 'tested', '--json', 'tested.json', cwd=tmp_path)
    assert state(tmp_path / 'final' / 'compact.pth')['head.fc.weight'].shape[0] == 12
    assert Config.fromfile(tmp_path / 'final' / 'compact_config.py').model.head.num_classes == 12


def test_pruning_config_train_export_test(pruning_config, tmp_path):
    """The other way: a config whose model is the algorithm."""
    pruning_config({'train_cfg.max_epochs': 1}).dump(tmp_path / 'l1.py')
    run('train', 'l1.py', '--work-dir', 'run', cwd=tmp_path)
    checkpoint = tmp_path / 'run' / 'epoch_1.pth'
    units = json.loads((tmp_path / 'run' / 'units.json').read_text())
    meta = torch.load(checkpoint, weights_only=False)['meta']
    assert meta['channel_units'] == units
    assert {unit['keep'] for unit in units['units'].values()} == {4, 9, 19, 10}  # int(8, 16, 32 * 0.6); the classifier
    run('export_compact', 'l1.py', checkpoint, '-o', 'compact', cwd=tmp_path)
    results = []
    for arguments in (['l1.py', checkpoint], [tmp_path / 'compact' / 'compact_config.py']):
        run('test', *arguments, '--work-dir', 'tested', '--json', 'tested.json', cwd=tmp_path)
        results.append(json.loads((tmp_path / 'tested.json').read_text()))
    assert results[0] == results[1]


# ---------------------------------------------------------------- killed and resumed


def long_run(config: Config, folder: Path) -> Path:
    """Make a run of four epochs with augmentation and dropout, checkpoints every second epoch."""
    config.merge_from_dict({
        'train_cfg.max_epochs': 4, 'train_cfg.val_interval': 4, 'default_hooks.checkpoint.interval': 2,
        'default_hooks.logger.interval': 1,
        'param_scheduler': dict(type='CosineAnnealingLR', T_max=4, by_epoch=True, convert_to_iter_based=True)})
    config.train_dataloader.dataset.pipeline.insert(1, dict(
        type='RandomErasing', erase_prob=0.5, mode='rand', min_area_ratio=0.02, max_area_ratio=0.2))
    config.train_dataloader.dataset.pipeline.insert(1, dict(type='ColorJitter', brightness=0.5, contrast=0.5))
    config.dump(folder / 'run.py')
    return folder / 'run.py'


def with_dropout(model: Config) -> None:
    model.head = dict(type='StackedLinearClsHead', num_classes=10, in_channels=32, mid_channels=[16],
                      dropout_rate=0.5, act_cfg=dict(type='ReLU'), loss=dict(type='CrossEntropyLoss'))


def kill_in_epoch(number: int, config: Path, work_dir: Path) -> None:
    """Start a training run and end it by SIGKILL while it is in the middle of an epoch."""
    with (work_dir.parent / 'killed.log').open('w') as log:
        process = subprocess.Popen(command('train', config, '--work-dir', work_dir), stdout=log,
                                   stderr=subprocess.STDOUT, env=environment(), cwd=work_dir.parent)
        try:
            deadline = time.monotonic() + 240
            while f'Epoch(train) [{number}][3/6]' not in (work_dir.parent / 'killed.log').read_text():
                assert process.poll() is None, (work_dir.parent / 'killed.log').read_text()[-3000:]
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


@pytest.mark.parametrize('kind', ['pruning', 'compact', 'dense'])
def test_killed_run_ends_with_the_same_weights(kind, tiny_config, pruning_config, tmp_path):
    """Same seed, CPU: bit for bit, also where the files that the run started from are gone."""
    base = tiny_config()
    with_dropout(base.model)
    base.dump(tmp_path / 'dense.py')
    torch.manual_seed(0)
    dense = tmp_path / 'dense.pth'
    init_default_scope('mmpretrain')
    torch.save({'state_dict': build_architecture(base.model.to_dict(), base.data_preprocessor).state_dict()}, dense)
    if kind == 'pruning':
        config = pruning_config({'model.checkpoint': str(dense)})
        with_dropout(config.model.architecture)
    elif kind == 'compact':
        run('prune', 'dense.py', dense, '--algorithm', 'l1', '--flops', 0.5, '-o', 'pruned', '--bn-batches', 1,
            '--input-size', 32, 32, cwd=tmp_path)
        config = Config.fromfile(tmp_path / 'pruned' / 'compact_config.py')
    else:
        config = base
    path = long_run(config, tmp_path)
    run('train', path, '--work-dir', 'whole', cwd=tmp_path)

    killed = tmp_path / 'killed'
    kill_in_epoch(4 if kind == 'dense' else 3, path, killed)
    assert (killed / 'epoch_2.pth').is_file() and not (killed / 'epoch_4.pth').exists()
    dense.unlink()
    (tmp_path / 'pruned' / 'compact.pth').unlink(missing_ok=True)
    resumed = run('train', path, '--work-dir', killed, '--resume', cwd=tmp_path)
    assert 'Epoch(train) [3][1/6]' in resumed and 'Epoch(train) [2]' not in resumed

    expected, found = state(tmp_path / 'whole' / 'epoch_4.pth'), state(killed / 'epoch_4.pth')
    assert differing(expected, found) == []
    # Otherwise equality would be empty: the runs do change their weights in the epochs that were repeated.
    before = state(killed / 'epoch_2.pth')
    assert any(not torch.equal(before[key], found[key]) for key in found)
