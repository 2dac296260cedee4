"""Putting one layer in the place of another, and whether that loses something."""
from __future__ import annotations

from torch import nn
from torch.nn.utils.parametrize import is_parametrized


def turn_into(layer: nn.Module, other: nn.Module) -> None:
    """Make a layer what another is, in place: wherever a model holds it, in a plain list too, it holds this."""
    layer.__class__ = type(other)
    vars(layer).clear()
    vars(layer).update(vars(other))


def is_plain_conv(layer: nn.Module | None) -> bool:
    """Whether a layer computes what `nn.Conv2d` does (mmcv's own class of that name does)."""
    return isinstance(layer, nn.Conv2d) and not is_parametrized(layer) and (
        type(layer).__name__ == 'Conv2d' or type(layer).forward is nn.Conv2d.forward)


def has_hooks(layer: nn.Module) -> bool:
    """Whether something else than the layer's own forward runs when it is called."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks)
