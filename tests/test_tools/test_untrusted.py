"""A checkpoint with code in it: every tool refuses it in one line, and runs nothing of it."""
from __future__ import annotations

import pytest

from tests.test_compact.test_safe_files import crafted
from tests.test_tools.test_bad_inputs import Bad, Files, assert_refused, check
from tests.test_tools.test_bad_inputs import run_tool as run

ARGUMENTS = {
    'prune': lambda f, path: [f.config, path, '--algorithm', 'l1', '--flops', '0.5', '-o', f.out],
    'score': lambda f, path: [f.config, path, '--algorithm', 'chip', '-o', f.out],
    'test': lambda f, path: [f.config, path, '--work-dir', f.out],
    'export_compact': lambda f, path: [f.run / 'run.py', path, '-o', f.out],
    'deploy': lambda f, path: [f.config, path, '-o', f.out, '--backend', 'torch-export'],
    'repair': lambda f, path: [f.pruned / 'compact_config.py', '--dense', f.config, path, '-o', f.out],
    'sensitivity': lambda f, path: [f.config, path, '--algorithm', 'l1', '-o', f.out + '.json'],
    'train': lambda f, path: [f.run / 'run.py', '--work-dir', f.out, '--resume', path],
    'convert_checkpoint': lambda f, path: [path, f.out + '.pth'],
}


@pytest.fixture
def files(dense_config_file, dense_checkpoint, pruned, pruning_run, tmp_path) -> Files:
    return Files(dense_config_file, dense_checkpoint, pruned, pruning_run, tmp_path)


@pytest.mark.parametrize('tool', ARGUMENTS)
def test_a_crafted_checkpoint_runs_nothing(tool, files, monkeypatch, capsys):
    """It would make a folder where it lies."""
    path, ran = crafted(files.folder)
    says = ('crafted.pth', 'makedirs', *([] if tool == 'convert_checkpoint' else ['--trust-checkpoint']))
    assert_refused(Bad(tool, tool, lambda f: ARGUMENTS[tool](f, path), says), files, monkeypatch, capsys)
    assert not ran.exists()


def test_nor_do_weights_that_mmengine_reads_by_itself(files, monkeypatch, capsys):
    """Those that a part of a dense model starts from, while it is trained."""
    path, ran = crafted(files.folder)
    config = files.child('c.py', f"model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='{path}')))")
    monkeypatch.chdir(files.folder)
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run('train', config, '--work-dir', files.out)
    check(caught.value.code, capsys.readouterr().err, ('more than weights', 'makedirs', '--trust-checkpoint'))
    assert not ran.exists()


def test_a_trusted_one_is_read(files, capsys):
    """It has no weights of this model, which is what is said then."""
    path, ran = crafted(files.folder)
    with pytest.raises(SystemExit):
        run('prune', *ARGUMENTS['prune'](files, path), '--trust-checkpoint')
    assert ran.is_dir() and 'does not fit' in capsys.readouterr().err
