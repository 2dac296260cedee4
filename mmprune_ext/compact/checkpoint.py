"""Reading checkpoints with errors that say what is wrong with them."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Collection, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmprune_ext.compact.safe_files import load_file
from mmprune_ext.errors import CheckpointError
from mmprune_ext.paths import missing as missing_file
from mmprune_ext.units import UnitSet

# Under which the metadata of a pruning run's weights hold its channel units, as JSON.
RUN_UNITS = 'channel_units'
# The part of a student that leads to its teachers' maps.
ADAPTERS = 'distill_adapters'
# Version 0.1 wrote the names of a run's weights with this prefix, and its units as a tensor of bytes.
_OLD_PREFIX = 'architecture.'
_OLD_UNITS = '_extra_state'


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint, from a file or through mmengine's file backends for a URL.

    Returns:
        The checkpoint with its weights under ``state_dict``, its ``meta`` (may be empty), and under
        ``run_units`` the channel units if it is of a pruning run, else ``None``.

    Raises:
        CheckpointError: If it is missing, truncated, or holds no weights, or holds what could run code and is not
            trusted (:mod:`mmprune_ext.trust`).
    """
    require_checkpoint(path)
    checkpoint = load_file(path)
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(f'checkpoint {path}: expected a dict with a "state_dict", got '
                              f'{type(checkpoint).__name__}')
    weights = checkpoint.get('state_dict', checkpoint)
    if not isinstance(weights, Mapping) or not any(isinstance(v, Tensor) for v in weights.values()):
        raise CheckpointError(f'checkpoint {path}: holds no weights (no "state_dict")')
    weights = _unwrapped(weights)
    meta = dict((checkpoint.get('meta') if 'state_dict' in checkpoint else None) or {})
    units = units_of_run(weights, weights._metadata.get('', {}))
    if units is None and 'epoch' in meta and 'channel_units' in meta:
        # Where the weights went through something that drops metadata: what PruningHook wrote.
        units = UnitSet.from_dict(meta['channel_units'], 'the checkpoint')
    plain_names(weights)
    metadata = weights._metadata.setdefault('', {})
    if units is not None and RUN_UNITS not in metadata:
        metadata[RUN_UNITS] = json.dumps(units.to_json())
    return {**(checkpoint if 'state_dict' in checkpoint else {}), 'state_dict': weights, 'meta': meta,
            'run_units': units}


def require_checkpoint(path: str | Path) -> None:
    """Check that a checkpoint is there, without reading it; of a URL nothing is known before.

    Raises:
        CheckpointError: If it is missing.
    """
    if '://' not in str(path) and not Path(path).is_file():
        raise CheckpointError(f'checkpoint {path}: {missing_file(path)}')


def _unwrapped(weights: Mapping[str, Any]) -> OrderedDict[str, Any]:
    """Return a copy of a state dict, with its metadata, without the prefix that a DDP wrapper adds."""
    found = OrderedDict((key.removeprefix('module.'), value) for key, value in weights.items())
    found._metadata = OrderedDict(
        ('' if key == 'module' else key.removeprefix('module.'), dict(value))
        for key, value in getattr(weights, '_metadata', {}).items())
    return found


def units_of_compact(path: str | Path) -> UnitSet | None:
    """Return the channel units that an export wrote with the weights of a compact model, ``None`` for other weights.

    Raises:
        CheckpointError: If the checkpoint cannot be read.
    """
    stored = read_checkpoint(path)
    if stored['run_units'] is not None or 'channel_units' not in stored['meta']:
        return None
    return UnitSet.from_dict(stored['meta']['channel_units'], f'checkpoint {path}')


def units_of_run(weights: Mapping[str, Any], metadata: Mapping[str, Any], prefix: str = '') -> UnitSet | None:
    """Return the channel units that a pruning run wrote with its weights, ``None`` if it is none.

    Args:
        weights: The entries of a state dict.
        metadata: The metadata that torch keeps for the model in it.
        prefix: Of the model's names in it.
    """
    if RUN_UNITS in metadata:
        return UnitSet.from_dict(json.loads(metadata[RUN_UNITS]), 'the checkpoint')
    if not _is_old(weights, prefix):
        return None
    return UnitSet.from_dict(json.loads(bytes(weights[prefix + _OLD_UNITS].cpu().numpy().tobytes())), 'the checkpoint')


def plain_names(weights: MutableMapping[str, Any], prefix: str = '') -> None:
    """Give the weights of a pruning run of version 0.1 the names of the dense model, in place."""
    if not _is_old(weights, prefix):
        return
    del weights[prefix + _OLD_UNITS]
    for key in [key for key in weights if key.startswith(prefix + _OLD_PREFIX)]:
        weights[prefix + key[len(prefix + _OLD_PREFIX):]] = weights.pop(key)


def _is_old(weights: Mapping[str, Any], prefix: str) -> bool:
    units = weights.get(prefix + _OLD_UNITS)
    return (isinstance(units, Tensor) and units.dtype == torch.uint8
            and any(key.startswith(prefix + _OLD_PREFIX) for key in weights))


def load_weights(model: nn.Module, path: str | Path, fresh: Collection[str] = ()) -> dict[str, Any]:
    """Load a checkpoint that must fit the model exactly.

    Args:
        model: The model.
        path: The checkpoint.
        fresh: Paths of layers that keep the values they have where theirs have another shape in the
            checkpoint (outputs for another number of classes); a warning names the first.

    Returns:
        The checkpoint's ``meta``.

    Raises:
        CheckpointError: If it cannot be read or does not fit, naming the first keys that differ.
    """
    checkpoint = read_checkpoint(path)
    weights = checkpoint['state_dict']
    left_out = () if hasattr(model, ADAPTERS) else f'{ADAPTERS}.'  # with the teachers that they lead to
    for key in [key for key, value in weights.items() if not isinstance(value, Tensor) or key.startswith(left_out)]:
        del weights[key]
    for key, value in weights.items():
        if bool(value.isnan().any()):
            raise CheckpointError(f'checkpoint {path}: "{key}" holds NaN; did its training diverge?')
    own = model.state_dict()
    other = [key for key in own if key in weights and isinstance(own[key], Tensor)
             and weights[key].shape != own[key].shape]
    left = [key for key in other if key.rpartition('.')[0] in fresh]
    wrong = [f'{key} has shape {tuple(weights[key].shape)}, the model {tuple(own[key].shape)}'
             for key in other if key not in left]
    shapes = [f'{key} is {tuple(own[key].shape)} here, {tuple(weights.pop(key).shape)} there' for key in left]
    try:
        # Tried out and not only compared: modules may rename or resize entries of older checkpoints.
        result = model.load_state_dict(weights, strict=False)
    except CheckpointError as error:
        raise CheckpointError(f'checkpoint {path}: {error}') from error
    except RuntimeError as error:
        if not wrong:
            wrong = [' '.join(str(error).split())[:200]]
        missing, unexpected = _other_keys(own, weights)
    else:
        wrong, missing, unexpected = [], list(result.missing_keys), list(result.unexpected_keys)
    missing = [key for key in missing if not key.endswith('num_batches_tracked') and key not in left]
    problems = [f'{label}: {", ".join(keys[:3])}{f" and {len(keys) - 3} more" if len(keys) > 3 else ""}'
                for label, keys in (('other shapes', wrong), ('missing', missing),
                                    ('not in the model', unexpected)) if keys]
    if problems:
        raise CheckpointError(f'checkpoint {path} does not fit {type(model).__name__}; '
                              + '; '.join(problems) + _hint(checkpoint, own, wrong))
    if shapes:
        print_log(f'checkpoint {path}: {len(shapes)} tensors of the outputs start anew, for they have other shapes '
                  f'(first: {shapes[0]})', logger='current', level=logging.WARNING)
    return checkpoint['meta']


def _other_keys(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    return ([key for key in own if key not in weights], [key for key in weights if key not in own])


def _hint(checkpoint: Mapping[str, Any], own: Mapping[str, Tensor], wrong: list[str]) -> str:
    """Say what weights that do not fit are, and what they go with."""
    weights = checkpoint['state_dict']
    if checkpoint['run_units'] is not None:
        return ('. It belongs to a pruning run: export it with tools/export_compact.py, and give the compact.pth and '
                'compact_config.py that this writes; or give the config of the run')
    pairs = {key: (weights[key].shape, value.shape) for key, value in own.items() if key in weights
             and isinstance(value, Tensor) and weights[key].shape != value.shape}
    if len({key.rpartition('.')[0] for key in pairs}) > 2:  # more than outputs for another number of classes
        sizes = [(a, b) for there, here in pairs.values() for a, b in zip(there, here)]
        if 'channel_units' in checkpoint['meta'] or all(a <= b for a, b in sizes):
            return ('. Its layers are those of a compact model: as the config give the compact_config.py that was '
                    'written with it, or that it was trained by')
        if all(a >= b for a, b in sizes):
            return ('. Its layers are wider throughout: those of the dense model, and the config is of a compact one; '
                    'give the compact.pth that was written with that')
    if any('head' in text or 'fc' in text for text in wrong):
        return '. Does the config have the number of classes that the checkpoint was trained for?'
    return ''
