"""How each kind of operator carries channel labels from its inputs to its outputs.

Every rule takes the tracer, the call, and the outputs that the operator has already computed, and
attaches labels to the outputs. There is no rule per network: four kinds (movement, element-wise,
reduction, product) cover nearly everything, and an operator of unknown kind freezes the labels
that enter it, with its name as the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from mmprune_ext.units.labels import compress, get_core, varying
from mmprune_ext.units.reasons import Reason

if TYPE_CHECKING:
    from mmprune_ext.units.tracer import Tracer


@dataclass
class Call:
    """One executed operator.

    Attributes:
        func: The operator's overload (``torch.ops.aten.add.Tensor``).
        args: Positional arguments.
        kwargs: Keyword arguments.
        out: What it returned.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    @property
    def name(self) -> str:
        """Operator name without namespace and overload (``add``)."""
        return self.func._schema.name.split('::')[-1]

    def argument(self, name: str, default: Any = None) -> Any:
        """Return an argument by its name in the operator's schema."""
        for position, argument in enumerate(self.func._schema.arguments):
            if argument.name == name:
                if position < len(self.args):
                    return self.args[position]
                value = self.kwargs.get(name)
                return default if value is None else value
        return default

    @property
    def in_place(self) -> bool:
        """Whether the result is written into the first argument."""
        return self.func._schema.is_mutable and any(
            out is self.args[0] for out in self.outputs() if self.args)

    def outputs(self) -> list[Tensor]:
        """Return the output tensors."""
        return [leaf for leaf in tree_flatten(self.out)[0] if isinstance(leaf, Tensor)]


Rule = Callable[['Tracer', Call], None]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators by name."""
    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function
    return register


def apply_rule(tracer: Tracer, call: Call) -> None:
    """Propagate labels through one call."""
    # What a tensor held before it is written to by ``out=`` has no part in the result.
    call.kwargs = {name: value for name, value in call.kwargs.items() if name != 'out'}
    found = RULES.get(call.name)
    if found is None and torch.Tag.pointwise in call.func.tags:
        found = elementwise
    if found is None and call.name.rstrip('_') != call.name:
        found = RULES.get(call.name.rstrip('_'))
    (found or unknown)(tracer, call)


def unknown(tracer: Tracer, call: Call) -> None:
    """Freeze the labels that enter an operator whose kind is not known."""
    tracer.freeze_inputs((call.args, call.kwargs), Reason.OPERATOR, str(call.func))


@rule('empty', 'empty_like', 'zeros', 'zeros_like', 'ones', 'ones_like', 'full', 'full_like',
      'new_empty', 'new_zeros', 'new_ones', 'new_full', 'arange', 'linspace', 'rand_like',
      'randn_like', 'randperm', 'randint', 'rand', 'randn', 'eye', 'scalar_tensor', 'lift_fresh',
      'normal_', 'uniform_', 'bernoulli_', 'zero_', 'fill_', 'random_', 'zero', 'fill',
      'shape', 'sym_size', 'size', 'empty_strided', 'new_empty_strided', 'tril_indices',
      'is_nonzero', '_local_scalar_dense', 'item', 'nonzero', 'equal', 'bincount', 'unique2',
      '_unique2', 'allclose', 'is_same_size')
def unlabelled(tracer: Tracer, call: Call) -> None:
    """Give a result that holds no channel's values: new constants, sizes, positions."""
    for out in call.outputs():
        tracer.write(out, None)


# ---------------------------------------------------------------- movement


def _as_labels(tracer: Tracer, value: Any, dtype: torch.dtype) -> Any:
    """Replace a floating-point tensor by its full label tensor; leave all else."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    core = tracer.core(value)
    if core is None:
        return torch.zeros(1, dtype=dtype).expand(value.shape)
    return core.to(dtype).expand(value.shape)


def _run_on_labels(tracer: Tracer, call: Call) -> Any:
    """Run the operator on label tensors; a few exist for floating point only."""
    def run(dtype: torch.dtype) -> Any:
        args, kwargs = tree_map(lambda v: _as_labels(tracer, v, dtype), (call.args, call.kwargs))
        kwargs.pop('dtype', None)
        # An ``out=`` overload has a functional one beside it.
        return (call.func.overloadpacket if call.func._schema.is_mutable else call.func)(
            *args, **kwargs)
    try:
        return run(torch.int64)
    except (RuntimeError, NotImplementedError):
        return tree_map(lambda v: v.long() if isinstance(v, Tensor) else v, run(torch.float64))


@rule('permute', 'transpose', 't', 'expand', 'slice', 'select', 'unbind', 'squeeze', 'unsqueeze',
      'cat', 'stack', 'flip', 'roll', 'index', 'index_select', 'gather', 'reflection_pad1d',
      'reflection_pad2d', 'replication_pad1d', 'replication_pad2d', 'repeat', 'unfold', 'im2col',
      'alias', 'detach', 'clone', 'contiguous', 'narrow', 'diagonal', 'movedim', 'slice_scatter',
      'select_scatter', 'masked_select', 'scatter', 'index_put', 'index_copy', 'take_along_dim',
      'repeat_interleave', 'rot90', 'tril', 'triu', 'detach_', 'squeeze_', 'unsqueeze_', 't_',
      'transpose_', 'embedding', 'tile', 'hstack', 'vstack', 'concat', 'concatenate',
      'masked_scatter', 'scatter_reduce', 'index_add')
def movement(tracer: Tracer, call: Call) -> None:
    """Run the same operator on the labels: the mapping is exact by construction."""
    if not tracer.any_core((call.args, call.kwargs)):
        return unlabelled(tracer, call)
    if call.name in ('slice', 'narrow'):
        _tie_equal_slices(tracer, call)
    if call.in_place:
        target = call.args[0]
        if call.name in ('detach_', 'squeeze_', 'unsqueeze_', 't_', 'transpose_'):
            return tracer.freeze_inputs(call.args, Reason.OPERATOR, str(call.func))
        full = _as_labels(tracer, target, torch.int64).contiguous()
        rest = tree_map(lambda v: _as_labels(tracer, v, torch.int64), (call.args[1:], call.kwargs))
        call.func(full, *rest[0], **rest[1])
        return tracer.write(target, compress(full))
    labels = _run_on_labels(tracer, call)
    for out, lab in zip(call.outputs(), tree_flatten(labels)[0]):
        tracer.write(out, compress(lab))


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
    position ``c`` of every row is one channel. The last dimension of a split is taken as the row.
    """
    tensor = call.args[0]
    core = tracer.core(tensor)
    if core is None:
        return unlabelled(tracer, call)
    labels = compress(core.expand(tensor.shape).reshape(call.out.shape))
    for dims in _split_dims(tensor.shape, call.out.shape):
        split = [d for d in dims if labels.shape[d] > 1]
        if len(split) > 1:
            for d in split[:-1]:
                tracer.space.tie(labels.numpy(), labels.narrow(d, 0, 1).numpy())
            labels = tracer.space.canonical(labels)
    tracer.write(call.out, labels)


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
    """Treat slices that cut a labelled dimension into equal parts like a split."""
    tensor = call.args[0]
    core = tracer.core(tensor)
    if core is None or not tensor.dim():
        return
    dim = call.argument('dim', 0) % tensor.dim()
    size, part = tensor.shape[dim], call.out.shape[dim]
    start = call.argument('start', 0)
    start = start + size if start < 0 else start
    if core.shape[dim] == 1 or part in (0, size) or call.argument('step', 1) != 1:
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


# ---------------------------------------------------------------- element-wise


@rule('where', 'masked_fill', 'dropout', 'native_dropout', 'copy', '_to_copy', 'clamp', 'addcmul',
      'addcdiv', 'lerp', 'gelu', 'silu', 'hardtanh', 'hardswish', 'hardsigmoid', 'relu6',
      'log_sigmoid_forward', 'nan_to_num', 'rrelu_with_noise', '_prelu_kernel', 'glu_jvp',
      'bernoulli', 'rsub', 'leaky_relu', 'elu', 'celu', 'selu', 'softplus', 'mish', 'threshold',
      'hardshrink', 'softshrink', 'relu', 'sigmoid', 'tanh', 'floor_divide', 'remainder', 'fmod',
      '_fused_dropout', 'to', 'type_as')
def elementwise(tracer: Tracer, call: Call) -> None:
    """Pass the labels; different labels at one place are tied (residual sums, gates)."""
    inputs = [leaf for leaf in tree_flatten((call.args, call.kwargs))[0]
              if isinstance(leaf, Tensor) and tracer.core(leaf) is not None]
    outs = call.outputs()
    if not inputs or not outs:
        return unlabelled(tracer, call)
    shape = outs[0].shape
    if call.name.startswith('copy') and inputs[0] is call.args[0]:
        inputs = inputs[1:]  # the target's old value is overwritten
    inputs = tracer.drop_broadcast(inputs, shape)
    core = None
    for tensor in inputs:
        labels = tracer.core(tensor)
        labels = labels.reshape((1,) * (len(shape) - labels.dim()) + tuple(labels.shape))
        if core is None:
            core = labels
            continue
        tracer.space.tie(core.numpy(), labels.numpy())
        core = torch.where(core > 0, core, labels)
    if core is not None:
        core = tracer.space.canonical(core.contiguous())
    for out in outs:
        tracer.write(out, core if out.is_floating_point() and out.shape == shape else None)


# ---------------------------------------------------------------- pooling, reductions


@rule('avg_pool1d', 'avg_pool2d', 'avg_pool3d', 'max_pool2d_with_indices', 'max_pool2d',
      'max_pool3d_with_indices', '_adaptive_avg_pool2d', '_adaptive_avg_pool3d',
      'adaptive_avg_pool1d', 'adaptive_avg_pool2d', 'adaptive_max_pool2d',
      'upsample_nearest1d', 'upsample_nearest2d', 'upsample_bilinear2d', 'upsample_bicubic2d',
      'upsample_linear1d', 'upsample_trilinear3d', 'upsample_nearest3d', '_upsample_nearest_exact2d',
      '_upsample_bilinear2d_aa', '_upsample_bicubic2d_aa', 'grid_sampler_2d', 'grid_sampler',
      'mkldnn_max_pool2d', 'mkldnn_adaptive_avg_pool2d')
def per_channel(tracer: Tracer, call: Call) -> None:
    """Pass labels through an operator that works on each plane by itself."""
    tensor, core = call.args[0], tracer.core(call.args[0])
    tracer.freeze_inputs((call.args[1:], call.kwargs), Reason.SPACE, str(call.func))
    if core is None:
        return unlabelled(tracer, call)
    spatial = int(re.search(r'([123])d', call.name)[1]) if re.search(r'[123]d', call.name) else 2
    if varying(core) & set(range(tensor.dim() - spatial, tensor.dim())):
        return tracer.freeze_inputs(tensor, Reason.SPACE, str(call.func))
    for out in call.outputs():
        tracer.write(out, core if out.is_floating_point() else None)


def _reduced(tensor: Tensor, call: Call) -> set[int]:
    dims = call.argument('dim')
    if dims is None or dims == []:
        return set(range(tensor.dim()))
    return {d % max(tensor.dim(), 1) for d in ([dims] if isinstance(dims, int) else dims)}


@rule('sum', 'nansum', 'linalg_vector_norm', 'norm', 'count_nonzero')
def additive_reduction(tracer: Tracer, call: Call) -> None:
    """End labels in a sum over channels: a removed channel is a missing zero."""
    _reduce(tracer, call, additive=True)


@rule('mean', 'amax', 'amin', 'max', 'min', 'var', 'std', 'var_mean', 'std_mean', 'prod',
      'logsumexp', 'median', 'any', 'all', 'aminmax', 'argmax', 'argmin')
def statistic(tracer: Tracer, call: Call) -> None:
    """Freeze labels in a statistic over channels: removing one changes it for all."""
    _reduce(tracer, call, additive=False)


def _reduce(tracer: Tracer, call: Call, additive: bool) -> None:
    tensor = call.args[0]
    core = tracer.core(tensor)
    if core is None:
        return unlabelled(tracer, call)
    reduced, varies = _reduced(tensor, call), varying(core)
    if varies & reduced:
        if varies <= reduced:
            if not additive:
                tracer.freeze_inputs(tensor, Reason.STATISTICS, str(call.func))
            return unlabelled(tracer, call)
        core = tracer.tie_along(core, varies & reduced)
    for d in sorted(reduced, reverse=True):
        core = core.narrow(d, 0, 1)
        if not call.argument('keepdim', False):
            core = core.squeeze(d)
    for out in call.outputs():
        tracer.write(out, core if out.is_floating_point() else None)


@rule('_softmax', '_log_softmax', 'softmax', 'log_softmax', 'cumsum', 'cumprod', 'sort', 'topk',
      'logcumsumexp', 'flip_dim', '_safe_softmax', 'kthvalue', 'argsort')
def along_dim(tracer: Tracer, call: Call) -> None:
    """Pass labels through an operator along one dimension that they do not vary along."""
    tensor = call.args[0]
    core = tracer.core(tensor)
    if core is None:
        return unlabelled(tracer, call)
    dim = call.argument('dim', -1) % tensor.dim()
    varies = varying(core)
    if dim in varies:
        if varies == {dim}:
            return tracer.freeze_inputs(tensor, Reason.STATISTICS, str(call.func))
        core = tracer.tie_along(core, {dim})
    for out in call.outputs():
        tracer.write(out, core if out.is_floating_point() else None)


# ---------------------------------------------------------------- products


@rule('mm', 'bmm', 'matmul', 'mv', 'dot')
def product(tracer: Tracer, call: Call) -> None:
    """Tie the labels along the contracted dimension of a matrix product."""
    _product(tracer, call, call.args[0], call.args[1])


@rule('addmm', 'baddbmm', 'addbmm')
def added_product(tracer: Tracer, call: Call) -> None:
    """Treat the product like mm; an added term with labels is not supported."""
    tracer.freeze_inputs(call.args[0], Reason.OPERATOR, str(call.func))
    _product(tracer, call, call.args[1], call.args[2])


def _product(tracer: Tracer, call: Call, left: Tensor, right: Tensor) -> None:
    a, b = tracer.core(left), tracer.core(right)
    if a is None and b is None:
        return unlabelled(tracer, call)
    if left.dim() != right.dim() or left.dim() < 2:
        return tracer.freeze_inputs(call.args, Reason.OPERATOR, str(call.func))
    zeros = torch.zeros((1,) * left.dim(), dtype=torch.int64)
    a, b = zeros if a is None else a, zeros if b is None else b
    contracted_a, contracted_b = a.shape[-1] > 1, b.shape[-2] > 1
    if (contracted_a and a.shape[-2] > 1) or (contracted_b and b.shape[-1] > 1):
        return tracer.freeze_inputs(call.args, Reason.OUTER, str(call.func))
    if contracted_a or contracted_b:
        if contracted_a and contracted_b:
            tracer.space.tie(a.transpose(-1, -2).numpy(), b.numpy())
        else:
            # One side's channels are contracted with a dimension of fixed size.
            tracer.freeze_inputs(left if contracted_a else right, Reason.OUTER, str(call.func))
    rows = None if contracted_a else a
    columns = None if contracted_b else b
    if rows is not None and columns is not None and rows.any() and columns.any():
        if rows.shape[-2] > 1 and columns.shape[-1] > 1:
            return tracer.freeze_inputs(call.args, Reason.OUTER, str(call.func))
        labels = _merge_scaled(tracer, rows, columns)
    else:
        labels = next((c for c in (rows, columns) if c is not None and c.any()), None)
    tracer.write(call.out, labels)


def _merge_scaled(tracer: Tracer, rows: Tensor, columns: Tensor) -> Tensor:
    """Choose the labels of a product in which at most one side has channels outside the sum."""
    wide, narrow = (rows, columns) if rows.shape[-2] > 1 else (columns, rows)
    if wide.shape[-2:].numel() > 1:
        tracer.space.freeze(narrow, (Reason.OUTER, 'matrix product'))
        return wide
    tracer.space.tie(wide.numpy(), narrow.numpy())
    return torch.where(wide > 0, wide, narrow)


@rule('_scaled_dot_product_flash_attention_for_cpu', 'scaled_dot_product_attention',
      '_scaled_dot_product_flash_attention', '_scaled_dot_product_efficient_attention',
      '_scaled_dot_product_attention_math', '_scaled_dot_product_fused_attention_overrideable')
def attention(tracer: Tracer, call: Call) -> None:
    """Freeze queries and keys, whose size sets the scale; pass the values' labels."""
    tracer.freeze_inputs(call.args[:2], Reason.ATTENTION, 'scaled_dot_product_attention')
    tracer.freeze_inputs(call.args[3:], Reason.ATTENTION, 'attention mask')
    value = call.args[2]
    core = tracer.core(value)
    if core is not None and core.shape[-2] > 1:
        tracer.freeze_inputs(value, Reason.ATTENTION, 'scaled_dot_product_attention')
        core = None
    outs = call.outputs()
    for out in outs:
        tracer.write(out, None)
    tracer.write(outs[0], core)


__all__ = ['Call', 'RULES', 'apply_rule', 'get_core', 'rule']
