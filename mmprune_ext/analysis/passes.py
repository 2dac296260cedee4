"""The forward pass that is counted and timed, of a model of any task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmprune_ext.errors import PruningError
from mmprune_ext.units.demo_inputs import (
    DemoInputs,
    Forward,
    eval_pass,
    failure_of,
    image_shape,
    own_pass,
)
from mmprune_ext.units.passes.regions import Regions
from mmprune_ext.units.task_samples import regions_of


@dataclass(frozen=True)
class InferencePass:
    """One forward pass of a model, as inference runs it.

    Attributes:
        forward: Takes the model and runs it.
        shape: ``(C, H, W)`` of a sample, ``None`` for a demo pass of the user's own.
        regions: What the second stage of a detector looks at, ``None`` for other models.
    """

    forward: Forward
    shape: tuple[int, ...] | None
    regions: Regions | None

    def run(self, model: nn.Module) -> Any:
        """Run the model.

        Raises:
            PruningError: If it fails.
        """
        try:
            return self.forward(model)
        except Exception as error:  # the model's code may fail in any way
            place = ('the given demo pass' if self.shape is None
                     else f'an input of shape {self.shape}')
            raise PruningError(
                f'{type(model).__name__} does not run on {place}: {failure_of(model, error)}. '
                'Give an input size that it accepts, or demo_inputs: a function that takes the '
                'model and runs it, dict(type=...) in a config') from error


def inference_pass(model: nn.Module, inputs: DemoInputs = None, batch_size: int = 1) -> InferencePass:
    """Return the pass of a model on noise that is the same each time.

    Args:
        model: The model, dense or compact.
        inputs: As of :func:`mmprune_ext.analysis.complexity`; of a batch the first samples.
        batch_size: Samples per pass; without meaning for a pass of the user's own.

    Raises:
        PruningError: If the inputs are malformed.
    """
    own = own_pass(inputs)
    if own is not None:
        return InferencePass(own, None, None)
    regions = regions_of(model)
    if isinstance(inputs, Tensor):
        batch = inputs[:batch_size]
    else:
        batch = _noise(model, sample_shape(model, inputs), batch_size)
    try:
        forward = eval_pass(model, batch, regions)
    except Exception as error:  # ground truth is made by the model's own codec
        if isinstance(error, PruningError):
            raise
        raise PruningError(
            f'{type(model).__name__}: no data samples can be made for an input of shape '
            f'{tuple(batch.shape[1:])} ({type(error).__name__}: {error}); give its own input size, '
            'or demo_inputs: a function that takes the model and runs it') from error
    return InferencePass(forward, tuple(batch.shape[1:]), regions)


def sample_shape(model: nn.Module, size: Sequence[int] | None) -> tuple[int, ...]:
    """Return the shape of one sample without the batch dimension.

    Args:
        model: The model; its first layer gives the channels where ``size`` does not.
        size: ``(C, H, W)``, ``(H, W)``, ``(C,)`` for a model of vectors, or ``None`` for the size
            that the model states, else 224 x 224.

    Raises:
        PruningError: If ``size`` is none of these.
    """
    if size is None:
        return image_shape(model)
    good = (isinstance(size, Sequence) and not isinstance(size, (str, Mapping))
            and len(size) in (1, 2, 3))
    if not good or not all(isinstance(s, int) and not isinstance(s, bool) and s > 0 for s in size):
        raise PruningError('input_shape should be (C, H, W) or (H, W) in positive integers, '
                           f'but got {size!r}')
    return tuple(size) if len(size) == 1 else image_shape(model, size)


def _noise(model: nn.Module, shape: Sequence[int], batch_size: int) -> Tensor:
    """Return a batch of noise on the device and in the floating-point type of the model."""
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    noise = torch.randn(batch_size, *shape, generator=torch.Generator().manual_seed(0))
    return noise.to(weight)
