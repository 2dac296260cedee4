"""Make two runs of like models take the same discrete decisions.

Two-stage detectors pick proposals by sorting and thresholding scores. Rounding alone may swap two of
them, and everything after that is different. When outputs are to be compared, the decisions of the
first run are replayed in the second.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from mmprune_ext.units.tracing.functions import intercepted_functions


def _decided(inputs: Any, output: Any) -> list[Tensor]:
    """Return what an operator decided: integers and truth values made from real numbers."""
    if not any(isinstance(v, Tensor) and v.is_floating_point() for v in tree_flatten(inputs)[0]):
        return []
    return [v for v in tree_flatten(output)[0]
            if isinstance(v, Tensor) and not v.is_floating_point()]


class Decisions(TorchDispatchMode):
    """Record the decisions of one run and replay them in another.

    Replaying ends quietly where the runs part: at an operator of another name. Results whose shape
    follows from another number of channels (indices of a pooling) are left as they are.
    """

    def __init__(self) -> None:
        super().__init__()
        self._made: list[tuple[str, list[Tensor]]] = []
        self._next: int | None = None
        self._inside = False

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Record what is decided in this block."""
        self._made, self._next = [], None
        with intercepted_functions(self._around), self:
            yield

    @contextlib.contextmanager
    def replayed(self) -> Iterator[None]:
        """Replay in this block what was recorded."""
        self._next = 0
        with intercepted_functions(self._around), self:
            yield

    def _around(self, cls: type, args: tuple, kwargs: dict[str, Any], run: Any) -> Any:
        outer, self._inside = self._inside, True
        try:
            output = run()
        finally:
            self._inside = outer
        return output if self._inside else self._decide(cls.__name__, (args, kwargs), output, True)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        any_size = torch.Tag.dynamic_output_shape in func.tags
        return output if self._inside else self._decide(str(func), (args, kwargs or {}), output,
                                                        any_size)

    def _decide(self, name: str, inputs: Any, output: Any, any_size: bool) -> Any:
        """Record what was decided, or return the output with what was decided before.

        ``any_size``: the output's size is part of the decision (which boxes overlap, say).
        """
        decided = _decided(inputs, output)
        if not decided:
            return output
        if self._next is None:
            self._made.append((name, [value.clone() for value in decided]))
            return output
        known, values = self._made[self._next] if self._next < len(self._made) else ('', [])
        if known != name:
            self._next = len(self._made)
            return output
        self._next += 1
        if [v.shape for v in values] == [v.shape for v in decided]:
            for value, before in zip(decided, values):
                value.copy_(before)
        elif any_size and output is decided[0]:
            output = values[0].clone()
        return output
