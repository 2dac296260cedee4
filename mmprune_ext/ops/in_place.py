"""Putting one layer in the place of another, and whether that loses something."""
from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized


def turn_into(layer: nn.Module, other: nn.Module) -> None:
    """Make a layer what another is, in place: wherever a model holds it, in a plain list too, it holds this."""
    layer.__class__ = type(other)
    vars(layer).clear()
    vars(layer).update(vars(other))


def conv_with(layer: nn.Module, weight: nn.Parameter, bias: nn.Parameter | None, **sizes: Any) -> nn.Conv2d:
    """Return a plain convolution with given parameters, for which nothing is drawn at random.

    Args:
        layer: A layer with the attributes of a convolution, whose sizes and mode it gets.
        weight: `(C_out, C_in / groups, kH, kW)`.
        bias: `(C_out,)` or `None`.
        sizes: Arguments of `nn.Conv2d` in the place of the layer's own.
    """
    own = {name: getattr(layer, name) for name in ('in_channels', 'out_channels', 'kernel_size', 'stride', 'padding',
                                                   'dilation', 'groups', 'padding_mode')}
    conv = nn.Conv2d(**{**own, **sizes}, bias=bias is not None, device='meta')
    conv.weight, conv.bias = weight, bias
    return conv.train(layer.training)


def is_plain_conv(layer: nn.Module | None) -> bool:
    """Whether a layer computes what `nn.Conv2d` does (mmcv's own class of that name does)."""
    return isinstance(layer, nn.Conv2d) and not is_parametrized(layer) and (
        type(layer).__name__ == 'Conv2d' or type(layer).forward is nn.Conv2d.forward)


def has_hooks(layer: nn.Module) -> bool:
    """Whether something else than the layer's own forward runs when it is called."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks)
