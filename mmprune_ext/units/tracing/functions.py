"""Custom autograd functions, which call compiled code that the dispatcher does not see."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

# Custom autograd functions that treat every channel (dimension 1 of the first argument) by itself.
CHANNEL_PRESERVING_FUNCTIONS = {
    'RoIAlignFunction', 'RoIPoolFunction', 'RoIAlignRotatedFunction', 'SigmoidFocalLossFunction',
    'BorderAlignFunction', 'CornerPoolFunction', 'DeformRoIPoolFunction', 'PrRoIPoolFunction'}
# Functions that run the model's own code again (activation checkpointing).
CHECKPOINT_FUNCTIONS = {'CheckpointFunction', '_NoopSaveInputs'}

Around = Callable[[type, tuple, dict[str, Any], Callable[[], Any]], Any]


@contextlib.contextmanager
def intercepted_functions(around: Around) -> Iterator[None]:
    """Call ``around(function, args, kwargs, run)`` in place of each custom function's ``apply``.

    ``run()`` executes the function; what ``around`` returns is its result.
    """
    original = torch.autograd.Function.__dict__['apply']

    def apply(cls: type, *args: Any, **kwargs: Any) -> Any:
        def run() -> Any:
            return original.__get__(None, cls)(*args, **kwargs)
        return run() if cls.__name__ in CHECKPOINT_FUNCTIONS else around(cls, args, kwargs, run)

    torch.autograd.Function.apply = classmethod(apply)
    try:
        yield
    finally:
        torch.autograd.Function.apply = original
