"""Reading checkpoints without running what they name."""

from __future__ import annotations

import contextlib
import inspect
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.runner import CheckpointLoader

from mmprune_ext.errors import CheckpointError
from mmprune_ext.trust import FLAG, TRUST, checkpoints, is_trusted, refused_name


def allowed_globals() -> list[Callable | tuple[Callable, str]]:
    """Return what checkpoints of mmengine's runs name beside tensors and plain values: logs, schedules, numpy's arrays.

    None of it does anything but hold values. The functions among a log's statistics are pickled by ``getattr``, in the
    place of which stands one that gives nothing else.
    """
    core = np._core if hasattr(np, '_core') else np.core
    numpys = [(getattr(core.multiarray, name), f'numpy.{module}.multiarray.{name}')
              for module in ('core', '_core') for name in ('_reconstruct', 'scalar')]
    dtypes = [value for value in vars(np.dtypes).values() if isinstance(value, type)]
    schedulers = {cls for cls in PARAM_SCHEDULERS.module_dict.values() if isinstance(cls, type)}
    return [*numpys, np.ndarray, np.dtype, *dtypes, slice, HistoryBuffer, ConfigDict, *schedulers,
            (_method, 'builtins.getattr')]


def _method(owner: Any, name: str) -> Any:
    """Stand in for ``getattr`` in a checkpoint: a method of one of mmengine's classes, which nothing there calls.

    Raises:
        pickle.UnpicklingError: For all else.
    """
    known = owner is HistoryBuffer or owner in PARAM_SCHEDULERS.module_dict.values()
    found = inspect.getattr_static(owner, name, None) if known and not str(name).startswith('__') else None
    if isinstance(found, staticmethod):
        found = found.__func__
    if not inspect.isfunction(found):
        raise pickle.UnpicklingError(f'Unsupported global: GLOBAL getattr({owner!r:.60}, {name!r:.60})')
    return found


def allow_runs() -> None:
    """Let torch read checkpoints of mmengine's runs by ``weights_only`` in this process, whoever asks it to."""
    torch.serialization.add_safe_globals(allowed_globals())


@contextlib.contextmanager
def _allowed_here() -> Iterator[None]:
    """Do so in a block. torch's own block would also take away what was allowed before it."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(allowed_globals())
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def load_file(path: str | Path) -> Any:
    """Return the content of a checkpoint, from a file or through mmengine's file backends for a URL.

    Raises:
        CheckpointError: If it cannot be read, or holds what could run code and is not trusted.
    """
    try:
        with checkpoints(is_trusted()), _allowed_here():
            if '://' in str(path):
                return CheckpointLoader.load_checkpoint(str(path), map_location='cpu')
            return torch.load(path, map_location='cpu', weights_only=not is_trusted())
    except Exception as error:  # unpickling a damaged file may raise anything
        text, name = ' '.join(str(error).split()), refused_name(error)
        if name:
            raise CheckpointError(
                f'checkpoint {path}: holds more than weights, {name}, which may run code when it is read; if you trust '
                f'where it is from, give {FLAG}, or set {TRUST}=1 where no tool reads it') from error
        raise CheckpointError(f'checkpoint {path}: cannot be read, it is truncated or not a PyTorch '
                              f'checkpoint ({type(error).__name__}: {text[:120]})') from error

