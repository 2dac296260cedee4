"""Scores of channels in a file: computed once, used for any number of targets."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmprune_ext.atomic import atomic_write
from mmprune_ext.errors import UnitFileError
from mmprune_ext.units import UnitSet
from mmprune_ext.units.origin import Origin
from mmprune_ext.units.spec import load_json

SCHEMA = 1
_KEYS = ('schema', 'method', 'architecture', 'weights', 'settings', 'scores')


@dataclass(frozen=True)
class ScoreFile:
    """Scores of a model's channels, and what they belong to.

    Attributes:
        method: Short name of the method that they are of.
        architecture: Fingerprint of the dense model (:func:`mmprune_ext.units.fingerprint`).
        weights: Digest of its weights (:func:`mmprune_ext.units.spec.weights_digest`).
        scores: By unit, ``(num_channels,)``, float64; larger is more important.
        settings: What the scores were computed with, for the reader.
        source: Where they come from, for errors.
    """

    method: str
    architecture: str
    weights: str
    scores: Mapping[str, Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)
    source: str = 'scores'

    def save(self, path: str | Path) -> None:
        """Write the file; it appears whole or not at all.

        Raises:
            PruningError: If it cannot be written.
        """
        content = {'schema': SCHEMA, 'method': self.method, 'architecture': self.architecture,
                   'weights': self.weights, 'settings': dict(self.settings),
                   'scores': {name: values.tolist() for name, values in self.scores.items()}}
        atomic_write(json.dumps(content, indent=1) + '\n', path)

    @classmethod
    def load(cls, path: str | Path) -> ScoreFile:
        """Read a file of scores.

        Raises:
            UnitFileError: If it is missing, malformed, or holds a value that is no finite number.
        """
        content = load_json(path, 'tools/score.py')
        if not isinstance(content, dict) or set(content) != set(_KEYS) or content['schema'] != SCHEMA \
                or not isinstance(content['scores'], dict):
            raise UnitFileError(f'{path}: not a file of scores of schema {SCHEMA}; write one with '
                                'tools/score.py')
        scores = {name: _values(values, f'{path}: unit "{name}"')
                  for name, values in content['scores'].items()}
        return cls(str(content['method']), str(content['architecture']), str(content['weights']), scores,
                   content['settings'], str(path))

    def checked(self, model: nn.Module, units: UnitSet, method: str) -> dict[str, Tensor]:
        """Return the scores of a model's prunable units; warn if they are of other weights.

        Args:
            model: The dense model with its weights.
            units: Its units, as traced.
            method: Short name of the method that the scores are wanted for.

        Raises:
            UnitFileError: If they are of another method or another model.
        """
        origin = Origin(self.source, 'scores', 'tools/score.py', self.method, self.architecture, self.weights)
        origin.check_method(method)
        origin.check_units({name: len(values) for name, values in self.scores.items()}, units)
        origin.compare_weights(model)
        return {name: self.scores[name] for name in units.prunable}


def _values(values: Any, where: str) -> Tensor:
    if not isinstance(values, list) or not values:
        raise UnitFileError(f'{where}: expected a list of scores, got {values!r:.80}')
    for number, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UnitFileError(f'{where}: the score of channel {number} is {value!r}, not a finite '
                                'number')
    return torch.tensor(values, dtype=torch.float64)
