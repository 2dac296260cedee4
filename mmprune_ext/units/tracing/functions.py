"""Calls that the dispatcher does not see: custom autograd functions, and tensors that become numbers of Python."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# Custom autograd functions that treat every channel (dimension 1 of the first argument) by itself.
CHANNEL_PRESERVING_FUNCTIONS = {
    'RoIAlignFunction', 'RoIPoolFunction', 'RoIAlignRotatedFunction', 'SigmoidFocalLossFunction',
    'BorderAlignFunction', 'CornerPoolFunction', 'DeformRoIPoolFunction', 'PrRoIPoolFunction'}
# Functions that run the model's own code again (activation checkpointing).
CHECKPOINT_FUNCTIONS = {'CheckpointFunction', '_NoopSaveInputs'}

# Methods that give a tensor's values to code without tensors.
LEAVING = {Tensor.numpy, Tensor.tolist, Tensor.__array__}
# Functions that compute what a layer of this kind does with a weight, their second argument.
OF_A_WEIGHT = {F.linear: nn.Linear, F.conv1d: nn.Conv1d, F.conv2d: nn.Conv2d, F.conv3d: nn.Conv3d}

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


class PythonCalls(TorchFunctionMode):
    """Call ``around(function, args, kwargs, run)`` in place of each function of torch's Python interface.

    Functions that such a function calls are a part of it.
    """

    def __init__(self, around: Callable[..., Any]) -> None:
        super().__init__()
        self._around = around

    def __torch_function__(self, func: Any, types: Any, args: tuple = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        return self._around(func, args, kwargs, lambda: func(*args, **kwargs))


def functional_arguments(args: tuple, kwargs: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Return input, weight and bias of a call of one of ``OF_A_WEIGHT``."""
    given = dict(zip(('input', 'weight', 'bias'), args))
    return tuple({**kwargs, **given}.get(name) for name in ('input', 'weight', 'bias'))
