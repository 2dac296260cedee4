"""The passes of the dense and the slimmed model over one batch, held where a plan wants it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmprune_ext.repair.lanes import Lane
from mmprune_ext.repair.passes import PassPair, images_in
from mmprune_ext.repair.plan import Event, Plan, input_of
from mmprune_ext.repair.watch import Tail, Viewer, Watch
from mmprune_ext.units.layer_matrix import LayerMatrix


class HeldPair:
    """Both passes over one batch, the dense one a step ahead.

    Args:
        watches: Of the dense and of the slimmed model.
        pair: How both are run.
        plan: Where they are held.
        data: The batch.

    Attributes:
        images: In the batch.
        runs: The passes from the start, for those that must see all of it again and again.
        branches: By path of a layer whose sum is yet to come, what it reads in the slimmed model and gives in the
            dense one.
    """

    def __init__(self, watches: Sequence[Watch], pair: PassPair, plan: Plan, data: Any) -> None:
        self.images = images_in(data)
        self.runs = pair.runs(data)
        self.branches: dict[str, tuple[Tensor, Tensor]] = {}
        self._plan = plan
        self._lanes = [Lane(partial(_view, watch, plan, run, dense))
                       for watch, run, dense in zip(watches, self.runs, (True, False))]

    def advance(self, event: Event) -> tuple[Any, Any]:
        """Go on to the next event of the plan.

        Returns:
            What the dense and the slimmed model hold there: before a layer, what the dense one gives and the slimmed
            one reads; before a sum, what is added to the branch; before a block, its arguments.
        """
        if event.path == '':  # the pass is run from its start instead
            return None, None
        found = []
        for lane in self._lanes:
            kind, path, value = lane.advance() or ('the end', '', None)
            if (kind, path) != (event.kind, event.path):
                raise RuntimeError(f'repair: a pass came to {kind} "{path}" instead of {event.kind} "{event.path}"')
            found.append(value)
        if event.kind == 'layer' and event.path in self._plan.sums:
            self.branches[event.path] = found[1], found[0]
        return found[0], found[1]

    def close(self) -> None:
        """End both passes where they are."""
        for lane in self._lanes:
            lane.close()
        self.branches.clear()


def _view(watch: Watch, plan: Plan, run: Callable[[], Any], dense: bool, lane: Lane) -> None:
    with watch.viewing(_Side(plan, lane, watch.model, dense)):
        run()


class _Side(Viewer):
    """Holds one pass where the plan wants it."""

    def __init__(self, plan: Plan, lane: Lane, model: nn.Module, dense: bool) -> None:
        self._plan = plan
        self._single = plan.single
        self._norms = {norm: path for path, norm in plan.sums.items() if norm is not None}
        self._lane = lane
        self._model = model
        self._dense = dense
        self._inside = False
        self._branches: dict[str, tuple[Callable[..., Any], Tensor]] = {}

    def call(self, path: str, forward: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        if self._inside:
            return forward(*args, **kwargs)
        if path in self._plan.inside:
            self._lane.hold(('block', path, (args, kwargs)))
            self._inside = True
            try:
                return forward(*args, **kwargs)
            finally:
                self._inside = False
        if path in self._single:
            return self._layer(path, forward, input_of(args, kwargs))
        output = forward(*args, **kwargs)
        tail = Tail.of(args[0]) if path in self._norms and args else None
        if tail is not None and tail.path == self._norms[path]:
            Tail(tail.path, path, output)
        return output

    def _layer(self, path: str, forward: Callable[..., Any], x: Tensor) -> Tensor:
        if not self._dense:
            self._lane.hold(('layer', path, x))
        if self._dense:
            output = forward(x)
            self._lane.hold(('layer', path, output))
        else:  # before a sum it is computed when it has been repaired
            output = _stand_in(self._model.get_submodule(path), forward, x) if path in self._plan.sums else forward(x)
        if path in self._plan.sums:
            Tail(path, None, output)
            if not self._dense:
                self._branches[path] = forward, x
        return output

    def before_sum(self, first: Tensor, second: Tensor) -> None:
        for value, other in ((first, second), (second, first)):
            tail = Tail.of(value)
            if tail is not None and not self._inside and self._plan.sums.get(tail.path, '') == tail.norm:
                self._sum(tail, value, other)

    def _sum(self, tail: Tail, value: Tensor, other: Tensor) -> None:
        self._lane.hold(('sum', tail.path, other))
        if not self._dense:
            forward, x = self._branches.pop(tail.path)
            self._inside = True
            output = forward(x)
            value.copy_(output if tail.norm is None else self._model.get_submodule(tail.norm)(output))
            self._inside = False


def _stand_in(layer: nn.Module, forward: Callable[..., Any], x: Tensor) -> Tensor:
    """Return a tensor of the shape that a layer gives, whose content means nothing."""
    if not LayerMatrix(layer).is_batched(x):
        return forward(x)
    first = forward(x[:1])
    kind = torch.channels_last if first.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) else (
        torch.contiguous_format)
    return torch.empty_like(first.expand(len(x), *first.shape[1:]), memory_format=kind)
