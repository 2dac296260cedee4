"""Look at the calls of a model's modules, and at the sums of what they give, while it runs."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

SUMS = {'add', '__add__', '__radd__', 'add_', '__iadd__'}
_TAG = '_mmprune_tail'


class Tail:
    """The outputs of a layer on their way to a sum: as the layer gave them, or a normalisation made of them.

    Attributes:
        path: Of the layer.
        norm: Path of the normalisation, if one was passed.
    """

    def __init__(self, path: str, norm: str | None, value: Tensor) -> None:
        self.path = path
        self.norm = norm
        self._version = value._version
        setattr(value, _TAG, self)

    @staticmethod
    def of(value: Any) -> Tail | None:
        """Return what a tensor is the tail of, unless it was changed in place since."""
        tail = getattr(value, _TAG, None) if isinstance(value, Tensor) else None
        return tail if tail is not None and tail._version == value._version else None


class Viewer:
    """What looks at the calls in one pass. This one lets them be."""

    def call(self, path: str, forward: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        """Do the call of a module."""
        return forward(*args, **kwargs)

    def before_sum(self, first: Tensor, second: Tensor) -> None:
        """Look at a sum of two tensors of one shape, one of them the tail of a layer or both, before it is taken."""

    def after_function(self, args: tuple, kwargs: Mapping[str, Any], output: Any) -> None:
        """Look at a function of torch that was called, but for the sums above."""


class Watch:
    """Lets every thread look at the calls of a model's modules with a viewer of its own.

    ``forward`` of all modules is wrapped inside the block: mmdet and mmseg call that of their heads directly, which
    hooks would not see.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._viewers: dict[int, Viewer] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Watch:
        for path, module in self.model.named_modules():
            self._stack.enter_context(replaced(module, 'forward', self._wrapped(path, module.forward)))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _wrapped(self, path: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)  # the signature too, which tells OpenMMLab's models from others
        def call(*args: Any, **kwargs: Any) -> Any:
            viewer = self._viewers.get(threading.get_ident())
            return forward(*args, **kwargs) if viewer is None else viewer.call(path, forward, args, kwargs)
        return call

    @contextlib.contextmanager
    def viewing(self, viewer: Viewer) -> Iterator[None]:
        """Let a viewer look at what this thread runs inside the block."""
        this = threading.get_ident()
        before = self._viewers.get(this)
        self._viewers[this] = viewer
        try:
            with _Functions(viewer):
                yield
        finally:
            self._viewers.pop(this)
            if before is not None:
                self._viewers[this] = before


@contextlib.contextmanager
def replaced(module: nn.Module, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """Give one module another method of this name inside the block."""
    own = vars(module).get(name)
    vars(module)[name] = method
    try:
        yield
    finally:
        if own is None:
            del vars(module)[name]
        else:
            vars(module)[name] = own


class _Functions(TorchFunctionMode):
    """Shows a viewer the functions of torch that are called, sums of a layer's tail before they are taken."""

    def __init__(self, viewer: Viewer) -> None:
        super().__init__()
        self._viewer = viewer

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        is_sum = (getattr(func, '__name__', '') in SUMS and not kwargs and _alike(args)
                  and any(Tail.of(value) is not None for value in args))
        if is_sum:
            self._viewer.before_sum(*args)
        output = func(*args, **kwargs)
        if not is_sum:
            self._viewer.after_function(args, kwargs, output)
        return output


def _alike(args: tuple) -> bool:
    return len(args) == 2 and all(isinstance(value, Tensor) for value in args) and args[0].shape == args[1].shape
