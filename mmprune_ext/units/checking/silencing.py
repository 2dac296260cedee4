"""The reference of the check by execution: a dense model in which channels are silent, and whose every layer shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from mmprune_ext.ops import StripeConv2d, ZeroPadShortcut
from mmprune_ext.units.kinds.channel_norms import ChannelNormRule
from mmprune_ext.units.kinds.own_weights import Silencing
from mmprune_ext.units.kinds.positions import SinePositionRule
from mmprune_ext.units.layers import replace_parameter, rule_for
from mmprune_ext.units.parameters.beside import beside_weight
from mmprune_ext.units.parameters.computed import make_plain
from mmprune_ext.units.slimming import removed_positions
from mmprune_ext.units.unit_set import UnitSet


def silence(model: nn.Module, units: UnitSet) -> nn.Module:
    """Zero the channels that the units' choices remove, leaving all shapes.

    Producers and followers give zero for such a channel. Layer and group normalisation, whose
    statistics run over the channels, are made to normalise over the kept ones alone.

    Args:
        model: The dense model, changed; its parameters are replaced and stay as they were.
        units: Its channel units with choices.
    """
    modules = dict(model.named_modules())
    for module in modules.values():
        make_plain(module)
    own = {(member.module, member.dim) for unit in units.values() for member in unit.producers
           if member.dim is not None
           and not isinstance(modules[member.module.rpartition('.')[0]], nn.MultiheadAttention)}
    silent: dict[tuple[str, int], np.ndarray] = {}
    for (path, side, dim), places in removed_positions(units).items():
        index = torch.from_numpy(places)
        if (path, dim) in own:
            silent[path, dim] = places
        elif dim is not None:
            owner, _, name = path.rpartition('.')
            _zero(modules[owner], name, dim, index)
        elif side == 'out':
            _silence_layer(modules[path], index)
    if silent:
        silencing = Silencing(model, silent)
        # A parameter of a list, or of a part that is never called, is used by what holds that.
        for above in {'.'.join(path.split('.')[:count]) for path, _ in silent for count in range(path.count('.') + 1)}:
            silencing.around(modules[above])
    return model


def _silence_layer(module: nn.Module, removed: Tensor) -> None:
    if isinstance(module, (nn.LayerNorm, nn.GroupNorm)) or isinstance(rule_for(module), ChannelNormRule):
        module.register_forward_hook(_kept_norm(removed))
        return
    if isinstance(module, (ZeroPadShortcut, StripeConv2d)) or isinstance(rule_for(module), SinePositionRule):
        module.register_forward_hook(
            lambda m, args, out: out.index_fill(1, removed.to(out.device), 0))
        return
    if isinstance(module, _ConvTransposeNd):
        weight = module.weight.detach().clone()
        per_group = module.out_channels // module.groups
        for place in removed.tolist():
            rows = slice((place // per_group) * (module.in_channels // module.groups),
                         (place // per_group + 1) * (module.in_channels // module.groups))
            weight[rows, place % per_group] = 0
        replace_parameter(module, 'weight', weight)
    else:
        for name, dim in [('weight', 0), *(beside_weight(module) if isinstance(module, (_ConvNd, nn.Linear)) else ())]:
            if dim == 0:
                _zero(module, name, dim, removed)
    for name in ('bias', 'running_mean'):
        _zero(module, name, 0, removed)


def _zero(module: nn.Module, name: str, dim: int, removed: Tensor) -> None:
    tensor = getattr(module, name, None)
    if tensor is not None:
        replace_parameter(module, name, tensor.detach().index_fill(dim, removed, 0))


def _kept_norm(removed: Tensor) -> Callable[..., Tensor]:
    """Return a hook that replaces a norm layer's output by one over the kept channels."""
    def hook(module: nn.Module, args: tuple, out: Tensor) -> Tensor:
        x = args[0]
        grouped = isinstance(module, nn.GroupNorm)
        size = module.num_channels if grouped else module.normalized_shape[0]
        dim = 1 if grouped or (x.dim() > 1 and x.shape[1] == size) else x.dim() - 1
        if not grouped and x.shape[-1] == size:
            # Both may have this size; the layer's own output tells which it is.
            last = F.layer_norm(x, (size,), module.weight, module.bias, module.eps)
            dim = x.dim() - 1 if torch.allclose(last, out, rtol=1e-3, atol=1e-3) else dim
        keep = torch.from_numpy(np.setdiff1d(np.arange(size), removed.numpy()))
        weight, bias = (None if p is None else p.flatten()[keep] for p in (module.weight, module.bias))
        kept = x.index_select(dim, keep)
        if grouped:
            groups = len(keep) if module.num_groups == size else module.num_groups
            kept = F.group_norm(kept, groups, weight, bias, module.eps)
        else:
            kept = F.layer_norm(kept.movedim(dim, -1), (len(keep),), weight, bias,
                                module.eps).movedim(-1, dim)
        return torch.zeros_like(x).index_copy(dim, keep, kept.to(x.dtype))
    return hook


def excite(model: nn.Module) -> list[Any]:
    """Make every layer's effect visible in the output, in place; return hook handles to remove.

    Initial values hide mistakes: a zero scale in the last normalisation of a block, a layer scale of
    1e-6, zero biases. They are replaced by values of order one, and batch statistics are taken from
    the first input, so that activations neither vanish nor explode.
    """
    generator = torch.Generator().manual_seed(0)
    layered: set[int] = set()
    handles = []
    for module in model.modules():
        if rule_for(module) is None:
            continue
        for name, parameter in module.named_parameters(recurse=False):
            layered.add(id(parameter))
            _excite_parameter(parameter, name == 'bias', parameter.dim() < 2, generator)
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            handles.append(module.register_forward_pre_hook(_take_statistics))
    for parameter in model.parameters():
        if id(parameter) not in layered:
            _excite_parameter(parameter, False, True, generator)
    return handles


def _excite_parameter(parameter: Tensor, bias: bool, scale: bool,
                      generator: torch.Generator) -> None:
    data = parameter.data
    if not data.is_floating_point() or not data.numel():
        return
    if not bias and not scale and bool(data.any()):
        return
    noise = torch.rand(data.shape, generator=generator).to(data)
    if bias:
        data.copy_(0.2 * noise - 0.1)
    elif scale:
        data.copy_(0.5 + noise)
    else:
        data.copy_((noise - 0.5) * (12 / max(data[0].numel(), 1)) ** 0.5)


def _take_statistics(module: nn.Module, args: tuple) -> None:
    x = args[0]
    dims = [d for d in range(x.dim()) if d != 1]
    if x.numel() // x.shape[1] >= 4:
        module.running_mean.copy_(x.mean(dims))
        module.running_var.copy_(x.var(dims).clamp_min(1e-2))
