"""Every config that names a model can be read, and its model built; what configs share stands in a base."""
from difflib import SequenceMatcher
from itertools import combinations
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmprune_ext.settings.reading import read_config

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
# Pruning configs need checkpoints or other files; their own tests build them.
NAMES = sorted(str(path.relative_to(CONFIGS)) for folder in ('_base_/models', 'cifar', 'demo', 'small')
               for path in (CONFIGS / folder).glob('*.py'))
PRUNING = sorted(str(path.relative_to(CONFIGS)) for path in (CONFIGS / 'pruning').rglob('*.py'))
# Lines of code in a row that two pruning configs may have in common: how a model is put together, or a few ratios.
COMMON = 5


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


def code(path: Path) -> list[str]:
    lines = [line.strip() for line in path.read_text().splitlines()]
    return [line for line in lines if line and not line.startswith('#')]


def test_pruning_configs_state_what_is_their_own():
    """More than a few lines that two of them repeat belong into configs/_base_/pruning, or one is the other's base."""
    repeated = {}
    for pair in combinations(PRUNING, 2):
        first, second = (code(CONFIGS / name) for name in pair)
        match = SequenceMatcher(None, first, second, autojunk=False).find_longest_match()
        if match.size > COMMON:
            repeated[pair] = first[match.a:match.a + match.size]
    assert not repeated


@pytest.mark.parametrize('name', PRUNING)
def test_parts_of_a_pruning_config_do_not_stay_beside_its_model(name):
    """They would be written into the config of the run and of the compact model, where nothing reads them."""
    folder = name.split('/')[1]
    pytest.importorskip({'mmcls': 'mmpretrain'}.get(folder, folder))
    config = read_config(str(CONFIGS / name))
    assert config.model.type.startswith('mmprune_ext.')
    assert not {'method', 'architecture', 'checkpoint', 'ratios', 'insensitive'} & set(config)
