"""Calls that the dispatcher does not see: custom autograd functions, and tensors that become numbers of Python."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from mmprune_ext.sizes import JointLayer

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

    ``run()`` executes the function, unseen by all modes of the dispatcher; what ``around`` returns is its result. Where
    ``apply`` was bound to another name before (``roi_align = RoIAlignFunction.apply``), the function is caught at its
    ``forward``; else that is called inside of ``run()``.
    """
    original = torch.autograd.Function.__dict__['apply']

    def apply(cls: type, *args: Any, **kwargs: Any) -> Any:
        def run() -> Any:
            return original.__get__(None, cls)(*args, **kwargs)
        return run() if cls.__name__ in CHECKPOINT_FUNCTIONS else around(cls, args, kwargs, _unseen(run))

    bound = {cls: cls.__dict__['forward'] for cls in _custom_functions(torch.autograd.Function)}
    torch.autograd.Function.apply = classmethod(apply)
    for cls, forward in bound.items():
        cls.forward = staticmethod(_caught(cls, forward.__get__(None, cls), around))
    try:
        yield
    finally:
        torch.autograd.Function.apply = original
        for cls, forward in bound.items():
            cls.forward = forward


def _custom_functions(base: type) -> Iterator[type]:
    """Yield the functions with a ``forward`` of their own that are not a part of torch."""
    for cls in base.__subclasses__():
        if 'forward' in vars(cls) and cls.__module__.partition('.')[0] != 'torch' \
                and cls.__name__ not in CHECKPOINT_FUNCTIONS:
            yield cls
        yield from _custom_functions(cls)


def _caught(cls: type, forward: Callable[..., Any], around: Around) -> Callable[..., Any]:
    with_context = cls.setup_context is torch.autograd.Function.setup_context

    def caught(*args: Any, **kwargs: Any) -> Any:
        inputs = args[1:] if with_context else args
        return around(cls, inputs, kwargs, _unseen(lambda: forward(*args, **kwargs)))
    return caught


def _unseen(run: Callable[[], Any]) -> Callable[[], Any]:
    """Return a function that runs another without modes of the dispatcher: compiled loops call it for each number."""
    def unseen() -> Any:
        with _disable_current_modes():
            return run()
    return unseen


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
        if func is F.linear and isinstance(functional_arguments(args, kwargs)[1], JointLayer):
            with self:  # what it computes is the model's, too
                return JointLayer.product(*args, **kwargs)
        return self._around(func, args, kwargs, lambda: func(*args, **kwargs))


def functional_arguments(args: tuple, kwargs: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Return input, weight and bias of a call of one of ``OF_A_WEIGHT``."""
    given = dict(zip(('input', 'weight', 'bias'), args))
    return tuple({**kwargs, **given}.get(name) for name in ('input', 'weight', 'bias'))
