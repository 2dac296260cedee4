"""What a measurement was taken on, and timing of it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any, NamedTuple

import torch

import mmprune_ext


class Spent(NamedTuple):
    """Seconds that a call took by the clock, and of processor time."""

    wall: float
    cpu: float


def timed(function: Callable[[], Any]) -> tuple[Any, Spent]:
    """Return what a function returns and the time it took.

    Processor time is that of this process: it leaves out the waiting for other programs, but not
    that they share caches and memory.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return result, Spent(time.perf_counter() - wall, time.process_time() - cpu)


def extra_memory(function: Callable[[], Any]) -> float:
    """Return by how many MB a call lets the resident memory rise at its peak (Linux only; else nan)."""
    if not os.access('/proc/self/clear_refs', os.W_OK):
        return math.nan
    gc.collect()
    with contextlib.suppress(AttributeError):  # not every C library keeps what is freed, nor has the call
        ctypes.CDLL(None).malloc_trim(0)  # else the call may fill that first, and takes less than it needs
    before = memory('VmRSS')
    with open('/proc/self/clear_refs', 'w') as file:
        file.write('5')  # the peak is forgotten
    function()
    return max(0.0, memory('VmHWM') - before) / 1000


def memory(key: str) -> float:
    """Return an entry of this process's status, in kB, such as VmRSS or VmHWM, its peak; nan elsewhere than on Linux.

    Not by ``getrusage``, whose peak a process inherits from the one that started it.
    """
    try:
        with open('/proc/self/status') as file:
            return next(float(line.split()[1]) for line in file if line.startswith(key))
    except OSError:
        return math.nan


def bytes_written() -> float:
    """Return how many bytes this process has written to files, pipes and terminals; nan elsewhere than on Linux."""
    try:
        with open('/proc/self/io') as file:
            return next(float(line.split()[1]) for line in file if line.startswith('wchar'))
    except OSError:
        return math.nan


def header(script: str) -> str:
    """Return lines that name the machine, the versions and the command of a measurement."""
    load = ' '.join(f'{value:.1f}' for value in os.getloadavg()) if hasattr(os, 'getloadavg') else '?'
    found = machine()
    return (f'command: {shlex.join(["python", script, *sys.argv[1:]])}\n'
            f'machine: {found["machine"]}, load at the start {load}\n'
            f'versions: {found["versions"]}')


def machine() -> dict[str, str]:
    """Return what numbers depend on beside the command: the machine, and the versions of what runs."""
    versions = ', '.join(f'{name} {_version(name)}' for name in (
        'torch', 'onedl-mmengine', 'mmengine', 'onedl-mmpretrain', 'mmpretrain', 'torch-pruning')
        if _version(name))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'
    return {'machine': f'{os.cpu_count()}-core {platform.machine()}, {device}, {torch.get_num_threads()} thread(s)',
            'versions': f'mmprune_ext {mmprune_ext.__version__}, Python {platform.python_version()}, {versions}'}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ''
