"""Fisher in mmengine's Runner: what is chosen when a model is built, alone and in two processes."""
from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmprune_ext.algorithms import Fisher
from mmprune_ext.compact.checkpoint import load_weights
from mmprune_ext.compact.compact_model import build_architecture
from mmprune_ext.errors import ConfigError
from mmprune_ext.mutators import FisherMutator
from mmprune_ext.registry import MODELS

ROOT = Path(__file__).resolve().parents[2]


def build(config: Config) -> Fisher:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build({**config.model, 'data_preprocessor': config.data_preprocessor})


@pytest.fixture
def fisher_config(tiny_config: Callable[..., Config], dense_checkpoint: Path) -> Callable[..., Config]:
    """Return a function that makes the config of a Fisher run of the tiny classifier."""
    def make(**options: Any) -> Config:
        config = tiny_config()
        data = config.train_dataloader.dataset
        data.pipeline = [data.pipeline[0], data.pipeline[-1]]  # no random crop
        config.model = {
            'type': 'mmprune_ext.Fisher', 'architecture': config.model, 'checkpoint': str(dense_checkpoint),
            'mutator': dict(type='mmprune_ext.FisherMutator', demo_inputs=[32, 32]),
            'calibration': dict(num_batches=4, dataloader=config.train_dataloader), **options}
        return config
    return make


def dense_scores(config: Config, batches: int) -> dict[str, torch.Tensor]:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = build_architecture(config.model.architecture, config.data_preprocessor)
        load_weights(model, config.model.checkpoint)
        mutator = FisherMutator(dict(num_batches=batches, dataloader=config.train_dataloader), demo_inputs=(32, 32))
        mutator.prepare(model)
        return mutator.scores(model)


def test_compact_when_built(fisher_config):
    """A global budget ranks the scores of all units as they are; those that stay have the highest."""
    config = fisher_config(budget=dict(channels=0.5, spread='global'))
    model = build(config)
    scores = dense_scores(config, 4)
    kept = {name: unit.indices for name, unit in model.units.prunable.items()}
    assert sum(map(len, kept.values())) == sum(map(len, scores.values())) // 2
    # The last channel of a unit stays whatever its score.
    stay = [scores[name][places].min() for name, places in kept.items() if len(places) > 1]
    gone = [values[[place for place in range(len(values)) if place not in kept[name]]].max()
            for name, values in scores.items() if len(values) > len(kept[name])]
    assert max(gone) <= min(stay)
    assert len({len(places) for places in kept.values()}) > 1
    assert type(model).algorithm_type is Fisher


def test_calibration_beside_a_mutator_that_is_built(fisher_config):
    config = fisher_config(target_pruning_ratio=0.5)
    with pytest.raises(ConfigError, match='Fisher: give calibration to the mutator, which is built already'):
        Fisher(config.model.architecture, FisherMutator(), 0.5, calibration=dict(num_batches=1))


RANK = """
import sys
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmprune_ext.compact.checkpoint import load_weights
from mmprune_ext.compact.compact_model import build_architecture
from mmprune_ext.mutators import FisherMutator

config, out = Config.fromfile(sys.argv[1]), sys.argv[2]
dist.init_process_group('gloo')
init_default_scope('mmpretrain')
model = build_architecture(config.model.architecture, config.data_preprocessor)
load_weights(model, config.model.checkpoint)
plain = type(model).loss


def loss(self, *args, **kwargs):
    if dist.is_initialized():
        dist.all_reduce(torch.zeros(1))  # as detectors' losses do; a process without a batch would not answer
    return plain(self, *args, **kwargs)


found = {}
for number in (4, 1):
    mutator = FisherMutator(dict(num_batches=number, dataloader=config.train_dataloader), demo_inputs=(32, 32))
    mutator.prepare(model)
    type(model).loss = loss
    found[number] = mutator.scores(model)
    type(model).loss = plain
torch.save(found, f'{out}/rank{dist.get_rank()}.pth')
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.e2e
def test_two_processes_score_as_one(fisher_config, tmp_path):
    config = fisher_config()
    config.dump(tmp_path / 'config.py')
    (tmp_path / 'rank.py').write_text(RANK)
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'PYTHONPATH': str(ROOT)}
    run = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2', f'--master_port={port}',
                          tmp_path / 'rank.py', tmp_path / 'config.py', tmp_path],
                         env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    ranks = [torch.load(tmp_path / f'rank{rank}.pth') for rank in range(2)]
    alone = dense_scores(config, 4)
    for number in (4, 1):
        for name, values in ranks[0][number].items():
            assert torch.equal(values, ranks[1][number][name])
    for name, values in alone.items():
        torch.testing.assert_close(ranks[0][4][name], values, rtol=1e-4, atol=1e-18)
