"""Layers whose channels are multiplied by gates, at the cost of a product of weights."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from mmprune_ext.ops.channel_gate import ChannelGate, acting_gates
from mmprune_ext.ops.zero_pad_shortcut import ZeroPadShortcut

# Forwards whose outputs are linear in the rows of `weight` and in `bias`: gates are multiplied into these, which
# spares a product, and a copy for the backward pass, of the size of a feature map.
_LINEAR_FORWARDS = {kind.forward for kind in (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear,
    _BatchNorm, nn.SyncBatchNorm)}
_WRAPPERS = 'mmcv.cnn.bricks.wrappers'
_RMSNorm = getattr(nn, 'RMSNorm', nn.LayerNorm)  # torch before 2.4 has none
_NORMS = (nn.LayerNorm, nn.GroupNorm, _RMSNorm)  # their statistics run over the channels
# Layer normalisation over the channels that is no `nn.LayerNorm`, by class name: `data_format` says where they lie.
CHANNEL_NORMS = frozenset({'HorNetLayerNorm'})
_DEFORMABLE = frozenset({'DeformConv2d', 'ModulatedDeformConv2d'})


def gate_layer(layer: nn.Module, gates: Sequence[ChannelGate], source: Tensor, side: str = 'out',
               scale: bool = True) -> None:
    """Gate the output or input channels of a layer, in place; parameters keep their names.

    Args:
        layer: The layer.
        gates: The gates of the units that its channels belong to.
        source: For each channel of the layer, its place among the channels of `gates` in a row, or their
            number for a channel that is not gated, int64 `(channels,)`.
        side: `'out'`: the layer's outputs are multiplied, `'in'`: its inputs.
        scale: `False` for a layer or group normalisation that only leaves gated channels out of its
            statistics: its outputs are gated by a later layer.

    Raises:
        ValueError: If the layer's channels on that side are gated already.
    """
    present = vars(layer).get('forward')
    if isinstance(present, GatedForward):
        if side in present.sides:
            raise ValueError(f'{type(layer).__name__}: its channels are gated already ({side})')
        present.sides[side] = _Side(gates, source, scale)
    else:
        layer.forward = GatedForward(layer, {side: _Side(gates, source, scale)})


def keep_from_fusing(model: nn.Module, path: str) -> None:
    """Have a layer of ``nn.TransformerEncoderLayer`` called, whose weights a fused operator else takes in inference."""
    holders = [model.get_submodule(path[:place]) for place in range(len(path)) if path[place] == '.']
    for module in [model, *holders]:
        if isinstance(module, nn.TransformerEncoderLayer) and _unlike_plain not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_unlike_plain)


def _unlike_plain(module: nn.Module, args: tuple) -> None:
    """Do nothing: that there is a hook keeps the fused operator away."""


def is_gated(layer: nn.Module, side: str) -> bool:
    """Whether the output (`'out'`) or input (`'in'`) channels of a layer are gated."""
    present = vars(layer).get('forward')
    return isinstance(present, GatedForward) and side in present.sides


def remove_gates(model: nn.Module) -> nn.Module:
    """Give all layers of a model their own forward back, in place."""
    for module in model.modules():
        if isinstance(vars(module).get('forward'), GatedForward):
            del module.forward
        for key in [key for key, hook in module._forward_pre_hooks.items() if hook is _unlike_plain]:
            del module._forward_pre_hooks[key]
    return model


class _Side:
    """Where the gates of a layer's channels on one side come from (see :func:`gate_layer`)."""

    def __init__(self, gates: Sequence[ChannelGate], source: Tensor, scale: bool) -> None:
        self.gates, self.source, self.scale = tuple(gates), source, scale
        total = sum(len(gate.psi) for gate in gates)
        self.straight = torch.equal(source, torch.arange(total))

    def values(self) -> Tensor:
        """Return the gates of the layer's channels, `(channels,)`.

        Computed in each call of the layer and not once a step: gradient checkpointing runs a layer again in the
        backward pass, where a graph that is shared with other layers may be gone.
        """
        return acting_gates(self.gates, self._gather)

    def _gather(self, parts: list[Tensor], ungated: float) -> Tensor:
        if self.straight:
            return parts[0] if len(parts) == 1 else torch.cat(parts)
        if self.source.device != parts[0].device:
            with torch.inference_mode(False):  # a tensor of inference could not serve training after it
                self.source = self.source.to(parts[0].device)
        return torch.cat([*parts, parts[0].new_full((1,), ungated)]).index_select(0, self.source)


class GatedForward:
    """The forward of a layer whose channels are gated; it stands in the layer under `forward`."""

    def __init__(self, layer: nn.Module, sides: dict[str, _Side]) -> None:
        self.layer, self.sides = layer, sides

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if 'in' in self.sides:
            args = (self._multiplied(args[0], self.sides['in'].values()), *args[1:])
        if 'out' not in self.sides:
            return self._plain(*args, **kwargs)
        gates, scale = self.sides['out'].values(), self.sides['out'].scale
        if is_norm(self.layer):
            with _WeightedNorm(gates, scale) as norm:
                output = self._plain(*args, **kwargs)
            if norm.used or not scale:
                return output
        elif _is_linear_in_weights(self.layer):
            return self._with_gated_weights(gates, *args, **kwargs)
        else:
            output = self._plain(*args, **kwargs)
        return self._multiplied(output, gates)

    def _multiplied(self, values: Any, gates: Tensor) -> Any:
        """Return what the layer reads or gives, one tensor or several, with its channels gated."""
        return tree_map(lambda x: _multiplied(x, gates, channel_dim(self.layer, x)), values)

    def _plain(self, *args: Any, **kwargs: Any) -> Any:
        if type(self.layer).__name__ in CHANNEL_NORMS:
            return _as_layer_norm(self.layer, *args, **kwargs)
        return type(self.layer).forward(self.layer, *args, **kwargs)

    def _with_gated_weights(self, gates: Tensor, *args: Any, **kwargs: Any) -> Any:
        own = self.layer._parameters
        weight, bias = own['weight'], own.get('bias')
        dim = 1 if isinstance(self.layer, _ConvTransposeNd) else 0
        try:
            # In the dict itself: setattr refuses what is no parameter.
            own['weight'] = _multiplied(weight, gates, dim)
            if bias is not None:
                own['bias'] = bias * gates.to(bias.dtype)
            return self._plain(*args, **kwargs)
        finally:
            own['weight'] = weight
            if bias is not None:
                own['bias'] = bias


def is_norm(layer: nn.Module | None) -> bool:
    """Whether a layer normalises by statistics that run over its channels."""
    return isinstance(layer, _NORMS) or type(layer).__name__ in CHANNEL_NORMS


def _as_layer_norm(layer: nn.Module, x: Tensor) -> Tensor:
    """Return what a layer of :data:`CHANNEL_NORMS` gives, by torch's function, which is told of gates."""
    dim = channel_dim(layer, x)
    found = F.layer_norm(x.movedim(dim, -1), layer.normalized_shape, layer.weight, layer.bias, layer.eps)
    return found.movedim(-1, dim)


def channel_dim(layer: nn.Module, x: Tensor) -> int:
    """Return the dimension of the channels in an input or output of a layer, counted from the end."""
    if type(layer).__name__ in CHANNEL_NORMS:
        return -1 if layer.data_format == 'channels_last' else 1 - x.dim()
    if isinstance(layer, _ConvNd):
        return -1 - len(layer.kernel_size)
    if isinstance(layer, (nn.Linear, nn.RNNBase, nn.RNNCellBase)):
        return -1
    if isinstance(layer, (nn.LayerNorm, _RMSNorm)) and x.shape[-1] == layer.normalized_shape[0]:
        return -1
    return -3 if isinstance(layer, ZeroPadShortcut) else 1 - x.dim()


def _multiplied(x: Tensor, gates: Tensor, dim: int) -> Tensor:
    shape = [1] * x.dim()
    shape[dim] = -1
    return x * gates.to(x.dtype).view(shape)


def _is_linear_in_weights(layer: nn.Module) -> bool:
    kind = type(layer)
    known = (kind.forward in _LINEAR_FORWARDS or kind.__module__ == _WRAPPERS
             or any(base.__name__ in _DEFORMABLE for base in kind.__mro__))
    grouped = isinstance(layer, _ConvTransposeNd) and layer.groups > 1
    return known and not grouped and layer._parameters.get('weight') is not None


class _WeightedNorm(TorchFunctionMode):
    """Let layer and group normalisation weigh each channel by its gate, in the statistics and the output.

    With gates of 0 and 1 it is what normalisation over the channels that stay gives.

    Attributes:
        used: Whether a normalisation was met.
    """

    def __init__(self, gates: Tensor, scale: bool) -> None:
        super().__init__()
        self.gates, self.scale, self.used = gates, scale, False

    def __torch_function__(self, func: Any, types: Any, args: tuple = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.layer_norm:
            self.used = True
            return self._layer_norm(*args, **kwargs)
        if func is F.group_norm:
            self.used = True
            return self._group_norm(*args, **kwargs)
        if func is getattr(F, 'rms_norm', None):
            self.used = True
            return self._rms_norm(*args, **kwargs)
        return func(*args, **kwargs)

    def _layer_norm(self, input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None,
                    bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
        x, gates = _wide(input).flatten(-len(normalized_shape)), self.gates  # (C, 1, 1) is a vector, too
        normal = _normalised(x, gates, gates.sum(), (-1,), eps)
        weight, bias = (None if p is None else p.flatten() for p in (weight, bias))
        return self._affine(normal, weight, bias, -1).to(input.dtype).view(input.shape)

    def _rms_norm(self, input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None,
                  eps: float | None = None) -> Tensor:
        x = _wide(input)
        square = (x.square() * self.gates).sum(-1, keepdim=True) / _positive(self.gates.sum())
        eps = torch.finfo(x.dtype).eps if eps is None else eps
        return self._affine(x * torch.rsqrt(square + eps), weight, None, -1).to(input.dtype)

    def _group_norm(self, input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None,
                    eps: float = 1e-5) -> Tensor:
        x = _wide(input).reshape(len(input), num_groups, input.shape[1] // num_groups, -1)
        gates = self.gates.view(1, num_groups, -1, 1)
        normal = _normalised(x, gates, gates.sum(2, keepdim=True) * x.shape[3], (2, 3), eps)
        return self._affine(normal.reshape(input.shape), weight, bias, 1).to(input.dtype)

    def _affine(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, dim: int) -> Tensor:
        scale = self.gates if self.scale else torch.ones_like(self.gates)
        x = _multiplied(x, scale if weight is None else scale * weight, dim)
        if bias is None:
            return x
        shape = [1] * x.dim()
        shape[dim] = -1
        return x + (scale * bias).to(x.dtype).view(shape)


def _wide(x: Tensor) -> Tensor:
    """Return half-precision values as float32, in which torch normalises."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _normalised(x: Tensor, gates: Tensor, total: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    total = _positive(total)
    mean = (x * gates).sum(dims, keepdim=True) / total
    centred = x - mean
    variance = (centred.square() * gates).sum(dims, keepdim=True) / total
    return centred * torch.rsqrt(variance + eps)


def _positive(total: Tensor) -> Tensor:
    """Return a sum of gates to divide by: where no channel is left, nothing is passed on whatever the mean."""
    return total.clamp_min(torch.finfo(total.dtype).tiny)
