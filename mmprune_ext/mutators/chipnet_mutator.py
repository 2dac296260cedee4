"""The mutator of ChipNet: gates on channel units, what they cost, and which channels they leave."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmprune_ext.analysis import CostModel, complexity
from mmprune_ext.analysis.soft_cost import SoftCost
from mmprune_ext.errors import PruningError, TargetError
from mmprune_ext.mutators.base import ChannelMutator
from mmprune_ext.ops.channel_gate import ChannelGates
from mmprune_ext.registry import MODELS
from mmprune_ext.scores.heaviside import GateSchedule
from mmprune_ext.targets.budget import Keeps, fill_by_rank, fit, rank_path, scope_hint
from mmprune_ext.targets.gate_budget import GateBudget
from mmprune_ext.units import ChannelUnit, UnitSet
from mmprune_ext.units.demo_inputs import DemoInputs, image_shape
from mmprune_ext.units.tracing.gate_sites import GateSite, find_gate_sites

# What the cost model calls the resources of a budget.
KINDS = {'flops': 'macs', 'params': 'params', 'channels': 'channels', 'volume': 'volume'}


@MODELS.register_module()
class ChipNetMutator(ChannelMutator):
    """Put gates on the channels of a model, price them, and choose the channels that stay by them.

    The arguments are those of :class:`ChannelMutator`. A channel's score is its ``psi``: as all gates are as
    sharp, a threshold on the gates is one on ``psi``, where none of them is rounded to 1.
    """

    learns_widths = True
    silences = True
    budget: GateBudget
    _sites: list[GateSite]
    _soft: dict[str, SoftCost]
    _cost: CostModel
    _places: Tensor

    def gate(self, model: nn.Module, budget: GateBudget, schedule: GateSchedule) -> ChannelGates:
        """Return gates for the prunable units of a dense model, which :meth:`attach` puts on its layers.

        Args:
            model: The dense model, whose units are known.
            budget: What is to remain.
            schedule: How the gates sharpen.

        Raises:
            TargetError: If the smallest widths exceed the budget.
        """
        inputs = budget.input_size
        if inputs is None:
            # Not the cost of the traced pass, which runs few regions of a two-stage detector.
            inputs = image_shape(model) if self.demo_inputs is None else self.demo_inputs
        counted = complexity(model, inputs, flops=False)
        self.budget = budget
        self._cost = CostModel(self.units, counted.per_layer, model, budget.scope, counted.per_layer_outputs)
        self._soft = {name: SoftCost(self._cost, KINDS[name]) for name in budget.shares}
        self._places = torch.tensor([i for i, unit in enumerate(self.units.values()) if unit.prunable])
        self._check_reachable(model, inputs)
        self._sites = find_gate_sites(model, self.units, self.demo_inputs)
        sizes = {name: (unit.num_channels, unit.round_keep(0)) for name, unit in self.units.prunable.items()}
        return ChannelGates(sizes, schedule)

    def _check_reachable(self, model: nn.Module, inputs: DemoInputs) -> None:
        smallest = {name: unit.round_keep(0) for name, unit in self.units.prunable.items()}
        left = self.shares(smallest)
        for name, share in self.budget.shares.items():
            if left[name] > share:
                raise TargetError(
                    f'budget: {name} cannot be reduced to {share:.1%}; the smallest widths that min_channels and the '
                    f'units that cannot be pruned allow leave {left[name]:.1%}'
                    + scope_hint(self.units, name, model, self.budget.scope, inputs))

    def attach(self, model: nn.Module, gates: ChannelGates) -> None:
        """Put gates on a model's layers, where they are not yet.

        Conversions between kinds of batch norm put new layers in the place of old ones.
        """
        for site in self._sites:
            site.attach(model, gates)

    def soft_shares(self, counts: Tensor) -> dict[str, Tensor]:
        """Return the share of each resource of the budget that soft counts leave, scalars.

        Args:
            counts: Channels that stay of each prunable unit, ``(prunable units,)``.
        """
        whole = torch.as_tensor(self._cost.sizes).to(counts)
        counts = whole.index_copy(0, self._places.to(counts.device), counts)
        return {name: soft(counts) for name, soft in self._soft.items()}

    def shares(self, keeps: Mapping[str, int]) -> dict[str, float]:
        """Return the share of each resource of the budget that kept numbers leave."""
        cost = self._cost
        return {name: getattr(cost, KINDS[name])(keeps) / getattr(cost, f'dense_{KINDS[name]}')
                for name in self.budget.shares}

    def score(self, model: nn.Module, unit: ChannelUnit) -> Tensor:
        """Return ``psi`` of the unit's channels, ``(num_channels,)``.

        Raises:
            PruningError: If it is not finite.
        """
        psi = model.channel_gates[unit.name].psi.detach().cpu()
        if not bool(psi.isfinite().all()):
            raise PruningError('its gates hold NaN or infinity; did the search diverge? Lower its learning rate, or '
                               'that of the gates (paramwise_cfg.custom_keys.channel_gates.lr_mult)')
        return psi

    def choose(self, model: nn.Module, ratios: Any = None, budget: Any = None,
               scores: Mapping[str, Tensor] | None = None) -> UnitSet:
        """Choose the channels above the lowest threshold on the gates that meets the budget.

        What this leaves of the budget, the price of one channel, is filled up with the next ones that fit.

        Args:
            model: The gated model.
            ratios: Not taken: how much stays of a unit is learned.
            budget: Not taken: it is that of :meth:`gate`.
            scores: ``psi`` by unit, if not that of the model.

        Raises:
            TargetError: If a target is given.
            PruningError: If a ``psi`` is not finite: training diverged.
        """
        scores = self.scores(model) if scores is None else scores
        self.choose_best(self.kept_numbers(model, ratios, budget, scores), scores)
        return self.units

    def kept_numbers(self, model: nn.Module, ratios: Any = None, budget: Any = None,
                     scores: Mapping[str, Tensor] | None = None) -> Keeps:
        """Return how many channels of each unit the lowest threshold on the gates leaves; see :meth:`choose`."""
        if ratios is not None or budget is not None:
            raise TargetError('ChipNet: what stays of a unit is learned within the budget that the model was built '
                              'with; give no other target')
        scores = self.scores(model) if scores is None else scores

        def used(keeps: Keeps) -> float:
            """Return the part of the budget that is used, of the resource that is shortest."""
            return max(share / self.budget.shares[name] for name, share in self.shares(keeps).items())
        keeps = fit(self.units, rank_path(self.units, scores), used, 1.0)
        return fill_by_rank(self.units, keeps, scores, used, 1.0)
