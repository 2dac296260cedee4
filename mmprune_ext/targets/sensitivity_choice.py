"""Ratios from a sensitivity file: the measured widths of least predicted drop under a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mmengine.logging import print_log
from torch import nn

from mmprune_ext.errors import TargetError
from mmprune_ext.targets.budget import Keeps, cost_model_of, scope_hint
from mmprune_ext.targets.least_drop import Option, least_drop
from mmprune_ext.targets.sensitivity import Sensitivity
from mmprune_ext.units import UnitSet
from mmprune_ext.units.demo_inputs import DemoInputs


class SensitivityChoice:
    """Kept numbers by a sensitivity file, for any number of budgets of one resource of one model.

    A unit keeps one of the numbers that it was measured at, or all its channels at no drop. Those that ``divisor``
    and ``min_channels`` of the unit do not allow, and those whose metric was no number, are left out. The drop of
    a choice is predicted as the sum of its units' drops; a measured one below 0, which is noise, counts as 0.

    Args:
        sensitivity: What was measured.
        units: The dense model's units.
        resource: ``flops``, ``params``, ``channels`` or ``volume``.
        model: The dense model.
        scope: Path of the submodule whose resource is measured; empty for the model.
        input_size: What ``flops`` and ``volume`` are counted on.

    Attributes:
        dense: The resource of the dense model.

    Raises:
        UnitFileError: If the file is of another model, or not complete.
        TargetError: If the file's dense metric is no number, or 0 where more is better, or there is nothing to count
            the resource on.
    """

    def __init__(self, sensitivity: Sensitivity, units: UnitSet, resource: str, model: nn.Module, scope: str = '',
                 input_size: DemoInputs = None) -> None:
        curves = sensitivity.curves_of(units)
        if not math.isfinite(sensitivity.dense):
            raise TargetError(f'{sensitivity.source}: the metric {sensitivity.metric} of the dense model is no number, '
                              'so that no drop can be told; measure anew with a metric that the dense model has')
        if sensitivity.greater_is_better and sensitivity.dense == 0:
            raise TargetError(f'{sensitivity.source}: {sensitivity.metric} of the dense model is 0, below which '
                              'nothing can fall; are checkpoint, classes and metric those of the data?')
        self.sensitivity = sensitivity
        self.resource = resource
        self.options: dict[str, list[Option]] = {}
        for name, curve in curves.items():
            points = [Option(point.keep, sensitivity.drop(point)) for point in curve.points
                      if point.keep == units[name].round_keep(point.keep) < curve.channels]
            self.options[name] = [Option(curve.channels, 0.0), *(p for p in points if math.isfinite(p.drop))]
        self._counted = units, resource, model, scope, input_size
        self._costs, self._kind = cost_model_of(*self._counted)
        self.dense = self._costs.terms(self._kind).dense

    def share(self, keeps: Keeps) -> float:
        """Return the share of the resource that kept numbers leave; units that are not named keep all."""
        return self._cost(keeps) / self.dense

    def least_share(self) -> float:
        """Return the share that the smallest widths leave."""
        return self.share({name: min(options).keep for name, options in self.options.items()})

    def drop(self, keeps: Keeps) -> float:
        """Return the predicted drop of kept numbers that this gave, in the metric's own unit."""
        return predicted_drop(self.sensitivity, keeps)

    def keeps(self, share: float) -> Keeps:
        """Return the kept number of each prunable unit that uses at most a share of the resource.

        The sum of predicted drops is the least that any choice of measured widths has
        (:func:`mmprune_ext.targets.least_drop.least_drop`).

        Raises:
            TargetError: If even the smallest measured widths use more, or scipy is not installed.
        """
        least = self.least_share()
        if least > share * (1 + 1e-9):
            raise TargetError(f'budget: {self.resource} cannot be reduced to {share:.1%}; the smallest widths in '
                              f'{self.sensitivity.source} that divisor and min_channels allow leave {least:.1%}'
                              + scope_hint(*self._counted))
        # 0.7 of 10 is a little less than 7 in floating point.
        limit = math.floor(max(share, least) * self.dense * (1 + 1e-12))
        return least_drop(self.options, self._costs, self._kind, limit)

    def _cost(self, keeps: Keeps) -> int:
        return self._costs.terms(self._kind).cost(self._costs.vector(keeps))


def predicted_drop(sensitivity: Sensitivity, keeps: Mapping[str, int]) -> float:
    """Return the sum of the drops that were measured at kept numbers, those below 0 as 0.

    Raises:
        TargetError: If a unit was not measured at its kept number.
    """
    total = 0.0
    for name, curve in sensitivity.curves.items():
        if keeps.get(name, curve.channels) < curve.channels:
            drops = [sensitivity.drop(point) for point in curve.points if point.keep == keeps[name]]
            if not drops:
                raise TargetError(f'{sensitivity.source}: unit "{name}" was not measured at {keeps[name]} channels')
            total += max(min(drops), 0.0)
    return total


def keeps_from_sensitivity(choice: SensitivityChoice, share: float) -> Keeps:
    """Return the kept numbers for a budget, and tell what they are predicted to do."""
    keeps = choice.keeps(share)
    file = choice.sensitivity
    print_log(f'ratios from {file.source}: {choice.resource} {choice.share(keeps):.1%}, predicted drop of '
              f'{file.metric} {choice.drop(keeps):.4g}', logger='current')
    return keeps
