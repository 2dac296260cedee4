"""Where a compact model comes from: what a report needs so that it can be made again."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from mmprune_ext.model_config import is_compact, is_pruning
from mmprune_ext.version import OPTIONAL, REQUIRED, __version__, installed_version

# Settings that say to what a model was pruned, those of the command line and of a config.
TARGETS = ('flops', 'params', 'channels', 'volume', 'ratio', 'max_drop', 'units', 'spread', 'budget_scope', 'scope',
           'target_pruning_ratio', 'budget')
_SETTINGS = (*TARGETS, 'scores', 'repair', 'from_scratch')


def provenance_of(config: Config, asked: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return where a model comes from, as plain values for JSON.

    Args:
        config: The config that it is exported by.
        asked: What a command knows of it, which has the last word: ``command``, ``config``, ``checkpoint``, ``digest``,
            ``method``, ``settings``.

    Returns:
        ``command``, ``config``, ``checkpoint``, its ``digest``, ``method``, ``settings``, ``seed``, ``versions``,
        ``machine`` and ``date``; of what is not known ``None``.
    """
    model = config.get('model') or {}
    method, settings = None, {}
    if is_pruning(model):
        method = str(getattr(model['type'], '__name__', model['type'])).rpartition('.')[2]
        mutator = model.get('mutator')
        settings = {**{key: model[key] for key in _SETTINGS if model.get(key) is not None},
                    **({'scope': mutator['scope']} if isinstance(mutator, Mapping) and mutator.get('scope') else {})}
    if isinstance(settings.get('units'), Mapping):
        settings['units'] = 'those of the run'
    known = {'command': None, 'config': config.filename, 'checkpoint': None, 'digest': None,
             'method': 'further training of a compact model' if is_compact(model) else method,
             'settings': {key: _plain(value) for key, value in settings.items()},
             'seed': (config.get('randomness') or {}).get('seed')}
    return {**known, **(asked or {}), 'versions': _versions(), 'machine': _machine(),
            'date': datetime.now(timezone.utc).strftime('%Y-%m-%d %H:%M UTC')}


def file_digest(path: str | os.PathLike) -> str | None:
    """Return the SHA-256 of a file in hexadecimal; ``None`` where it is none of this machine."""
    if not Path(path).is_file():
        return None
    with Path(path).open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest() if sys.version_info >= (3, 11) else hashlib.sha256(
            file.read()).hexdigest()


def _versions() -> dict[str, str]:
    found = {module: installed_version(module, distributions)
             for module, (distributions, _) in {**REQUIRED, **OPTIONAL}.items()}
    return {'python': platform.python_version(), 'mmprune_ext': __version__,
            **{module: version for module, version in found.items() if version is not None}}


def _machine() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'
    return f'{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, {device}'


def _plain(value: Any) -> Any:
    """Return a setting as JSON holds it; of what is no plain value its text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if key != 'dataloader'}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)[:200]


def target_text(source: Mapping[str, Any]) -> str:
    """Return the target that a model was pruned to, in words, of what :func:`provenance_of` gives."""
    return ', '.join(f'{key}={value}' for key, value in (source.get('settings') or {}).items() if key in TARGETS)
