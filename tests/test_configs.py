"""Every config that names a model can be read, and its model built."""
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
# Pruning configs need checkpoints or other files; their own tests build them.
NAMES = sorted(str(path.relative_to(CONFIGS)) for folder in ('_base_/models', 'cifar', 'demo', 'small')
               for path in (CONFIGS / folder).glob('*.py'))


def build(config: Config) -> nn.Module:
    init_default_scope(config.get('default_scope', 'mmpretrain'))
    return MODELS.build(config.model)


@pytest.mark.parametrize('name', NAMES)
def test_model_can_be_built(name):
    config = Config.fromfile(CONFIGS / name)
    if 'model' not in config:
        pytest.skip('a fragment without a model')
    if config.model.backbone.get('type') == 'mmprune_ext.WideResNet':
        with torch.device('meta'):  # 36M parameters: seconds on a CPU, nothing to learn from them
            model = build(config)
    else:
        model = build(config)
    assert sum(parameter.numel() for parameter in model.parameters()) > 1000


@pytest.mark.parametrize('name', [name for name in NAMES if not name.startswith('_base_')])
def test_a_runnable_config_is_whole(name):
    config = Config.fromfile(CONFIGS / name)
    needed = {'model', 'data_preprocessor', 'train_dataloader', 'val_dataloader', 'val_evaluator',
              'test_dataloader', 'test_evaluator', 'optim_wrapper', 'param_scheduler', 'train_cfg',
              'val_cfg', 'test_cfg', 'default_scope', 'randomness'}
    assert needed <= set(config)
    # Relative, so that a config runs on every machine.
    assert not Path(config.train_dataloader.dataset.data_root).is_absolute()
