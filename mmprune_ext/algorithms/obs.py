"""Pruning by what readers can make up for, as an algorithm for the Runner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from mmprune_ext.algorithms.base import OneShotAlgorithm
from mmprune_ext.compact.compact_model import Units
from mmprune_ext.errors import ConfigError
from mmprune_ext.mutators import OBSMutator
from mmprune_ext.mutators.score_file import ScoreFile
from mmprune_ext.registry import MODELS
from mmprune_ext.repair.mending import Mending
from mmprune_ext.targets.target import RatioTarget


@MODELS.register_module()
class OBS(OneShotAlgorithm):
    """Prune a pretrained model by the error that is left where the layers that read a channel make up for it.

    The channels go for which weights solved for by least squares lose least, so that it belongs together with
    such a repair. The inputs of the layers are those of a few batches of training data, which the dense model runs on
    while this model is being built::

        model = dict(
            type='mmprune_ext.OBS',
            architecture=dict(type='ImageClassifier', ...),
            checkpoint='resnet56.pth',
            calibration=dict(num_batches=8, dataloader={{_base_.train_dataloader}}),
            budget=dict(flops=0.5))

    This project's tools fill in the dataloader where ``calibration`` has none.

    Args:
        calibration: The data to score on (:class:`mmprune_ext.mutators.OBSMutator`); not used with ``scores`` or
            ``units``.
        architecture, mutator, target_pruning_ratio, budget, scores, checkpoint, units, init_cfg,
            repair, data_preprocessor: As in :class:`OneShotAlgorithm`, with an ``OBSMutator``.
    """

    short_name = 'obs'
    mutator_type = 'mmprune_ext.OBSMutator'
    needs_data = True

    def __init__(self, architecture: nn.Module | Mapping[str, Any],
                 mutator: OBSMutator | Mapping[str, Any] | None = None,
                 target_pruning_ratio: RatioTarget | None = None,
                 budget: Mapping[str, Any] | None = None,
                 scores: ScoreFile | str | None = None,
                 checkpoint: str | None = None,
                 units: Units | None = None,
                 init_cfg: Mapping[str, Any] | None = None,
                 calibration: Mapping[str, Any] | None = None, *,
                 repair: Mapping[str, Any] | Mending | None = None,
                 data_preprocessor: Mapping[str, Any] | None = None) -> None:
        if calibration is not None:
            if mutator is not None and not isinstance(mutator, Mapping):
                raise ConfigError('OBS: give calibration to the mutator, which is built already')
            mutator = {**(mutator or {}), 'calibration': calibration}
        super().__init__(architecture, mutator, target_pruning_ratio, budget, scores, checkpoint, units, init_cfg,
                         repair=repair)
