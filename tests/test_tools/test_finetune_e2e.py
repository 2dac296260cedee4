"""--finetune as a user gives it: the written schedule trains, is resumed, and the last lines tell of it."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
from mmengine.config import Config

from tests.in_process import run_tool
from tests.runs import StopAt, differing, state, train
from tests.scenes import scenes_in

DATA = Path(__file__).resolve().parents[1] / 'data'

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def last_lines(capsys) -> list[str]:
    return capsys.readouterr().out.splitlines()[-3:]


def test_classification_of_epochs(dense_config_file, dense_checkpoint, tmp_path, capsys):
    """120 images by 20 are 12 iterations in 2 epochs: a warm-up of one would be none, so there is only the cosine."""
    prune = ['prune', dense_config_file, dense_checkpoint, '--algorithm', 'l1', '--ratio', '0.5', '--input-size', '32',
             '32', '--bn-batches', '0', '-o']
    run_tool(*prune, tmp_path / 'plain')
    *_, starts, warning = last_lines(capsys)
    assert starts == 'compact_config.py trains 1 epoch by SGD, learning rate 0.05, constant'
    assert warning.startswith('warning: this is the schedule of the dense model') and '--finetune EPOCHS' in warning
    plain = Config.fromfile(tmp_path / 'plain' / 'compact_config.py')
    dense = Config.fromfile(dense_config_file)
    assert all(plain[key] == dense[key] for key in ('optim_wrapper', 'train_cfg')) and 'finetune' not in plain

    run_tool(*prune, tmp_path / 'fitted', '--finetune', 2, '--lr-scale', 0.2)
    assert last_lines(capsys)[-1] == ('compact_config.py trains 2 epochs by SGD, learning rate 0.01, '
                                      'CosineAnnealingLR')
    report = json.loads((tmp_path / 'fitted' / 'report.json').read_text())['training']
    assert report['fitted'] and report['learning_rate'] == pytest.approx(0.01) and report['length'] == 2
    assert 'learning rate 0.01' in (tmp_path / 'fitted' / 'report.txt').read_text()
    assert differing(state(tmp_path / 'plain' / 'compact.pth'), state(tmp_path / 'fitted' / 'compact.pth')) == []

    config = tmp_path / 'fitted' / 'compact_config.py'
    run_tool('train', config, '--work-dir', tmp_path / 'whole')
    run = Config.fromfile(config)
    run.work_dir = str(tmp_path / 'killed')
    with pytest.raises(KeyboardInterrupt):
        train(run, StopAt(epoch=1))
    run_tool('train', config, '--work-dir', tmp_path / 'killed', '--resume')
    assert differing(*(state(tmp_path / name / 'epoch_2.pth') for name in ('whole', 'killed'))) == []

    # What was fine-tuned keeps its schedule, and needs no warning; another --finetune scales that.
    run_tool('export_compact', config, tmp_path / 'whole' / 'epoch_2.pth', '-o', tmp_path / 'again', '--input-size',
             32, 32)
    assert last_lines(capsys)[-1].startswith('compact_config.py trains 2 epochs')
    run_tool('export_compact', config, tmp_path / 'whole' / 'epoch_2.pth', '-o', tmp_path / 'more', '--input-size',
             32, 32, '--finetune', 6)
    assert last_lines(capsys)[-1].startswith('compact_config.py trains 6 epochs by SGD, learning rate 0.001 (0.0001 in')


def test_segmentation_of_iterations(tmp_path, capsys):
    """8 scenes by 4 are 2 iterations an epoch, in a run that counts iterations."""
    with scenes_in(tmp_path / 'data', train=8, val=5):
        config = Config.fromfile(DATA / 'scenes_segmentation.py')
        config.train_cfg = dict(type='IterBasedTrainLoop', max_iters=80, val_interval=40)
        config.param_scheduler = [dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=0, end=80, by_epoch=False)]
        config.train_dataloader.update(batch_size=4)
        config.default_hooks.checkpoint.update(by_epoch=False, interval=40)
        config.custom_hooks = [dict(type='EMAHook', momentum=1e-3), dict(type='mmprune_ext.EpochSeedHook')]
        config.dump(tmp_path / 'dense.py')
        run_tool('train', tmp_path / 'dense.py', '--work-dir', tmp_path / 'dense', '--cfg-options',
                 'train_cfg.max_iters=1', 'default_hooks.checkpoint.interval=1')
        run_tool('prune', tmp_path / 'dense.py', tmp_path / 'dense' / 'iter_1.pth', '--algorithm', 'l1', '--ratio',
                 '0.5', '--bn-batches', '1', '-o', tmp_path / 'fitted', '--finetune', 2)
        assert last_lines(capsys)[-1] == ('compact_config.py trains 4 iterations by SGD, learning rate 0.001, '
                                          'CosineAnnealingLR')
        written = tmp_path / 'fitted' / 'compact_config.py'
        fitted = Config.fromfile(written)
        assert fitted.train_cfg.val_interval == 2 and fitted.default_hooks.checkpoint.interval == 2
        assert fitted.custom_hooks[0].momentum == pytest.approx(0.02)
        assert fitted.finetune.notes[0] == 'train_cfg counts iterations: 2 epochs of one process are 4 of them'
        run_tool('train', written, '--work-dir', tmp_path / 'run')
        assert (tmp_path / 'run' / 'iter_4.pth').is_file()
        (tmp_path / 'run' / 'iter_4.pth').unlink()
        run_tool('train', written, '--work-dir', tmp_path / 'run', '--resume', tmp_path / 'run' / 'iter_2.pth')
        assert (tmp_path / 'run' / 'iter_4.pth').is_file()


@pytest.mark.parametrize(('arguments', 'says'), [
    (['--finetune', '0'], '--finetune: expected an integer of at least 1'),
    (['--finetune', '-3'], '--finetune: expected an integer of at least 1'),
    (['--finetune', 'x'], '--finetune: expected an integer of at least 1, got x'),
    (['--finetune', '3', '--lr-scale', '0'], '--lr-scale: expected a number above 0, got 0'),
    (['--finetune', '3', '--lr-scale', '-1'], '--lr-scale: expected a number above 0, got -1'),
    (['--finetune', '3', '--lr-scale', '1e9'], '(--lr-scale) is a factor of the config\'s own learning rate, above 0 '
     'and at most 10, but got 1000000000.0'),
    (['--lr-scale', '0.1'], '--lr-scale belongs to --finetune EPOCHS'),
    (['--finetune', '3', '--cfg-options', 'optim_wrapper=None'], 'no optim_wrapper'),
    (['--finetune', '3', '--cfg-options', 'train_cfg=None'], 'neither max_epochs nor max_iters'),
])
@pytest.mark.parametrize('tool', ['prune', 'export_compact'])
def test_bad_input(tool, arguments, says, dense_config_file, dense_checkpoint, pruning_run, tmp_path, capsys):
    given = {'prune': [dense_config_file, dense_checkpoint, '--algorithm', 'l1', '--ratio', '0.5', '--bn-batches', '0'],
             'export_compact': [pruning_run / 'run.py', pruning_run / 'epoch_1.pth']}[tool]
    with pytest.raises(SystemExit) as stopped:
        run_tool(tool, *given, '--input-size', 32, 32, '-o', tmp_path / 'out', *arguments)
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / 'out').exists()
