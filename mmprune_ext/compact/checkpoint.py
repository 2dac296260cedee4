"""Reading checkpoints with errors that say what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from mmprune_ext.errors import CheckpointError
from mmprune_ext.units import UnitSet

ALGORITHM_PREFIX = 'architecture.'
EXTRA_STATE = '_extra_state'


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint, from a file or through mmengine's file backends for a URL.

    Returns:
        The checkpoint with its weights under ``state_dict`` and its ``meta`` (may be empty).

    Raises:
        CheckpointError: If it is missing, truncated, or holds no weights.
    """
    remote = '://' in str(path)
    if not remote and not Path(path).is_file():
        raise CheckpointError(f'checkpoint {path}: no such file')
    try:
        checkpoint = (CheckpointLoader.load_checkpoint(str(path), map_location='cpu') if remote
                      else torch.load(path, map_location='cpu', weights_only=False))
    except Exception as error:  # unpickling a damaged file may raise anything
        text = ' '.join(str(error).split())[:120]
        raise CheckpointError(f'checkpoint {path}: cannot be read, it is truncated or not a PyTorch '
                              f'checkpoint ({type(error).__name__}: {text})') from error
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(f'checkpoint {path}: expected a dict with a "state_dict", got '
                              f'{type(checkpoint).__name__}')
    weights = checkpoint.get('state_dict', checkpoint)
    if not isinstance(weights, Mapping) or not any(isinstance(v, Tensor) for v in weights.values()):
        raise CheckpointError(f'checkpoint {path}: holds no weights (no "state_dict")')
    weights = {key.removeprefix('module.'): value for key, value in weights.items()}
    meta = checkpoint.get('meta') if 'state_dict' in checkpoint else None
    return {**(checkpoint if 'state_dict' in checkpoint else {}), 'state_dict': weights,
            'meta': dict(meta or {})}


def load_weights(model: nn.Module, path: str | Path) -> dict[str, Any]:
    """Load a checkpoint that must fit the model exactly.

    Returns:
        The checkpoint's ``meta``.

    Raises:
        CheckpointError: If it cannot be read or does not fit, naming the first keys that differ.
    """
    checkpoint = read_checkpoint(path)
    weights = {key: value for key, value in checkpoint['state_dict'].items()
               if isinstance(value, Tensor) and not key.endswith(EXTRA_STATE)}
    for key, value in weights.items():
        if bool(value.isnan().any()):
            raise CheckpointError(f'checkpoint {path}: "{key}" holds NaN; did its training diverge?')
    own = model.state_dict()
    wrong = [f'{key} has shape {tuple(weights[key].shape)}, the model {tuple(own[key].shape)}'
             for key in own if key in weights and isinstance(own[key], Tensor)
             and weights[key].shape != own[key].shape]
    try:
        # Tried out and not only compared: modules may rename or resize entries of older checkpoints.
        result = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        if not wrong:
            wrong = [' '.join(str(error).split())[:200]]
        missing, unexpected = _other_keys(own, weights)
    else:
        wrong, missing, unexpected = [], list(result.missing_keys), list(result.unexpected_keys)
    missing = [key for key in missing if not key.endswith(('num_batches_tracked', EXTRA_STATE))]
    problems = [f'{label}: {", ".join(keys[:3])}{f" and {len(keys) - 3} more" if len(keys) > 3 else ""}'
                for label, keys in (('other shapes', wrong), ('missing', missing),
                                    ('not in the model', unexpected)) if keys]
    if problems:
        raise CheckpointError(f'checkpoint {path} does not fit {type(model).__name__}; '
                              + '; '.join(problems) + _hint(weights, wrong))
    return checkpoint['meta']


def _other_keys(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    return ([key for key in own if key not in weights], [key for key in weights if key not in own])


def _hint(weights: Mapping[str, Tensor], wrong: list[str]) -> str:
    if any(key.startswith(ALGORITHM_PREFIX) for key in weights):
        return '. It belongs to a pruning run: export it with tools/export_compact.py'
    if any('head' in text or 'fc' in text for text in wrong):
        return '. Does the config have the number of classes that the checkpoint was trained for?'
    return ''


def units_from_state(state: Tensor) -> UnitSet:
    """Return the units held in a pruning algorithm's extra state."""
    return UnitSet.from_dict(json.loads(bytes(state.cpu().numpy().tobytes())), 'the checkpoint')
