"""Putting tensors and layers in the place of others, and whether that loses something."""
from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized


def select_parameter(module: nn.Module, name: str, dim: int, keep: Tensor | None) -> None:
    """Keep positions of one dimension of a parameter or buffer; ``None`` keeps all."""
    if keep is None:
        return
    tensor = getattr(module, name, None)
    if tensor is None:
        return
    replace_parameter(module, name, tensor.detach().index_select(dim, keep.to(tensor.device)))


def replace_parameter(module: nn.Module, name: str, value: Tensor) -> None:
    """Put a tensor in the place of a parameter, as trainable as that, or of a buffer."""
    before = getattr(module, name)
    if isinstance(before, nn.Parameter):
        value = nn.Parameter(value, requires_grad=before.requires_grad)
    for store in (module._parameters, module._buffers):
        if name in store:
            # What setattr would do, without its checks, which cost more than copying a small tensor.
            store[name] = value
            return
    setattr(module, name, value)


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
