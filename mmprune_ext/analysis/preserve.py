"""Measure a model without leaving a trace on it."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

from mmprune_ext.errors import PruningError
from mmprune_ext.units.demo_inputs import image_shape, set_training


@contextlib.contextmanager
def untouched(*models: nn.Module) -> Iterator[None]:
    """Run the block in eval mode, without gradients, on models that are the same afterwards.

    Train flags, buffers and the random number generators (Python, NumPy, torch) are restored, and
    the generators start from a fixed seed.
    """
    flags = [(module, module.training) for model in models for module in model.modules()]
    buffers = [(b, b.detach().clone()) for model in models for b in model.buffers()]
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for model in models:
            set_training(model, False)
        try:
            yield
        finally:
            for module, flag in flags:
                module.training = flag
            for buffer, value in buffers:
                # Written only where needed: a write raises the version that autograd checks.
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
            np.random.set_state(numpy_state)
            random.setstate(python_state)


def sample_shape(model: nn.Module, size: Sequence[int] | None) -> tuple[int, ...]:
    """Return the shape of one sample without the batch dimension.

    Args:
        model: The model; its first layer gives the channels where ``size`` does not.
        size: ``(C, H, W)``, ``(H, W)``, ``(C,)`` for a model of vectors, or ``None`` for the size
            that the backbone states, else 224 x 224.

    Raises:
        PruningError: If ``size`` is none of these.
    """
    if size is None:
        return image_shape(model)
    good = isinstance(size, Sequence) and not isinstance(size, str) and len(size) in (1, 2, 3)
    if not good or not all(isinstance(s, int) and not isinstance(s, bool) and s > 0 for s in size):
        raise PruningError('input_shape should be (C, H, W) or (H, W) in positive integers, '
                           f'but got {size!r}')
    return tuple(size) if len(size) == 1 else image_shape(model, size)


def sample_batch(model: nn.Module, shape: Sequence[int], batch_size: int) -> torch.Tensor:
    """Return a batch of noise on the device and in the floating-point type of the model."""
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return torch.randn(batch_size, *shape, device=weight.device).to(weight.dtype)
