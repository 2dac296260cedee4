"""What tests of pruning whole models share: real data, a tiny network on it, its trained weights."""
from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from tests.ranks import environment, free_port

DATA = Path(__file__).parent / 'data'
ROOT = Path(__file__).resolve().parents[1]
# Tools trace anew, unless a test says where they may keep units.
os.environ['MMPRUNE_CACHE'] = ''


@pytest.fixture(autouse=True)
def _default_scope() -> Iterator[None]:
    """Leave mmengine's default scope as it was: it is global, and configs and tools set it."""
    before = DefaultScope._instance_dict.copy()
    yield
    DefaultScope._instance_dict = before  # overwrite_default_scope leaves another object than it found


@pytest.fixture
def mmpretrain_scope() -> Iterator[None]:
    """The Runner sets mmengine's default scope; give back the one before."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


@pytest.fixture(scope='session')
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The handwritten digits as class folders; read only."""
    from mmprune_ext.datasets import write_digits
    return write_digits(tmp_path_factory.mktemp('data') / 'digits')


@pytest.fixture(scope='session')
def tiny_config(digits: Path) -> Callable[..., Config]:
    """Return a function that makes the config of the tiny classifier, with settings changed."""
    def make(options: Mapping[str, Any] | None = None) -> Config:
        config = Config.fromfile(DATA / 'digits_tiny.py')
        for split in ('train', 'val', 'test'):
            config[f'{split}_dataloader'].dataset.data_root = str(digits)
        config.merge_from_dict(dict(options or {}))
        # Runners of one process that start in the same second would share their logger.
        config.experiment_name = uuid.uuid4().hex
        return config
    return make


@pytest.fixture(scope='session')
def dense_checkpoint(tiny_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the tiny classifier after a few epochs; read only."""
    from mmengine.runner import Runner
    folder = tmp_path_factory.mktemp('dense')
    Runner.from_cfg(tiny_config({'work_dir': str(folder), 'train_cfg.max_epochs': 3,
                                 'train_cfg.val_interval': 3})).train()
    return folder / 'epoch_3.pth'


@pytest.fixture
def classifier() -> Callable[..., nn.Module]:
    """Return a function that builds an mmpretrain classifier from its parts, with random statistics."""
    import mmpretrain.models  # noqa: F401  registers the parts

    import mmprune_ext  # noqa: F401

    def build(backbone: Mapping[str, Any], features: int, classes: int = 10,
              neck: Mapping[str, Any] | None = None, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            model = MODELS.build(dict(
                type='ImageClassifier', backbone=dict(backbone),
                neck=dict(neck or {'type': 'GlobalAveragePooling'}),
                head=dict(type='LinearClsHead', num_classes=classes, in_channels=features,
                          loss=dict(type='CrossEntropyLoss'))))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.2)
                nn.init.normal_(module.running_mean, std=0.2)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
        return model
    return build


@pytest.fixture(scope='session')
def dense_config_file(tiny_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of the tiny classifier as a file; read only."""
    path = tmp_path_factory.mktemp('config') / 'tiny.py'
    tiny_config().dump(path)
    return path


@pytest.fixture(scope='session')
def pruned(tiny_config: Callable[..., Config], dense_checkpoint: Path,
           tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that tools/prune.py writes for half of the tiny classifier's MACs; read only."""
    from mmprune_ext.workflows.pruning import prune_model
    folder = tmp_path_factory.mktemp('pruned') / 'l1'
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        prune_model(tiny_config(), str(dense_checkpoint), folder, 'l1', {}, budget={'flops': 0.5},
                    input_size=(32, 32), bn_batches=2)
    return folder


@pytest.fixture(scope='session')
def pruning_config(tiny_config: Callable[..., Config], dense_checkpoint: Path) -> Callable[..., Config]:
    """Return a function that makes the config of a run that prunes the tiny classifier and trains it."""
    def make(options: Mapping[str, Any] | None = None) -> Config:
        config = tiny_config()
        config.model = dict(
            type='mmprune_ext.L1Norm', architecture=config.model, checkpoint=str(dense_checkpoint),
            mutator=dict(type='mmprune_ext.L1Mutator', demo_inputs=[32, 32]), target_pruning_ratio=0.4)
        config.merge_from_dict(dict(options or {}))
        return config
    return make


@pytest.fixture(scope='session')
def pruning_run(pruning_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folder of a pruning run of one epoch: run.py and epoch_1.pth; read only."""
    from mmengine.runner import Runner
    folder = tmp_path_factory.mktemp('run')
    config = pruning_config({'work_dir': str(folder)})
    Runner.from_cfg(config).train()
    config.dump(folder / 'run.py')
    return folder


SAVE_OF_RANK = """\
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class SaveOfRank(Hook):
    def __init__(self, folder):
        self.folder = folder

    def after_train_epoch(self, runner):
        path = f'{self.folder}/epoch{runner.epoch}_rank{get_rank()}.pth'
        torch.save(runner.model.module.state_dict(), path)
"""


@pytest.fixture
def train_on_two_ranks(tmp_path: Path) -> Callable[[Config], Callable[[int], list[dict[str, Any]]]]:
    """Return a function that trains a config in two gloo processes.

    It gives the weights that each rank held after an epoch, counted from 0.
    """
    def train(config: Config) -> Callable[[int], list[dict[str, Any]]]:
        config.custom_hooks = [*config.custom_hooks, dict(type='SaveOfRank', folder=str(tmp_path))]
        config.custom_imports = dict(imports=['mmprune_ext', 'save_of_rank'], allow_failed_imports=False)
        config.dump(tmp_path / 'run.py')
        (tmp_path / 'save_of_rank.py').write_text(SAVE_OF_RANK)
        run = subprocess.run(['sh', str(ROOT / 'tools' / 'dist_train.sh'), str(tmp_path / 'run.py'), '2',
                              f'--work-dir={tmp_path / "work"}'], capture_output=True, text=True,
                             env={**environment(tmp_path), 'PYTHON': sys.executable, 'PORT': str(free_port())})
        assert run.returncode == 0, (run.stdout + run.stderr)[-3000:]
        return lambda epoch: [torch.load(tmp_path / f'epoch{epoch}_rank{rank}.pth', weights_only=False)
                              for rank in range(2)]
    return train
