"""The mutator: what knows a model's channel units and changes the model by them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmprune_ext.errors import PruningError, TargetError
from mmprune_ext.targets.budget import measure_of
from mmprune_ext.targets.target import Budget, Keeps, RatioTarget, keeps_from_budget, keeps_from_ratios
from mmprune_ext.units import ChannelUnit, Reason, UnitSet, trace_units
from mmprune_ext.units.demo_inputs import DemoInputs, image_shape
from mmprune_ext.units.kinds.attention import is_of_attention
from mmprune_ext.units.parameters.computed import refresh_all
from mmprune_ext.units.tracing.gate_sites import weights_that_hear


def between_weights(unit: ChannelUnit, functional: Collection[str]) -> bool:
    """Whether layers that are not called, but whose weights code takes, make a unit, and no called one sees all of it.

    Those that read it see it where they are called, but of queries, keys and values the last alone.

    Args:
        unit: The unit.
        functional: Paths of layers whose weight code uses itself.
    """
    made, read = ([member for member in members if member.module in functional]
                  for members in (unit.producers, unit.consumers))
    unseen = bool(made and read) or any(member.block > 1 for member in made)
    return unseen and not any(member.dim is None for member in unit.followers)


class ChannelMutator:
    """Base of all mutators.

    A subclass says how important each channel is: unit by unit (:meth:`score`), or, where that takes
    a pass over data, of all at once (:meth:`scores`). Which channels go, and how, is decided here.

    Args:
        scope: Submodules whose producers may be pruned: one name, several, or ``'all'``.
        demo_inputs: What the model is traced on; see :func:`mmprune_ext.units.trace_units`.
        exclude: Names or shell-style patterns of units that must stay whole.
        divisor: Kept numbers are multiples of this.
        min_channels: Kept numbers are never below this.
        round_up: Whether kept numbers become the next multiple of the divisor above, and not the one below.
        whole_heads: Whether a channel of attention is one of its heads, and not one place in each of them.

    Attributes:
        learns_widths: Whether training decides how many channels stay of each unit.
        comparable: Whether scores of different units compare as they are; those of other methods do so where
            units are of like structure, and elsewhere after they are divided by the mean of their unit.
        needs_scores: Whether the weights decide which channels stay. Where only the number counts,
            as in a method that fuses filters, the structure is known before any training.
        takes_parameters: Whether the method knows what to do with a parameter that code uses as the weight of a layer.
        silences: Whether it trains a model in which channels that are to leave are zero where layers make them.
        sparsity_layouts: How the method's papers lay out their sparsity strings
            (:func:`mmprune_ext.targets.sparsity.expand_sparsity`); ``None`` for any layout.
    """

    learns_widths: bool = False
    comparable: bool = False
    needs_scores: bool = True
    takes_parameters: bool = False
    silences: bool = False
    sparsity_layouts: tuple[str, ...] | None = None

    def __init__(self, scope: str | Sequence[str] = 'backbone', demo_inputs: DemoInputs = None,
                 exclude: str | Sequence[str] = (), divisor: int = 1, min_channels: int = 1,
                 round_up: bool = False, whole_heads: bool = False) -> None:
        self.scope = scope
        self.demo_inputs = demo_inputs
        self.exclude = [exclude] if isinstance(exclude, str) else list(exclude)
        self.divisor = divisor
        self.min_channels = min_channels
        self.round_up = round_up
        self.whole_heads = whole_heads
        self._units: UnitSet | None = None

    def __deepcopy__(self, memo: Any) -> ChannelMutator:
        """Copy the choices; settings are shared, a dataloader to calibrate on among them."""
        copied = copy.copy(self)
        copied._units = None if self._units is None else self._units.copy()
        return copied

    @property
    def is_prepared(self) -> bool:
        """Whether the units are known."""
        return self._units is not None

    @property
    def units(self) -> UnitSet:
        """The model's units, after :meth:`prepare`."""
        if self._units is None:
            raise RuntimeError('the mutator has no units yet: call prepare(model) first')
        return self._units

    def prepare(self, model: nn.Module, units: UnitSet | None = None) -> UnitSet:
        """Find the units of a dense model, or take known ones (of a run that is resumed).

        Raises:
            PruningError: If no unit can be pruned, or known units do not fit the model.
        """
        if units is not None:
            units.check(model)
            self._units = units
            return units
        self._units = self.trace(model)
        self._units.require_prunable()
        return self._units

    def take(self, units: UnitSet) -> None:
        """Take units as they are: those of the dense model, when this one is what their choices leave of it."""
        self._units = units

    def trace(self, model: nn.Module) -> UnitSet:
        """Find the units of a dense model, by the settings of the mutator, without taking them.

        Raises:
            PruningError: If a pattern of ``exclude`` matches nothing, or the model cannot be traced.
        """
        found = trace_units(model, self.demo_inputs, self.scope, self.whole_heads)
        self._exclude(model, found)
        for unit in found.prunable.values():
            own = [member.module for member in unit.members if member.dim is not None and (
                member in unit.producers or is_of_attention(model, member.module))]
            if own and not self.takes_parameters:
                unit.forbid(Reason.LAYER, f'{type(self).__name__} chooses among outputs of layers, and {own[0]} is a '
                                          'parameter that code uses itself')
            elif not self.takes_parameters and between_weights(unit, found.functional):
                unit.forbid(Reason.LAYER, f'{type(self).__name__} chooses among outputs of layers, and code uses the '
                                          f'weight of {unit.producers[0].module} itself')
        for name, weight in (weights_that_hear(model, found, self.demo_inputs) if self.silences else {}).items():
            found[name].forbid(Reason.WEIGHT, f'{type(self).__name__} silences channels where layers make them, and '
                                              f'code computes {weight} from all that it reads, silent or not')
        found.set_init_args(self.divisor, self.min_channels, self.round_up)
        return found

    def _exclude(self, model: nn.Module, units: UnitSet) -> None:
        units.exclude(self.exclude)

    def transfer(self, model: nn.Module, units: UnitSet, source: str) -> UnitSet:
        """Take units with choices, of this very model or of one with other outputs.

        Of this very model they are taken as they are. Of any other this model's own are found, and the
        channels that are chosen there are chosen here (:meth:`mmprune_ext.units.UnitSet.take_choices`).

        Args:
            model: The dense model.
            units: The units with choices.
            source: Where they come from, for messages.

        Raises:
            PruningError: If the choices do not fit the model.
        """
        if units.describes(model):
            return self.prepare(model, units)
        self.prepare(model).take_choices(units, source)
        return self.units

    def score(self, model: nn.Module, unit: ChannelUnit) -> Tensor:
        """Return the importance of a unit's channels, ``(num_channels,)``, larger is more."""
        raise NotImplementedError(f'{type(self).__name__} has neither score() nor scores()')

    def scores(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the scores of all prunable units.

        Raises:
            PruningError: If a score is not finite: the weights hold NaN or infinity.
        """
        refresh_all(model)
        found = {}
        for name, unit in self.units.prunable.items():
            try:
                found[name] = self.score(model, unit)
            except PruningError as error:  # raised on a bare tensor, which has no name
                raise PruningError(f'unit "{name}": {error}') from error
            if not bool(torch.isfinite(found[name]).all()):
                raise PruningError(f'unit "{name}": its scores are not finite; do the weights of '
                                   f'"{unit.producers[0].module}" hold NaN?')
        return found

    def score_settings(self) -> dict[str, Any]:
        """Return what else than weights and units decides the scores, for a file of them."""
        return {}

    def choose(self, model: nn.Module, ratios: RatioTarget | None = None,
               budget: Mapping[str, Any] | None = None,
               scores: Mapping[str, Tensor] | None = None, whole: float | None = None) -> UnitSet:
        """Choose the channels that stay, by their scores.

        Args:
            model: The dense model.
            ratios: A per-unit target (:func:`keeps_from_ratios`).
            budget: A global target (:class:`Budget`); exactly one of the two is given.
            scores: The scores of all prunable units, where they are known; else they are computed.
            whole: What a budget is a share of (:meth:`resource`), where that is not this model.

        Raises:
            TargetError: For a malformed target, or one that cannot be met.
        """
        by_rank = budget is not None and Budget.from_config(budget).by_rank
        keeps = None
        if scores is None:
            # What is wrong with a target shows before the scores take their time; how far a budget goes down is the
            # same for each spread.
            tried = {**budget, 'spread': 'uniform'} if by_rank else budget
            keeps = self.kept_numbers(model, ratios, tried, whole=whole)
            scores = self.scores(model)
        if by_rank or keeps is None:
            keeps = self.kept_numbers(model, ratios, budget, scores, whole)
        self.choose_best(keeps, scores)
        return self.units

    def kept_numbers(self, model: nn.Module, ratios: RatioTarget | None = None,
                     budget: Mapping[str, Any] | None = None,
                     scores: Mapping[str, Tensor] | None = None, whole: float | None = None) -> Keeps:
        """Return how many channels of each unit a target keeps, without choosing any.

        Args:
            model: The dense model.
            ratios: A per-unit target.
            budget: A global target; exactly one of the two is given.
            scores: Scores by unit, which only a budget spread by rank needs (``'global'``, ``'isomorphic'``).
            whole: As of :meth:`choose`.

        Raises:
            TargetError: As of :meth:`choose`, or for a target that needs scores where there are
                none.
        """
        if (ratios is None) == (budget is None):
            raise TargetError('give either target_pruning_ratio or budget (one of them), got '
                              f'target_pruning_ratio={ratios!r}, budget={budget!r}')
        if ratios is not None:
            return keeps_from_ratios(self.units, ratios, self.sparsity_layouts)
        parsed = Budget.from_config(budget)
        if parsed.by_rank and scores is None:
            raise TargetError(f"budget: spread '{parsed.spread}' goes by the scores of trained weights, which "
                              "are not known here; prune first, or use spread='uniform'")
        return keeps_from_budget(self.units, self._counted(model, parsed), model, scores or {}, whole,
                                 self.comparable)

    def resource(self, model: nn.Module, budget: Mapping[str, Any], units: UnitSet) -> float:
        """Return how much a model has of what a budget is a share of.

        Args:
            model: The model.
            budget: A global target.
            units: Its units, whatever is chosen there.

        Raises:
            TargetError: For a malformed target.
        """
        counted = self._counted(model, Budget.from_config(budget))
        return measure_of(units, counted.resource, model, counted.scope, counted.input_size)({})

    def _counted(self, model: nn.Module, budget: Budget) -> Budget:
        """Return a budget that says what it is counted on."""
        if budget.input_size is not None:
            return budget
        return dataclasses.replace(budget, input_size=self.counting_inputs(model))

    def counting_inputs(self, model: nn.Module) -> DemoInputs:
        """Return what the costs of a model are counted on where nothing else is stated.

        Not the traced pass, which runs few regions of a two-stage detector.
        """
        return image_shape(model) if self.demo_inputs is None else self.demo_inputs

    def choose_best(self, keeps: Keeps, scores: Mapping[str, Tensor]) -> None:
        """Let so many channels of each unit stay, those of the highest scores."""
        for name, keep in keeps.items():
            # A stable sort: of equal scores the lower index stays, on every machine.
            order = torch.argsort(scores[name].cpu(), descending=True, stable=True)
            self.units[name].choose(order[:keep].tolist())
