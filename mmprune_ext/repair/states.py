"""Which of several states of a pruned model's weights gives the outputs that are nearest to the dense model's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.dist import all_reduce, broadcast, get_world_size
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from mmprune_ext.errors import PruningError
from mmprune_ext.units.demo_inputs import is_openmmlab
from mmprune_ext.units.task_samples import tensor_pass

# The parameters and buffers of a model by name.
State = dict[str, Tensor]


def state_of(model: nn.Module) -> State:
    """Return a copy of a model's parameters and buffers, by name."""
    return {name: value.detach().clone() for name, value in _values(model)}


def set_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a model, in place, the parameters and buffers of a :func:`state_of` it."""
    with torch.no_grad():
        for name, value in _values(model):
            value.copy_(state[name])


def _values(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(model.named_parameters(), model.named_buffers())


def distances(model: nn.Module, states: Mapping[str, State], dense: nn.Module,
              batches: Iterable[Any]) -> dict[str, float]:
    """Return how far a model's outputs are from the dense model's, for each of several states of its weights.

    The outputs are those before post-processing: logits of classes, maps of heads, heatmaps. Of each tensor among them
    the squared error counts as a share of the dense tensor's variance, over all batches; the distance is the root of
    the mean of these shares. 0 is no difference, 1 about that of a constant answer.

    Args:
        model: The pruned model; it has the last of the states afterwards. Both models are in eval mode.
        states: The states, by name (:func:`state_of`).
        dense: The dense model, on the same device.
        batches: Batches as the dataloader gives them; those of all processes count.

    Returns:
        The distance of each state, infinite where an output is; the same in all processes.

    Raises:
        PruningError: If the models give no floating-point outputs, or other ones than each other.
    """
    sums = {name: _Sums() for name in states}
    with torch.no_grad():
        for batch in batches:
            data = batch if not hasattr(dense, 'data_preprocessor') else dense.data_preprocessor(batch, True)
            wanted = outputs(dense, data)
            for name, state in states.items():
                set_state(model, state)
                sums[name].add(outputs(model, data), wanted)
    return {name: each.distance() for name, each in sums.items()}


def outputs(model: nn.Module, data: Any) -> list[Tensor]:
    """Return the floating-point tensors that a model gives for preprocessed data, before post-processing.

    The second stage of a detector looks at the boxes of the ground truth: its own proposals would differ.

    Raises:
        PruningError: If there are none.
    """
    if is_openmmlab(model):
        result = tensor_pass(model, data.get('data_samples'))(model, data['inputs'])
    else:
        result = model(data)
    found = list(_tensors(result))
    if not found:
        raise PruningError(f'repair: {type(model).__name__} gives no tensors that could be compared with those of '
                           'the dense model; leave it out (prune.py --repair 0)')
    return found


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors in nested lists, dicts and data samples, but no ground truth."""
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.numel():
            yield value
    elif isinstance(value, (Mapping, BaseDataElement)):
        for key, item in value.items():
            if not key.startswith(('gt_', 'ignored_')):
                yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


class _Sums:
    """Sums over batches of what the distance is computed from, a row a tensor.

    A row holds the sum of squared errors, and of the dense model's values their sum, sum of squares and number.
    """

    def __init__(self) -> None:
        self.rows: list[Tensor] = []

    def add(self, found: list[Tensor], wanted: list[Tensor]) -> None:
        if [value.shape for value in found] != [value.shape for value in wanted]:
            raise PruningError('repair: the pruned model gives outputs of other shapes than the dense one: '
                               f'{_shapes(found)}, the dense model {_shapes(wanted)}')
        for place, (own, dense) in enumerate(zip(found, wanted)):
            own, dense = own.double(), dense.double()
            row = torch.stack([(own - dense).square().sum(), dense.sum(), dense.square().sum(),
                               dense.new_tensor(dense.numel())]).cpu()
            if place == len(self.rows):
                self.rows.append(row)
            else:
                self.rows[place] += row

    def distance(self) -> float:
        rows = torch.stack(self.rows)
        if get_world_size() > 1:
            rows = rows.to(get_device())
            all_reduce(rows)
            broadcast(rows)  # to the last bit: all processes must keep the same state
        error, total, squares, number = rows.cpu().unbind(1)
        variance = squares - total.square() / number
        # A tensor that is constant in the dense model, such as a position, says nothing; rounding leaves a trace of it.
        varies = variance > 1e-12 * squares
        shares = (error[varies] / variance[varies]) if bool(varies.any()) else error / squares.clamp(min=1e-30)
        found = float(shares.mean().sqrt())
        return found if math.isfinite(found) else math.inf


def _shapes(tensors: list[Tensor]) -> str:
    return ', '.join(str(tuple(tensor.shape)) for tensor in tensors[:4]) + (', ...' if len(tensors) > 4 else '')
