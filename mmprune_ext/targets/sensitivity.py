"""Sensitivity of a model's units: how much worse its metric gets when one unit alone is pruned.

Source: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017 (arXiv 1608.08710), section 3.2.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from mmprune_ext.atomic import atomic_write
from mmprune_ext.errors import UnitFileError
from mmprune_ext.units import UnitSet
from mmprune_ext.units.origin import Origin
from mmprune_ext.units.spec import load_json

SCHEMA = 1
_TOOL = 'tools/sensitivity.py'
_KEYS = ('schema', 'algorithm', 'architecture', 'weights', 'metric', 'greater_is_better', 'dense', 'samples',
         'bn_batches', 'complete', 'settings', 'units')


@dataclass(frozen=True)
class Point:
    """What a model is worth with one unit pruned and all others whole.

    Attributes:
        ratio: Share of the unit's channels that was asked to go, above 0 and below 1.
        keep: How many of its channels stay.
        metric: The metric without any fine-tuning, in its own unit (percent, or 0 to 1, or a loss); NaN or
            infinite where the evaluator said so. A file holds ``null`` for both, which is read as NaN.
    """

    ratio: float
    keep: int
    metric: float


@dataclass(frozen=True)
class Curve:
    """The points of one unit.

    Attributes:
        channels: How many channels the whole unit has.
        points: In order of their ratios.
    """

    channels: int
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Sensitivity:
    """Curves of a model's units, and what they belong to.

    Attributes:
        algorithm: Short name of the method by whose scores channels went.
        architecture: Fingerprint of the dense model (:func:`mmprune_ext.units.fingerprint`).
        weights: Digest of its weights (:func:`mmprune_ext.units.weights_digest`).
        metric: Name of the metric, as the evaluator gives it: ``accuracy/top1``.
        greater_is_better: Whether a greater value of it is better.
        dense: The metric of the dense model, measured in the same way; NaN as of :class:`Point`.
        samples: How many samples each point was measured on.
        bn_batches: On how many training batches the batch statistics were re-estimated before each measurement;
            0 if they were left as they were.
        complete: Whether all points that were asked for are there.
        curves: By unit, in execution order.
        settings: What else the points were measured with, for the reader.
        source: Where they come from, for errors.
    """

    algorithm: str
    architecture: str
    weights: str
    metric: str
    greater_is_better: bool
    dense: float
    samples: int
    bn_batches: int
    complete: bool
    curves: Mapping[str, Curve]
    settings: Mapping[str, Any] = field(default_factory=dict)
    source: str = 'sensitivity'

    def drop(self, point: Point) -> float:
        """Return by how much a point's metric is worse than the dense one, in the metric's own unit.

        Below 0 where it is better; infinite where either is no number.
        """
        return self.fall(self.dense, point.metric)

    def fall(self, before: float, after: float) -> float:
        """Return by how much one value of the metric is worse than another; as :meth:`drop`."""
        difference = before - after if self.greater_is_better else after - before
        return difference if math.isfinite(difference) else math.inf

    def save(self, path: str | Path) -> None:
        """Write the file; it appears whole or not at all.

        Raises:
            PruningError: If it cannot be written.
        """
        units = {name: {'channels': curve.channels, 'points': [
            {'ratio': point.ratio, 'keep': point.keep, 'metric': _finite(point.metric)} for point in curve.points]}
            for name, curve in self.curves.items()}
        content = {'schema': SCHEMA, 'algorithm': self.algorithm, 'architecture': self.architecture,
                   'weights': self.weights, 'metric': self.metric, 'greater_is_better': self.greater_is_better,
                   'dense': _finite(self.dense), 'samples': self.samples, 'bn_batches': self.bn_batches,
                   'complete': self.complete, 'settings': dict(self.settings), 'units': units}
        atomic_write(json.dumps(content, indent=1, allow_nan=False) + '\n', path)

    @classmethod
    def load(cls, path: str | Path) -> Sensitivity:
        """Read a file of sensitivities, complete or not.

        Raises:
            UnitFileError: If it is missing or malformed.
        """
        content = load_json(path, _TOOL)
        if not isinstance(content, dict) or set(content) != set(_KEYS) or content['schema'] != SCHEMA \
                or not isinstance(content['units'], dict) or not isinstance(content['settings'], dict):
            raise UnitFileError(f'{path}: not a file of sensitivities of schema {SCHEMA}; write one with {_TOOL}')
        for key, kind in (('algorithm', str), ('architecture', str), ('weights', str), ('metric', str),
                          ('greater_is_better', bool), ('samples', int), ('bn_batches', int), ('complete', bool)):
            if type(content[key]) is not kind:
                raise UnitFileError(f'{path}: "{key}" should be of type {kind.__name__}, got {content[key]!r:.80}')
        curves = {name: _curve(record, f'{path}: unit "{name}"') for name, record in content['units'].items()}
        return cls(content['algorithm'], content['architecture'], content['weights'], content['metric'],
                   content['greater_is_better'], _number(content['dense'], f'{path}: "dense"'), content['samples'],
                   content['bn_batches'], content['complete'], curves, content['settings'], str(path))

    def curves_of(self, units: UnitSet) -> dict[str, Curve]:
        """Return the curves of a model's prunable units.

        Args:
            units: The units of the dense model, as traced.

        Raises:
            UnitFileError: If the file is of another model, lacks one of these units, or is not complete.
        """
        if not self.complete:
            raise UnitFileError(f'{self.source}: is not complete, it was interrupted; the same {_TOOL} command '
                                'goes on from there')
        self._origin.check_units({name: curve.channels for name, curve in self.curves.items()}, units)
        return {name: self.curves[name] for name in units.prunable}

    def checked(self, model: nn.Module, units: UnitSet, algorithm: str) -> dict[str, Curve]:
        """Return the curves of a model's prunable units; warn if they are of other weights.

        Args:
            model: The dense model with its weights.
            units: Its units, as traced.
            algorithm: Short name of the method that the curves are wanted for.

        Raises:
            UnitFileError: If they are of another method, or as of :meth:`curves_of`.
        """
        self._origin.check_method(algorithm)
        curves = self.curves_of(units)
        self._origin.compare_weights(model)
        return curves

    @property
    def _origin(self) -> Origin:
        return Origin(self.source, 'sensitivities', _TOOL, self.algorithm, self.architecture, self.weights)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: Any, where: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UnitFileError(f'{where}: should be a number or null, got {value!r:.80}')
    return float(value)


def _curve(record: Any, where: str) -> Curve:
    if not isinstance(record, dict) or set(record) != {'channels', 'points'} or type(record['channels']) is not int \
            or not isinstance(record['points'], list):
        raise UnitFileError(f'{where}: expected {{"channels": number, "points": [...]}}, got {record!r:.80}')
    points = tuple(_point(item, record['channels'], where) for item in record['points'])
    if any(first.ratio >= second.ratio for first, second in zip(points, points[1:])):
        raise UnitFileError(f'{where}: the ratios of its points are not in rising order')
    return Curve(record['channels'], points)


def _point(item: Any, channels: int, where: str) -> Point:
    if not isinstance(item, dict) or set(item) != {'ratio', 'keep', 'metric'}:
        raise UnitFileError(f'{where}: expected {{"ratio": ..., "keep": ..., "metric": ...}}, got {item!r:.80}')
    ratio, keep = _number(item['ratio'], f'{where}: "ratio"'), item['keep']
    if not 0 < ratio < 1:
        raise UnitFileError(f'{where}: "ratio" should be above 0 and below 1, got {item["ratio"]!r}')
    if type(keep) is not int or not 1 <= keep <= channels:
        raise UnitFileError(f'{where}: "keep" should be an integer from 1 to {channels}, got {keep!r:.80}')
    return Point(ratio, keep, _number(item['metric'], f'{where}: "metric"'))
