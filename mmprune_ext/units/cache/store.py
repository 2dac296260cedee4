"""Units on disk, one file for each structure of a model and what it was traced on."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mmprune_ext.atomic import atomic_write
from mmprune_ext.errors import PruningError, UnitFileError
from mmprune_ext.units.cache import sources
from mmprune_ext.units.cache.structure import Digest
from mmprune_ext.units.kinds.coverage import Coverage
from mmprune_ext.units.parameters.fingerprint import fingerprint
from mmprune_ext.units.reasons import Reason
from mmprune_ext.units.unit import ChannelUnit, Member
from mmprune_ext.units.unit_set import UnitSet

FOLDER = 'MMPRUNE_CACHE'
SCHEMA = 1
MOST = 500  # files in the folder
_ROLES = ('producers', 'followers', 'consumers')


def cache_folder() -> Path | None:
    """Return where units are kept: under ``$MMPRUNE_CACHE``, by default the user's cache folder; ``None`` for nowhere.

    An empty variable means that nothing is kept.
    """
    stated = os.environ.get(FOLDER)
    if stated is not None:
        return Path(stated) / 'units' if stated else None
    try:
        return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mmprune_ext' / 'units'
    except RuntimeError:  # a user without a home
        return None


class Entry:
    """The place of one trace in the cache.

    A trace is told by all that the model and its demo inputs hold but the values of weights
    (:class:`mmprune_ext.units.cache.structure.Digest`), its settings, the versions of python, torch and numpy and this
    package's code. Beside the units stand the files that the code came from: where one has changed, or code of the
    user's own is loaded that was not then, the entry is passed over and written anew.

    Args:
        path: The file; ``None`` where nothing is kept.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path

    @classmethod
    def of(cls, folder: Path | None, model: nn.Module, *settings: Any) -> Entry:
        """Return the place of a model's trace.

        Args:
            folder: The cache; ``None`` for none.
            model: The model.
            settings: All else that decides its units: what it is run on, the scope.
        """
        if folder is None:
            return cls(None)
        digest = Digest()
        try:
            digest.add([SCHEMA, sys.version, platform.machine(), str(torch.__version__), np.__version__,
                        sources.own_code(), torch.get_default_dtype(), model, *settings])
        except Exception:  # whatever cannot be followed, code of the model's own among it, is not kept
            return cls(None)
        return cls(folder / f'{type(model).__name__}-{digest.hexdigest()[:32]}.json')

    def load(self, model: nn.Module) -> UnitSet | None:
        """Return the units that are kept for a model, ``None`` if there are none that can be relied on."""
        try:
            content = self._read()
            files = sources.loaded()
            if files is None or not sources.unchanged(content['files'], files):
                return None
            units = _units_of(content['units'])
            units.check(model)
            return units if units.architecture == fingerprint(model) else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, UnitFileError):
            return None  # missing, broken, or of something else

    def store(self, units: UnitSet) -> None:
        """Keep units; a folder that cannot be written to is none."""
        files = None if self.path is None else sources.loaded()
        if files is None:
            return
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            files = {**self._read()['files'], **files}
        record = _record_of(units)
        text = json.dumps({'schema': SCHEMA, 'check': _check_of(record), 'files': files, 'units': record})
        with contextlib.suppress(PruningError, OSError):
            atomic_write(text, self.path)
            _drop_oldest(self.path.parent)

    def _read(self) -> dict[str, Any]:
        if self.path is None:
            raise FileNotFoundError
        content = json.loads(self.path.read_text())
        if content['schema'] != SCHEMA or content['check'] != _check_of(content['units']):
            raise ValueError('of another form')
        return content


def _check_of(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()


def _record_of(units: UnitSet) -> dict[str, Any]:
    return {'architecture': units.architecture, 'costs': {path: int(cost) for path, cost in units.costs.items()},
            'functional': sorted(units.functional),
            'coverage': None if units.coverage is None else dataclasses.asdict(units.coverage),
            'units': [{'name': unit.name, 'num_channels': unit.num_channels,
                       'reason': unit.reason and unit.reason.name, 'detail': unit.detail,
                       **{role: [member.to_dict() for member in getattr(unit, role)] for role in _ROLES}}
                      for unit in units.values()]}


def _units_of(record: dict[str, Any]) -> UnitSet:
    found = []
    for known in record['units']:
        members = {role: [Member(**{**member, **({'index': tuple(map(tuple, member['index']))}
                                                 if 'index' in member else {})})
                          for member in known[role]] for role in _ROLES}
        unit = ChannelUnit(known['name'], known['num_channels'], **members)
        if known['reason']:
            unit.forbid(Reason[known['reason']], known['detail'])
        found.append(unit)
    units = UnitSet(found, record['architecture'], record['costs'], functional=record['functional'])
    if record['coverage'] is not None:
        beside = {name: (count, why) for name, (count, why) in record['coverage']['beside'].items()}
        units.coverage = Coverage(record['coverage']['total'], beside)
    return units


def _drop_oldest(folder: Path) -> None:
    """Keep the newest files of a folder."""
    files = sorted(folder.glob('*.json'), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in files[MOST:]:
        path.unlink(missing_ok=True)
