"""Regions of an image that the second stage of a detector is given, in the place of its own proposals."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Regions:
    """How many regions of an image the second stage of a detector looks at when it is measured.

    Attributes:
        proposals: Proposals that its box heads see.
        masks: Detections that its mask head sees, 0 without one.
    """

    proposals: int
    masks: int


def spread_boxes(count: int, size: tuple[int, int]) -> Tensor:
    """Return boxes ``(count, 4)`` of all sizes all over an image ``(H, W)``, the same each time."""
    # Multiples of these numbers, taken modulo 1, fill the unit cube evenly.
    steps = np.arange(1, count + 1)[:, None] * np.array([0.8191725, 0.6710436, 0.5497005]) % 1
    height, width = size
    sides = 16 * (max(height, width) / 16) ** steps[:, 2:]
    centres = steps[:, :2] * [width, height]
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], 1)
    return torch.from_numpy(np.clip(boxes, 0, [width, height, width, height]).astype(np.float32))


@contextlib.contextmanager
def replaced(module: nn.Module, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """Give one module another method of this name inside the block."""
    module.__dict__[name] = method
    try:
        yield
    finally:
        del module.__dict__[name]
