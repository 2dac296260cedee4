"""Fisher in mmengine's Runner: what is chosen when a model is built, alone and in two processes."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.models import ImageClassifier
from torch import Tensor

from mmprune_ext.algorithms import Fisher
from mmprune_ext.compact.checkpoint import load_weights
from mmprune_ext.compact.compact_model import build_architecture
from mmprune_ext.errors import ConfigError
from mmprune_ext.mutators import FisherMutator
from mmprune_ext.registry import MODELS
from tests.ranks import on_two_ranks


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


def dense_scores(config: Config, batches: int) -> dict[str, Tensor]:
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


def scores_on_rank(path: str) -> dict[int, dict[str, Tensor]]:
    """Return the scores on four batches, and on one, which only the first process has."""
    plain = ImageClassifier.loss

    def loss(model: ImageClassifier, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        if dist.is_initialized():
            dist.all_reduce(torch.zeros(1))  # as detectors' losses do; a process without a batch would not answer
        return plain(model, *args, **kwargs)

    ImageClassifier.loss = loss
    return {number: dense_scores(Config.fromfile(path), number) for number in (4, 1)}


@pytest.mark.e2e
def test_two_processes_score_as_one(fisher_config, tmp_path):
    config = fisher_config()
    config.dump(tmp_path / 'config.py')
    ranks = on_two_ranks(scores_on_rank, tmp_path, tmp_path / 'config.py')
    alone = dense_scores(config, 4)
    for number in (4, 1):
        for name, values in ranks[0][number].items():
            assert torch.equal(values, ranks[1][number][name])
    for name, values in alone.items():
        torch.testing.assert_close(ranks[0][4][name], values, rtol=1e-4, atol=1e-18)
