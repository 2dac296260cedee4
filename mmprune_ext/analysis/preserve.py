"""Measure a model without leaving a trace on it."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from mmprune_ext.units.demo_inputs import set_training


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
