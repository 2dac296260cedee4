"""Files that a config names, from the folder of the run and from beside the config."""
from __future__ import annotations

from pathlib import Path

import pytest

from mmprune_ext.settings.reading import read_config


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a config in a folder beside the one that the run is in."""
    folders = [tmp_path / name for name in ('configs', 'run')]
    for folder in folders:
        folder.mkdir()
    monkeypatch.chdir(folders[1])
    path = folders[0] / 'run.py'
    path.write_text("default_scope = 'mmpretrain'\nload_from = 'dense.pth'\nmodel = dict(type='mmprune_ext.L1Norm', "
                    "architecture=dict(type='ImageClassifier', backbone=dict(type='ResNet', depth=18, init_cfg=dict("
                    "type='Pretrained', checkpoint='w/backbone.pth'))), scores='none.json', "
                    "target_pruning_ratio='[0.]' + '+[0.1]' * 99)\n")
    return path


def test_files_beside_the_config(config, capsys):
    (config.parent / 'w').mkdir()
    for name in ('dense.pth', 'w/backbone.pth'):
        (config.parent / name).touch()
    found = read_config(str(config))
    assert found.load_from == str(config.parent / 'dense.pth')
    assert found.model.architecture.backbone.init_cfg.checkpoint == str(config.parent / 'w' / 'backbone.pth')
    assert found.model.scores == 'none.json'  # of which the message will tell where it was looked for
    printed = capsys.readouterr()
    assert printed.out == '' and 'load_from: dense.pth is taken from the folder of the config: ' in printed.err


def test_the_folder_of_the_run_comes_first(config, capsys):
    for folder in (config.parent, Path.cwd()):
        (folder / 'dense.pth').touch()
    assert read_config(str(config)).load_from == 'dense.pth'
    assert read_config(str(config), {'load_from': 'https://host/a.pth'}).load_from == 'https://host/a.pth'
    assert capsys.readouterr().err == ''
