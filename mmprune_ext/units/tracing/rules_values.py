"""Operators that compute with channels one by one, or along dimensions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from mmprune_ext.units.labels import varying
from mmprune_ext.units.reasons import Reason
from mmprune_ext.units.tracing.operators import Call, rule, unlabelled

if TYPE_CHECKING:
    from mmprune_ext.units.tracing.tracer import Tracer


@rule('pointwise', 'where', 'masked_fill', 'dropout', 'native_dropout', 'copy', '_to_copy', 'clamp', 'addcmul',
      'addcdiv', 'lerp', 'gelu', 'silu', 'hardtanh', 'hardswish', 'hardsigmoid', 'relu6',
      'log_sigmoid_forward', 'nan_to_num', 'rrelu_with_noise', '_prelu_kernel', 'glu_jvp',
      'bernoulli', 'rsub', 'leaky_relu', 'elu', 'celu', 'selu', 'softplus', 'mish', 'threshold',
      'hardshrink', 'softshrink', 'relu', 'sigmoid', 'tanh', 'floor_divide', 'remainder', 'fmod',
      '_fused_dropout', 'to', 'type_as')
def elementwise(tracer: Tracer, call: Call) -> None:
    """Pass the labels; different labels at one place are tied (residual sums, gates, masks).

    Serves as ``pointwise`` every operator that torch tags so. The result of a comparison has labels like
    any other: as a factor it is one more value of its channel, as an index it is a decision.
    """
    inputs = [leaf for leaf in tree_flatten((call.args, call.kwargs))[0]
              if isinstance(leaf, Tensor) and tracer.core(leaf) is not None]
    outs = call.outputs()
    if not inputs or not outs:
        return unlabelled(tracer, call)
    shape = outs[0].shape
    if call.name.startswith('copy') and inputs[0] is call.args[0]:
        inputs = inputs[1:]  # the target's old value is overwritten
    inputs = _without_broadcast(tracer, inputs, shape)
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
        tracer.write(out, core if out.shape == shape else None)


def _without_broadcast(tracer: Tracer, inputs: list[Tensor], shape: Sequence[int]) -> list[Tensor]:
    """Freeze and leave out inputs that are repeated along another input's channels.

    Such an input (a map that scales all channels) is not tied to any one of them. One that has channels along a
    dimension of others' is: a scale of each channel, where another input has other channels in other places.
    """
    cores = [tracer.core(t) for t in inputs]
    found = [{d - tensor.dim() for d in varying(core)} for tensor, core in zip(inputs, cores)]
    wide = set().union(*found)
    kept = []
    for i, (tensor, core) in enumerate(zip(inputs, cores)):
        sizes = {d: tensor.shape[d] if -d <= tensor.dim() else 1 for d in wide}
        shared = found[i] & set().union(*found[:i], *found[i + 1:])
        if any(sizes[d] == 1 and shape[d] > 1 for d in wide) and not shared:
            tracer.space.freeze(core, (Reason.OUTER, 'broadcast over other channels'))
        else:
            kept.append(tensor)
    return kept


def _tied_along(tracer: Tracer, core: Tensor, dims: set[int]) -> Tensor:
    """Tie labels along dimensions, and return the core that is left."""
    for d in dims:
        tracer.space.tie(core.numpy(), core.narrow(d, 0, 1).numpy())
    return tracer.space.canonical(core)


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
        tracer.write(out, core)


@rule('roi_align', 'roi_pool', 'ps_roi_align', 'ps_roi_pool')
def regions(tracer: Tracer, call: Call) -> None:
    """Pass labels to regions of a map; of position-sensitive pooling, tie the channels that fill one channel's places.

    Source: ``torchvision.ops``; the position-sensitive ones read channel ``(c * H + i) * W + j`` at place ``(i, j)``.
    """
    tensor, core = call.args[0], tracer.core(call.args[0])
    tracer.freeze_inputs((call.args[1:], call.kwargs), Reason.SPACE, str(call.func))
    if core is None:
        return unlabelled(tracer, call)
    if varying(core) - {1}:
        return tracer.freeze_inputs(tensor, Reason.SPACE, str(call.func))
    if call.name.startswith('ps_'):
        places = call.argument('pooled_height') * call.argument('pooled_width')
        groups = core.expand(1, tensor.shape[1], 1, 1).unflatten(1, (-1, places))
        core = _tied_along(tracer, groups, {2}).narrow(2, 0, 1).squeeze(2)
    tracer.write(call.outputs()[0], core)


@rule('native_batch_norm', '_native_batch_norm_legit', '_native_batch_norm_legit_no_training', '_batch_norm_no_update',
      '_batch_norm_with_update')
def batch_norm(tracer: Tracer, call: Call) -> None:
    """Pass the labels of dimension 1, and tie them with those of weights and statistics that no layer owns."""
    tensor, *vectors = call.args[:5]
    for out in call.outputs():
        tracer.write(out, None)
    if tracer.core(tensor) is None:
        return
    labels = tracer.channel_labels(tensor, 1, Reason.SPACE)
    for vector in vectors:
        if isinstance(vector, Tensor) and tracer.core(vector) is not None:
            tracer.space.tie(labels, tracer.core(vector).numpy())
    shape = [1, -1] + [1] * (tensor.dim() - 2)
    tracer.write(call.outputs()[0], torch.from_numpy(labels).reshape(shape))


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
        core = _tied_along(tracer, core, varies & reduced)
    for d in sorted(reduced, reverse=True):
        core = core.narrow(d, 0, 1)
        if not call.argument('keepdim', False):
            core = core.squeeze(d)
    for out in call.outputs():
        tracer.write(out, core)


@rule('_softmax', '_log_softmax', 'softmax', 'log_softmax', 'cumsum', 'cumprod', 'cummax',
      'cummin', 'sort', 'topk', 'logcumsumexp', 'flip_dim', '_safe_softmax', 'kthvalue', 'argsort')
def along_dim(tracer: Tracer, call: Call) -> None:
    """Pass labels through an operator along one dimension that they do not vary along."""
    tensor = call.args[0]
    core = tracer.core(tensor)
    if core is None:
        return unlabelled(tracer, call)
    dim = call.argument('dim', -1) % max(tensor.dim(), 1)
    varies = varying(core)
    if dim in varies:
        if varies == {dim}:
            return tracer.freeze_inputs(tensor, Reason.STATISTICS, str(call.func))
        core = _tied_along(tracer, core, {dim})
    for out in call.outputs():
        tracer.write(out, core)


@rule('nonzero', 'is_nonzero', '_local_scalar_dense', 'item', 'equal', 'bincount', 'unique2', '_unique2',
      'allclose', 'nms')
def decision(tracer: Tracer, call: Call) -> None:
    """Freeze labels whose values become positions, counts or numbers of the code, which have no labels."""
    tracer.freeze_inputs((call.args, call.kwargs), Reason.DECISION, str(call.func))
    unlabelled(tracer, call)


# ---------------------------------------------------------------- products of matrices, and attention
