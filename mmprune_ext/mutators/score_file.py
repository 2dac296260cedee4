"""Scores of channels in a file: computed once, used for any number of targets."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmprune_ext.atomic import atomic_write
from mmprune_ext.errors import UnitFileError
from mmprune_ext.units import UnitSet
from mmprune_ext.units.spec import load_json, weights_digest

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
        if self.method != method:
            raise UnitFileError(f'{self.source}: holds scores of method "{self.method}", not of '
                                f'"{method}"; write them with tools/score.py --algorithm {method}')
        again = 'write the scores anew with tools/score.py for this config'
        for name, values in self.scores.items():
            if name not in units:
                raise units.unknown(name, self.source)
            if len(values) != units[name].num_channels:
                raise UnitFileError(
                    f'{self.source}: unit "{name}" has {len(values)} scores, in the model it has '
                    f'{units[name].num_channels} channels; {again}')
        for name in units.prunable:
            if name not in self.scores:
                raise UnitFileError(f'{self.source}: lacks unit "{name}", which can be pruned in '
                                    f'this model; {again} (with the same scope)')
        if self.architecture != units.architecture:
            raise UnitFileError(f'{self.source}: was written for another model (fingerprint '
                                f'{self.architecture}, this model\'s is {units.architecture}); {again}')
        if self.weights != weights_digest(model):
            print_log(f'{self.source}: these scores are of other weights of this model than the present ones; '
                      f'if that is not meant, {again} and checkpoint', logger='current', level=logging.WARNING)
        return {name: self.scores[name] for name in units.prunable}


def _values(values: Any, where: str) -> Tensor:
    if not isinstance(values, list) or not values:
        raise UnitFileError(f'{where}: expected a list of scores, got {values!r:.80}')
    for number, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UnitFileError(f'{where}: the score of channel {number} is {value!r}, not a finite '
                                'number')
    return torch.tensor(values, dtype=torch.float64)
