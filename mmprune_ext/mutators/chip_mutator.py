"""CHIP (Sui et al., "CHannel Independence-based Pruning for Compact Neural Networks", 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mmprune_ext.mutators.base import ChannelMutator
from mmprune_ext.mutators.calibration import Calibration, calibrate
from mmprune_ext.registry import MODELS
from mmprune_ext.units.demo_inputs import DemoInputs


@MODELS.register_module()
class CHIPMutator(ChannelMutator):
    """Score a channel by its independence of the other channels of its feature map.

    Source: arXiv 2110.13981, equation 3 and section 3.3: the mean over images. Where several layers
    make a unit's channels, the mean over these layers, each on its map after its activation.

    Args:
        calibration: The data to score on: ``dict(num_batches=5, dataloader=...)``
            (:class:`mmprune_ext.mutators.calibration.Calibration`).
        scope, demo_inputs, exclude, divisor, min_channels, round_up, whole_heads: As in :class:`ChannelMutator`.
    """

    sparsity_layouts = ('units', 'chip')

    def __init__(self, calibration: Mapping[str, Any] | None = None,
                 scope: str | Sequence[str] = 'backbone', demo_inputs: DemoInputs = None,
                 exclude: str | Sequence[str] = (), divisor: int = 1, min_channels: int = 1,
                 round_up: bool = False, whole_heads: bool = False) -> None:
        super().__init__(scope, demo_inputs, exclude, divisor, min_channels, round_up, whole_heads)
        self.calibration = Calibration.from_config(calibration)

    def scores(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the scores of all prunable units, from one pass over the data."""
        return calibrate(model, self.units, self.calibration)

    def score_settings(self) -> dict[str, Any]:
        """Return how much data the scores are of."""
        return {'num_batches': self.calibration.num_batches, 'seed': self.calibration.seed}
