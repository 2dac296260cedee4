"""The files that the code of a process came from, and whether they are as they were."""

from __future__ import annotations

import functools
import hashlib
import os
import site
import sys
import sysconfig
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Files that were written later may not be what was imported.
_STARTED = time.time()
_PACKAGE = str(Path(__file__).resolve().parents[2])
_PATHS = sysconfig.get_paths()
_INSTALLED = tuple(f'{path}{os.sep}' for path in {
    _PATHS['purelib'], _PATHS['platlib'], *site.getsitepackages(), site.getusersitepackages()})
_STANDARD = tuple(f'{_PATHS[key]}{os.sep}' for key in ('stdlib', 'platstdlib'))
# Their versions tell them.
_BY_VERSION = frozenset({'torch', 'numpy'})
_VALUES = (type(None), bool, int, float, str)

State = list[Any]


@functools.cache
def own_code() -> str:
    """Return a digest of this package's code."""
    digest = hashlib.sha256()
    for path in sorted(Path(_PACKAGE).rglob('*.py')):
        digest.update(str(path.relative_to(_PACKAGE)).encode() + path.read_bytes())
    return digest.hexdigest()


def loaded() -> dict[str, State] | None:
    """Return the state of each file that code of this process came from, beside python's, torch's and this package's.

    An installed file's is its size and time; of any other its content counts, and the plain values that its module
    holds. ``None`` if a file was written after it may have been imported, or is no more.
    """
    found = {}
    for name, module in list(sys.modules.items()):
        held = getattr(module, '__dict__', {})
        path = held.get('__file__')
        if (not isinstance(path, str) or not os.path.isabs(path) or name in ('__main__', '__mp_main__')
                or name.partition('.')[0] in _BY_VERSION or path.startswith(f'{_PACKAGE}{os.sep}')):
            continue
        installed = path.startswith(_INSTALLED)
        if not installed and path.startswith(_STANDARD):
            continue
        try:
            found[path] = _installed(path) if installed else [*_content(path), _plain_values(held)]
        except OSError:
            return None
    return found


def unchanged(before: Mapping[str, State], now: Mapping[str, State]) -> bool:
    """Whether all code is what it was when something was kept.

    Args:
        before: What :func:`loaded` gave then.
        now: What it gives now. Files that are not loaded yet are looked up; installed ones that were not loaded then
            have no part in it, others may have.
    """
    if any(path not in before and not path.startswith(_INSTALLED) for path in now):
        return False
    for path, state in before.items():
        try:
            if path in now:
                same = now[path] == state
            else:
                same = _installed(path) == state if path.startswith(_INSTALLED) else _content(path) == state[:1]
        except OSError:
            return False
        if not same:
            return False
    return True


def _installed(path: str) -> State:
    state = os.stat(path)
    return [state.st_size, state.st_mtime_ns]


def _content(path: str) -> State:
    if os.stat(path).st_mtime > _STARTED:
        raise FileNotFoundError(path)
    return [hashlib.sha256(Path(path).read_bytes()).hexdigest()]


def _plain_values(held: Mapping[str, Any]) -> str:
    values = sorted((name, repr(value)) for name, value in held.items()
                    if isinstance(value, _VALUES) and not name.startswith('__'))
    return hashlib.sha256(repr(values).encode()).hexdigest()
