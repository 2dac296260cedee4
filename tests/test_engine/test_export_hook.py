"""A run that exports itself, and how the test tool finds what it exported."""
from __future__ import annotations

import logging

import pytest
import torch
from mmengine.runner import Runner

from mmprune_ext.compact.checkpoint import read_checkpoint
from mmprune_ext.engine import runs
from mmprune_ext.errors import CheckpointError
from mmprune_ext.settings import reading
from mmprune_ext.workflows.pruning import export_run

HOOK = [dict(type='mmprune_ext.ExportHook')]


@pytest.fixture(scope='module')
def exporting_run(pruning_config, tmp_path_factory):
    """The config and the work folder of a pruning run of one epoch that exported itself; read only."""
    folder = tmp_path_factory.mktemp('exporting')
    config = pruning_config({'work_dir': str(folder), 'custom_hooks': HOOK})
    Runner.from_cfg(config).train()
    return config, folder


def test_the_last_checkpoint_is_exported(exporting_run, tmp_path):
    config, folder = exporting_run
    written = read_checkpoint(folder / 'compact' / 'compact.pth')['state_dict']
    by_hand = export_run(config, str(folder / 'epoch_1.pth'), tmp_path)
    expected = read_checkpoint(by_hand.checkpoint)['state_dict']
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[key], expected[key]) for key in expected)
    assert (folder / 'compact' / 'units.json').read_text() == by_hand.units.read_text()
    assert 'ExportHook' not in (folder / 'compact' / 'compact_config.py').read_text()


def test_a_run_without_checkpoints_says_so(pruning_config, tmp_path, caplog):
    config = pruning_config({'work_dir': str(tmp_path), 'custom_hooks': HOOK,
                             'default_hooks.checkpoint.interval': 100, 'default_hooks.checkpoint.save_last': False})
    runner = Runner.from_cfg(config)
    with caplog.at_level(logging.WARNING, logger=runner.logger.name):
        runner.logger.addHandler(caplog.handler)
        runner.train()
    assert 'wrote no checkpoint' in caplog.text
    assert not (tmp_path / 'compact').exists()


def compact_config(folder, named, work_dir):
    config = reading.read_config(str(folder / 'compact' / 'compact_config.py'))
    config.model.init_cfg.checkpoint = str(named)
    config.work_dir = str(work_dir)
    return config


def test_weights_of_the_work_folder_stand_in_for_missing_ones(exporting_run, tmp_path):
    _, folder = exporting_run
    exported = folder / 'compact' / 'compact.pth'
    config = compact_config(folder, tmp_path / 'none.pth', folder)
    assert runs.set_checkpoint(config, None) is None
    assert config.model.init_cfg.checkpoint == str(exported)
    # A file that is there is what the config means.
    (tmp_path / 'own.pth').touch()
    config = compact_config(folder, tmp_path / 'own.pth', folder)
    runs.set_checkpoint(config, None)
    assert config.model.init_cfg.checkpoint == str(tmp_path / 'own.pth')


def test_no_weights_anywhere(exporting_run, tmp_path):
    _, folder = exporting_run
    config = compact_config(folder, tmp_path / 'none.pth', tmp_path)
    with pytest.raises(CheckpointError, match=r'the config names the weights \S*none\.pth: no such file, and '
                       r'\S*compact holds none either; export a trained run with tools/export_compact\.py -o '
                       r'\S*compact, or give weights by --checkpoint'):
        runs.set_checkpoint(config, None)
