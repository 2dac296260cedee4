"""Group Fisher pruning (Liu et al., "Group Fisher Pruning for Practical Network Compression", ICML 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mmprune_ext.analysis import CostModel, complexity
from mmprune_ext.errors import ConfigError
from mmprune_ext.mutators.base import ChannelMutator
from mmprune_ext.mutators.calibration import Calibration, scores_of
from mmprune_ext.mutators.gate_gradients import GateGradients
from mmprune_ext.registry import MODELS
from mmprune_ext.units.demo_inputs import DemoInputs

# What the cost model calls what a channel costs.
COSTS = {'memory': 'volume', 'macs': 'macs', 'params': 'params'}


@MODELS.register_module()
class FisherMutator(ChannelMutator):
    """Score a channel by the squared derivatives of the loss by a gate on it, divided by what it costs.

    Source: arXiv 2108.00708: over samples, the sum of the squared derivative, which is summed
    over the layers of the channel's unit before (:class:`mmprune_ext.mutators.gate_gradients.GateGradients`).

    Args:
        calibration: The data to score on: ``dict(num_batches=5, dataloader=...)``
            (:class:`mmprune_ext.mutators.calibration.Calibration`).
        cost: What the sum is divided by: what one channel less of the unit, and of no other, saves of
            ``'memory'`` (output values of convolution and linear layers), ``'macs'`` (their multiply-accumulates) or
            ``'params'``; ``None`` for nothing.
        scope, demo_inputs, exclude, divisor, min_channels, round_up, whole_heads: As in :class:`ChannelMutator`.

    Raises:
        ConfigError: For an unknown cost.
    """

    comparable = True

    def __init__(self, calibration: Mapping[str, Any] | None = None, cost: str | None = 'memory',
                 scope: str | Sequence[str] = 'backbone', demo_inputs: DemoInputs = None,
                 exclude: str | Sequence[str] = (), divisor: int = 1, min_channels: int = 1,
                 round_up: bool = False, whole_heads: bool = False) -> None:
        super().__init__(scope, demo_inputs, exclude, divisor, min_channels, round_up, whole_heads)
        if cost is not None and cost not in COSTS:
            raise ConfigError(f'FisherMutator: cost should be one of {", ".join(COSTS)}, or None, but got {cost!r:.80}')
        self.calibration = Calibration.from_config(calibration)
        self.cost = cost

    def scores(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the scores of all prunable units, from one pass over the data, forward and backward."""
        costs = self._costs(model)
        found = scores_of(GateGradients(model, self.units, self.calibration.seed), self.calibration)
        return {name: values / costs[name] for name, values in found.items()}

    def _costs(self, model: nn.Module) -> dict[str, float]:
        """Return what a channel of each prunable unit costs, at least 1."""
        if self.cost is None:
            return dict.fromkeys(self.units.prunable, 1.0)
        counted = complexity(model, self.counting_inputs(model), flops=False)
        model_costs = CostModel(self.units, counted.per_layer, model, dense_outputs=counted.per_layer_outputs)
        savings = dict(zip(model_costs.names, model_costs.savings({}, COSTS[self.cost]).tolist()))
        return {name: max(savings[name], 1.0) for name in self.units.prunable}

    def score_settings(self) -> dict[str, Any]:
        """Return how much data the scores are of, and what they are divided by."""
        return {'num_batches': self.calibration.num_batches, 'seed': self.calibration.seed, 'cost': self.cost}
