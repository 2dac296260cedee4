"""Make two runs of like models take the same discrete decisions.

Two-stage detectors pick proposals by sorting and thresholding scores. Rounding alone may swap two of
them, and everything after that is different. When outputs are to be compared, the decisions of the
first run are replayed in the second, where it would take them from the same numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from mmprune_ext.units.passes.functions import intercepted_functions

# Relative to the largest of the numbers that a decision is taken from.
ROUNDING = 1e-3


@dataclass
class _Decision:
    """What an operator decided, and from what.

    Attributes:
        name: The operator.
        inputs: The real numbers that it looked at.
        values: The integers and truth values that it gave.
    """

    name: str
    inputs: list[Tensor]
    values: list[Tensor]

    @classmethod
    def of(cls, name: str, inputs: Any, output: Any) -> _Decision:
        """Return what an operator was given and gave."""
        real = [v for v in tree_flatten(inputs)[0] if isinstance(v, Tensor) and v.is_floating_point()]
        values = [v for v in tree_flatten(output)[0] if isinstance(v, Tensor) and not v.is_floating_point()]
        return cls(name, real, values)

    def kept(self) -> _Decision:
        """Return a copy that later writes into the tensors do not reach."""
        return _Decision(self.name, [v.clone() for v in self.inputs], [v.clone() for v in self.values])

    def looked_at(self, inputs: list[Tensor]) -> bool:
        """Whether these inputs are those of this decision but for rounding."""
        return len(inputs) == len(self.inputs) and all(map(_same, self.inputs, inputs))


def _same(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape:
        return False
    differ = first != second  # infinities are equal
    gap = (first - second).abs()[differ]
    scale = first.abs()[first.isfinite()]
    return not gap.numel() or bool(scale.numel() and gap.max() <= ROUNDING * scale.max())


class Decisions(TorchDispatchMode):
    """Record the decisions of one run and replay them in another.

    Replaying ends quietly where the runs part: at an operator of another name. A decision is replayed only
    where both runs look at the same numbers, but for rounding: one that the pruned channels themselves
    take part in (the place of a maximum in one of them) is the second run's own.
    """

    def __init__(self) -> None:
        super().__init__()
        self._made: list[_Decision] = []
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
            # The mode sees what is compared in here, for it is on outside the dispatcher: no decision of the model.
            return output if outer else self._decide(cls.__name__, (args, kwargs), output, True)
        finally:
            self._inside = outer

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
        if isinstance(output, Tensor) and output.is_floating_point():
            return output
        now = _Decision.of(name, inputs, output)
        if not now.inputs or not now.values:
            return output
        if self._next is None:
            self._made.append(now.kept())
            return output
        before = self._made[self._next] if self._next < len(self._made) else None
        if before is None or before.name != name:
            self._next = len(self._made)
            return output
        self._next += 1
        if not before.looked_at(now.inputs):
            return output
        if [v.shape for v in before.values] == [v.shape for v in now.values]:
            for value, known in zip(now.values, before.values):
                value.copy_(known)
        elif any_size and output is now.values[0]:
            output = before.values[0].clone()
        return output
