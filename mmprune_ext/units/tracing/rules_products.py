"""Matrix products of activations, attention, and deformable convolution with the weight of a layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from mmprune_ext.sizes import keeps_scale
from mmprune_ext.units.reasons import Reason
from mmprune_ext.units.tracing.operators import Call, rule, unlabelled

if TYPE_CHECKING:
    from mmprune_ext.units.tracing.tracer import Tracer


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
    """Tie queries with keys along the width of the heads, and both with the values from head to head.

    The width sets the scale unless the code states one, or its module can be told to.
    """
    what = 'scaled_dot_product_attention'
    masks = [leaf for leaf in tree_flatten((call.args[3:], call.kwargs))[0]
             if isinstance(leaf, Tensor) and tracer.core(leaf) is not None]
    tracer.freeze_inputs([mask for mask in masks if not _is_by_head(tracer, mask)], Reason.ATTENTION, 'attention mask')
    if call.argument('scale') is None and not keeps_scale(
            tracer.model.get_submodule(tracer.reach.running)):
        for tensor in call.args[:2]:
            core = tracer.core(tensor)
            if core is not None and core.shape[-1] > 1:
                tracer.freeze_inputs(tensor, Reason.ATTENTION, what)
    for tensor in call.args[:3]:
        core = tracer.core(tensor)
        if core is not None and core.shape[-2] > 1:
            tracer.freeze_inputs(tensor, Reason.ATTENTION, what)
    queries, keys, values = (_without_positions(tracer, tensor) for tensor in call.args[:3])
    if (queries.shape[-1] > 1) == (keys.shape[-1] > 1):
        tracer.space.tie(queries.numpy(), keys.numpy())
    else:
        # One side's channels are contracted with a dimension of fixed size.
        tracer.space.freeze(queries if queries.shape[-1] > 1 else keys, (Reason.OUTER, what))
    for labels in (queries, keys, *(tracer.core(mask) for mask in masks if _is_by_head(tracer, mask))):
        if labels.shape[-1] == 1:
            tracer.space.tie(labels.numpy(), values.numpy())
            values = torch.where(values > 0, values, labels)
    outs = call.outputs()
    for out in outs:
        tracer.write(out, None)
    tracer.write(outs[0], tracer.space.canonical(values.contiguous()))


def _is_by_head(tracer: Tracer, mask: Tensor) -> bool:
    core = tracer.core(mask)
    return mask.dim() > 2 and core.shape[-2:].numel() == 1


def _without_positions(tracer: Tracer, tensor: Tensor) -> Tensor:
    """Return labels that do not vary from position to position, zeros for others."""
    core = tracer.core(tensor)
    return torch.zeros((1,) * tensor.dim(), dtype=torch.int64) if core is None or core.shape[-2] > 1 else core


@rule('deform_conv2d')
def deformable(tracer: Tracer, call: Call) -> None:
    """Follow ``torchvision.ops.deform_conv2d`` on the weight of a convolution as a call of that layer.

    Groups of channels that are sampled at the same places are tied like groups of a convolution.
    """
    x, weight, offset = call.args[:3]
    layer = tracer.layer_of_weight(weight)
    tracer.freeze_inputs((offset, call.argument('mask')), Reason.LAYER, 'offsets of a deformable convolution')
    if not isinstance(layer, nn.Conv2d) or call.argument('groups') != layer.groups:
        return tracer.freeze_inputs((call.args, call.kwargs), Reason.OPERATOR, str(call.func))
    labels = tracer.channel_labels(x, 1, Reason.SPACE)
    for groups in (layer.groups, call.argument('offset_groups')):
        rows = labels.reshape(groups, -1)
        tracer.space.tie(rows, rows[:1])
    tracer.functional.add(tracer.path_of(layer))
    tracer.count(layer, call.outputs()[0].numel() * weight[0].numel())
    tracer.consume(layer, labels)
    own = tracer.produce(layer, layer.out_channels, call.outputs()[0], 1).reshape(layer.groups, -1)
    tracer.space.tie(own, own[:1])
