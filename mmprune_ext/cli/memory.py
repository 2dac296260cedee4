"""Memory that is freed stays with the process: passes on a CPU ask for the same sizes again and again."""

from __future__ import annotations

import ctypes
import os
import platform

# The names of glibc's malloc.h for mallopt, and the largest values that it takes.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_TRIM, _MMAP = 2 ** 31 - 1, 32 * 1024 ** 2


def keep_freed_memory() -> None:
    """Let this process and those that it starts use freed memory again instead of giving it back to the system.

    By default glibc takes the memory of every larger tensor from the system and gives it back, and the system clears
    each page anew. A pass of ResNet-56 over 50 images of CIFAR spends about a fifth of its time so. The threshold
    above which memory is given back is that of each process; what the user has set in the environment stays. Does
    nothing where the C library is another one.
    """
    if platform.libc_ver()[0] != 'glibc' or any(name.startswith('MALLOC_') for name in os.environ):
        return
    library = ctypes.CDLL(None)
    library.mallopt(_M_MMAP_THRESHOLD, _MMAP)
    library.mallopt(_M_TRIM_THRESHOLD, _TRIM)
    os.environ.update(MALLOC_MMAP_THRESHOLD_=str(_MMAP), MALLOC_TRIM_THRESHOLD_=str(_TRIM))
