"""The states of the random number generators, to be put back and compared."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Draws:
    """What Python, NumPy and torch will draw next; states that are equal draw the same.

    Putting a state back is faster than seeding: torch notes each seed, with the calls that led to it, for a CUDA that
    may be initialised later.

    Attributes:
        python: State of ``random``.
        numpy: State of ``numpy.random``, its array as bytes.
        torch: Of the CPU, and of each CUDA device if CUDA has begun.
    """

    python: Any
    numpy: tuple[Any, ...]
    torch: tuple[bytes, ...]

    @classmethod
    def now(cls) -> Draws:
        """Return the present state."""
        name, array, *rest = np.random.get_state()
        states = [torch.get_rng_state()]
        if torch.cuda.is_initialized():
            states += torch.cuda.get_rng_state_all()
        return cls(random.getstate(), (name, array.tobytes(), array.dtype.str, *rest),
                   tuple(state.numpy().tobytes() for state in states))

    def put_back(self) -> None:
        """Let the generators draw what they would have drawn when this was taken."""
        random.setstate(self.python)
        name, array, kind, *rest = self.numpy
        np.random.set_state((name, np.frombuffer(array, dtype=kind), *rest))
        own, *devices = (torch.frombuffer(bytearray(state), dtype=torch.uint8) for state in self.torch)
        torch.set_rng_state(own)
        if devices:
            torch.cuda.set_rng_state_all(devices)


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Leave all random number generators as they were before the block."""
    if torch.cuda.is_available():
        torch.cuda.init()  # a seed that the block sets would wait for CUDA to begin, and hold from then on
    before = Draws.now()
    try:
        yield
    finally:
        before.put_back()
