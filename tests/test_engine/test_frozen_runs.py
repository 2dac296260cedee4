"""A run of a model all of whose parameters are frozen ends before anything is trained."""
from types import SimpleNamespace

import pytest
from torch import nn

from mmprune_ext.engine import runs
from mmprune_ext.errors import ConfigError


def test_nothing_to_train():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    runs._check_trainable(SimpleNamespace(model=model))
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match='nothing will be trained: all 4 parameters of the model are frozen'):
        runs._check_trainable(SimpleNamespace(model=model))
    model[1].bias.requires_grad_(True)
    runs._check_trainable(SimpleNamespace(model=model))
    runs._check_trainable(SimpleNamespace(model=nn.ReLU()))


@pytest.mark.e2e
def test_train_py_says_so(dense_config_file, tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    from tests.in_process import run_tool
    (tmp_path / 'frozen_net.py').write_text(
        'from mmpretrain.models import ImageClassifier\nfrom mmpretrain.registry import MODELS\n\n\n'
        '@MODELS.register_module(force=True)\nclass FrozenNet(ImageClassifier):\n'
        '    def __init__(self, **settings):\n'
        '        super().__init__(**settings)\n        self.requires_grad_(False)\n')
    config = tmp_path / 'frozen.py'
    config.write_text(f"_base_ = ['{dense_config_file}']\n"
                      "custom_imports = dict(imports=['mmprune_ext', 'frozen_net'])\nmodel = dict(type='FrozenNet')\n")
    with pytest.raises(SystemExit) as end:
        run_tool('train', config, '--work-dir', tmp_path / 'work')
    assert end.value.code == 2
    assert 'nothing will be trained: all' in capsys.readouterr().err
