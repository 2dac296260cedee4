"""Operators that move channels: the same operator runs on the labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from mmprune_ext.units.labels import compress, varying
from mmprune_ext.units.reasons import Reason
from mmprune_ext.units.tracing.operators import Call, rule, unknown, unlabelled
from mmprune_ext.units.tracing.rules_values import elementwise

if TYPE_CHECKING:
    from mmprune_ext.units.tracing.tracer import Tracer


# Arguments that say which places are taken. What else an operator moves is values, of whatever type.
_SELECTORS = ('index', 'indices', 'mask', 'repeats')


def _as_labels(tracer: Tracer, value: Any, dtype: torch.dtype) -> Any:
    """Replace a tensor of values by its full label tensor."""
    if not isinstance(value, Tensor):
        return value
    core = tracer.core(value)
    if core is None:
        return torch.zeros((), dtype=dtype).expand(value.shape)
    return core.to(dtype).expand(value.shape)


def _taking(selector: Any) -> Any:
    """Return a selector that takes at least the first place: what takes nothing from a tensor takes no labels."""
    if not isinstance(selector, Tensor) or not selector.dim():
        return selector
    if selector.dtype is torch.bool:
        return selector if selector.any() else torch.arange(selector.numel()).eq(0).view(selector.shape)
    return selector if selector.numel() else selector.new_zeros([max(size, 1) for size in selector.shape])


def _labels_of(tracer: Tracer, call: Call, dtype: torch.dtype) -> tuple[list[Any], dict[str, Any]]:
    """Return a call's arguments with labels in the place of values; selectors go where labels are, to the CPU."""
    nothing = not any(out.numel() for out in call.outputs())

    def selector(value: Any) -> Any:
        value = value.cpu() if isinstance(value, Tensor) else value
        return _taking(value) if nothing else value

    def converted(name: str, value: Any) -> Any:
        if name == 'value' and not isinstance(value, Tensor):
            return 0  # a constant is no channel's
        return tree_map(selector if name in _SELECTORS else lambda v: _as_labels(tracer, v, dtype), value)
    names = [argument.name for argument in call.func._schema.arguments]
    return ([converted(name, value) for name, value in zip(names, call.args)],
            {name: converted(name, value) for name, value in call.kwargs.items()})


def _run_on_labels(tracer: Tracer, call: Call) -> Any:
    """Run the operator on label tensors; a few exist for floating point only."""
    def run(dtype: torch.dtype) -> Any:
        args, kwargs = _labels_of(tracer, call, dtype)
        kwargs.pop('dtype', None)
        # An ``out=`` overload has a functional one beside it.
        return (call.func.overloadpacket if call.func._schema.is_mutable else call.func)(
            *args, **kwargs)
    try:
        return run(torch.int64)
    except (RuntimeError, NotImplementedError):
        return tree_map(lambda v: v.long() if isinstance(v, Tensor) else v, run(torch.float64))


@rule('permute', 'transpose', 't', 'expand', 'slice', 'select', 'unbind', 'squeeze', 'unsqueeze',
      'cat', 'stack', 'flip', 'index', 'index_select', 'gather', 'reflection_pad1d',
      'reflection_pad2d', 'replication_pad1d', 'replication_pad2d', 'repeat', 'unfold', 'im2col',
      'alias', 'detach', 'clone', 'contiguous', 'narrow', 'diagonal', 'movedim', 'slice_scatter',
      'select_scatter', 'masked_select', 'scatter', 'index_copy', 'take_along_dim',
      'repeat_interleave', 'rot90', 'tril', 'triu', 'detach_', 'squeeze_', 'unsqueeze_', 't_',
      'transpose_', 'embedding', 'tile', 'hstack', 'vstack', 'concat', 'concatenate',
      'masked_scatter', 'scatter_reduce', 'index_add')
def movement(tracer: Tracer, call: Call) -> None:
    """Run the same operator on the labels: the mapping is exact by construction.

    Places that are chosen by a channel's values are frozen: without that channel others are chosen.
    """
    if not tracer.any_core((call.args, call.kwargs)):
        return unlabelled(tracer, call)
    tracer.freeze_inputs([call.argument(name) for name in _SELECTORS], Reason.DECISION, str(call.func))
    if call.name in ('slice', 'narrow'):
        _tie_equal_slices(tracer, call)
    if call.in_place:
        target = call.args[0]
        if call.name in ('detach_', 'squeeze_', 'unsqueeze_', 't_', 'transpose_'):
            return tracer.freeze_inputs(call.args, Reason.OPERATOR, str(call.func))
        args, kwargs = _labels_of(tracer, call, torch.int64)
        full = args[0].contiguous()
        call.func(full, *args[1:], **kwargs)
        return tracer.write(target, compress(full))
    labels = _run_on_labels(tracer, call)
    for out, lab in zip(call.outputs(), tree_flatten(labels)[0]):
        tracer.write(out, compress(lab))


@rule('roll')
def roll(tracer: Tracer, call: Call) -> None:
    """Roll the labels. Channels that go around the end stay, as their number does; halves that swap are tied."""
    tensor, core = call.args[0], tracer.core(call.args[0])
    for shift, dim in zip(call.argument('shifts'), call.argument('dims', [])):
        size = tensor.shape[dim]
        around = shift % size
        if core is None or core.shape[dim] == 1 or not around:
            continue
        if 2 * around == size:
            tracer.space.tie(core.narrow(dim, 0, around).numpy(), core.narrow(dim, around, around).numpy())
        else:
            start, count = (size - around, around) if 2 * around < size else (0, size - around)
            tracer.space.freeze(core.narrow(dim, start, count), (Reason.VALUES, str(call.func)))
    movement(tracer, call)


@rule('index_put')
def index_put(tracer: Tracer, call: Call) -> None:
    """Treat one value at the places of a mask (``x[x < 0] = 0``) as ``masked_fill``, all else as movement."""
    target, (index, *others), value = call.args[:3]
    masked = not others and index.dtype is torch.bool and index.shape == target.shape and value.numel() == 1
    (elementwise if masked else movement)(tracer, call)


@rule('constant_pad_nd')
def constant_pad(tracer: Tracer, call: Call) -> None:
    """Pad the labels with 0, whatever the value that the activations are padded with."""
    tensor, pad = call.args[0], call.args[1]
    if not tracer.any_core(tensor):
        return unlabelled(tracer, call)
    labels = torch.constant_pad_nd(_as_labels(tracer, tensor, torch.int64), list(pad), 0)
    core = tracer.core(tensor)
    channel = varying(core)
    padded = {tensor.dim() - 1 - i for i in range(len(pad) // 2) if any(pad[2 * i:2 * i + 2])}
    if not (padded & channel):
        # Padding in space only: the border holds no channel's value, but removing a channel
        # removes its border too, so the labels may go on as if it did.
        return tracer.write(call.out, core)
    tracer.write(call.out, compress(labels))


@rule('view', '_unsafe_view', 'reshape', '_reshape_alias', 'unflatten', 'flatten')
def view(tracer: Tracer, call: Call) -> None:
    """Reshape the labels; where channels are split into rows, tie the rows.

    After pruning, rows of equal length remain only if the same channels are missing in each, so
    position ``c`` of every row is one channel. The last dimension of a split is taken as the row; the first
    where it makes maps of vectors, of which each channel has all places; the heads where these are channels.
    """
    tensor = call.args[0]
    core = tracer.core(tensor)
    if core is None:
        return unlabelled(tracer, call)
    labels = compress(core.expand(tensor.shape).reshape(call.out.shape))
    for dims in _split_dims(tensor.shape, call.out.shape):
        split = [d for d in dims if labels.shape[d] > 1]
        if len(split) > 1:
            for d in _rows(tracer, split, labels, call.out.shape):
                tracer.space.tie(labels.numpy(), labels.narrow(d, 0, 1).numpy())
            labels = tracer.space.canonical(labels)
    tracer.write(call.out, labels)


def _rows(tracer: Tracer, split: list[int], labels: Tensor, shape: Sequence[int]) -> list[int]:
    """Return the dimensions of a split along which places are one channel."""
    if tracer.whole_heads:
        count = getattr(tracer.model.get_submodule(tracer.reach.running), 'num_heads', 0)
        heads = [d for d in split[:-1] if shape[d] == count]
        if heads:
            return [d for d in split if d != heads[-1]]
    return split[1:] if tracer.space.split(labels.numpy()) else split[:-1]


def _split_dims(before: Sequence[int], after: Sequence[int]) -> list[list[int]]:
    """Return the groups of output dimensions that a reshape makes out of joined input dimensions.

    Dimensions of size 1 belong to no group; a group of one output dimension is no split.
    """
    groups, i, j = [], 0, 0
    while i < len(before) and j < len(after):
        size_in, size_out, dims = before[i], after[j], [j]
        i, j = i + 1, j + 1
        while size_in != size_out:
            if size_in < size_out:
                size_in *= before[i]
                i += 1
            else:
                size_out *= after[j]
                dims.append(j)
                j += 1
        groups.append(dims)
    return [dims for dims in groups if len(dims) > 1]


@rule('split', 'split_with_sizes', 'unsafe_split', 'unsafe_split_with_sizes', 'chunk',
      'unsafe_chunk', 'tensor_split')
def split(tracer: Tracer, call: Call) -> None:
    """Split the labels; position ``c`` of all parts of equal size is one channel (see view)."""
    tensor = call.args[0]
    core = tracer.core(tensor)
    if core is None:
        return unlabelled(tracer, call)
    dim = call.argument('dim', 0) % tensor.dim()
    parts = [compress(lab) for lab in call.func(core.expand(tensor.shape), *call.args[1:],
                                                **call.kwargs)]
    if core.shape[dim] > 1 and len({out.shape[dim] for out in call.out}) == 1:
        for lab in parts[1:]:
            tracer.space.tie(parts[0].numpy(), lab.numpy())
    for out, lab in zip(call.out, parts):
        tracer.write(out, lab)


def _tie_equal_slices(tracer: Tracer, call: Call) -> None:
    """Treat slices that cut a labelled dimension into equal parts like a split, and tie what a step goes over."""
    tensor = call.args[0]
    core = tracer.core(tensor)
    if core is None or not tensor.dim():
        return
    dim = call.argument('dim', 0) % tensor.dim()
    size, part = tensor.shape[dim], call.out.shape[dim]
    start, step = call.argument('start', 0), call.argument('step', 1)
    start = start + size if start < 0 else start
    if core.shape[dim] > 1 and step > 1:
        # Whole steps of ``x[:, 1::2]`` may go: the same place of each one left is taken then.
        tracer.space.tie(core.numpy(), core.index_select(dim, torch.arange(size) // step * step).numpy())
    if core.shape[dim] == 1 or part in (0, size) or step != 1:
        return
    if size % part == 0 and start % part == 0:
        cuts = tracer.slices.setdefault((id(tensor), dim, part), (tensor, []))[1]
        piece = core.narrow(dim, start, part).numpy()
        if cuts:
            tracer.space.tie(cuts[0], piece)
        cuts.append(piece)


@rule('as_strided')
def as_strided(tracer: Tracer, call: Call) -> None:
    """Pass labels where only the strides of dimensions of size 1 change (pooling, channels last)."""
    core, out = tracer.core(call.args[0]), call.outputs()[0]
    if core is not None and out.is_contiguous() and core.dim() == out.dim() and all(
            many in (1, size) for many, size in zip(core.shape, out.shape)):
        return tracer.write(out, core)
    unknown(tracer, call)


@rule('_pack_padded_sequence', '_pad_packed_sequence')
def packed_sequence(tracer: Tracer, call: Call) -> None:
    """Pass the channels, which are last, of a sequence whose samples and steps become one dimension, and back."""
    core = tracer.core(call.args[0])
    if core is not None and varying(core) - {core.dim() - 1}:
        return unknown(tracer, call)
    out, *sizes = call.outputs()
    tracer.write(out, None if core is None else core.reshape((1,) * (out.dim() - 1) + core.shape[-1:]))
    for tensor in sizes:
        tracer.write(tensor, None)


@rule('pixel_shuffle', 'pixel_unshuffle')
def pixel_shuffle(tracer: Tracer, call: Call) -> None:
    """Tie the channels that fill one output channel's square of pixels."""
    tensor, factor = call.args[0], call.args[1]
    core = tracer.core(tensor)
    if core is None:
        return unlabelled(tracer, call)
    channel = tensor.dim() - 3
    if varying(core) - {channel}:
        return tracer.freeze_inputs(tensor, Reason.SPACE, str(call.func))
    if call.name == 'pixel_unshuffle':
        return tracer.write(call.out, core.repeat_interleave(factor ** 2, channel))
    groups = core.expand(*core.shape[:channel], tensor.shape[channel], 1, 1).unflatten(
        channel, (-1, factor ** 2))
    tracer.space.tie(groups.numpy(), groups.narrow(channel + 1, 0, 1).numpy())
    tracer.write(call.out, groups.select(channel + 1, 0))


@rule('channel_shuffle', 'native_channel_shuffle')
def channel_shuffle(tracer: Tracer, call: Call) -> None:
    """Tie position ``c`` of all groups, which become neighbours, and move the labels."""
    tensor, groups = call.args[0], call.args[1]
    core = tracer.core(tensor)
    if core is not None and core.shape[1] > 1:
        rows = core.unflatten(1, (groups, -1))
        tracer.space.tie(rows.numpy(), rows.narrow(1, 0, 1).numpy())
    movement(tracer, call)
