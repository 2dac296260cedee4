"""Attention whose heads have another width than its input divided by their number."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmprune_ext.sizes.padded_heads import SeenModule, moves_its_input

_PARTS = 3  # queries, keys and values, from one layer
_STORED = ('head_dims', 'head_dim', 'key_dim')
# They keep the width of a head, and yet take that of all heads together from their input.
_STORE_AND_TAKE = frozenset({'RelativePositionalMultiHeadAttention'})
# They do not call their layer; a function moves the input, and takes the layer's weight.
_GIVE_WEIGHT = frozenset({'ShiftedWindowAttention'})
# Places are counted in digits that every type of numbers has exactly, bfloat16 too.
_BASE, _DIGITS = 256, 4


def joint_layer(module: nn.Module) -> str | None:
    """Return the name of the one layer that makes queries, keys and values for all heads of a module."""
    heads = getattr(module, 'num_heads', getattr(module, 'n_heads', None))
    names = [name for name in ('qkv', 'to_qkv') if isinstance(getattr(module, name, None), nn.Linear)]
    return names[0] if names and isinstance(heads, int) else None


def takes_width_of_input(module: nn.Module) -> bool:
    """Whether a dense module has one layer for queries, keys and values, and takes its heads' width from its input.

    Its code then says ``qkv.reshape(B, N, 3, num_heads, C // num_heads)``, where ``C`` is the width of the input.
    """
    name = joint_layer(module)
    if name is None or moves_its_input(module):
        return False
    if any(hasattr(module, key) for key in _STORED) and not _is_one(module, _STORE_AND_TAKE):
        return False
    layer = getattr(module, name)
    return layer.out_features == _PARTS * layer.in_features


def _is_one(module: nn.Module, names: frozenset[str]) -> bool:
    return any(base.__name__ in names for base in type(module).__mro__)


class HeadWidth:
    """The ``forward`` of an attention module whose input and whose heads have lost channels independently.

    The code of the module stays what it is; it is shown an input as wide as all heads together, of which it can only
    take the shape: what its layer ``qkv`` reads of it is the real one. All layers are called with what they are called
    with in the dense module, so that hooks on them see the same. Code that moves its input, and takes the weights of
    its layers instead of calling them, is shown numbers, which tell where each place has come from; the last layer then
    reads what it returns.

    Args:
        module: The module, dense, of a kind told by :func:`takes_width_of_input`.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._dense = self._width

    @property
    def _layer(self) -> nn.Linear:
        return getattr(self.module, joint_layer(self.module))

    @property
    def _width(self) -> int:
        return self._layer.out_features // _PARTS

    def put_where_needed(self) -> None:
        """Give the module, slimmed, this ``forward`` if the width of its heads is not that which its code expects."""
        # A function that takes weights takes the scale of the queries, too, from what it is shown.
        changed = _is_one(self.module, _GIVE_WEIGHT) and self._width != self._dense
        if (changed or self._width != self._layer.in_features) and 'forward' not in vars(self.module):
            self.module.forward = self

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the module's code.

        Args:
            x: What ``qkv`` reads, ``(..., C)``.
            args: What else the module takes.
            kwargs: The same by name.
        """
        if _is_one(self.module, _GIVE_WEIGHT):
            return self._run_on_numbers(x, *args, **kwargs)
        shown = x.new_zeros(1).expand(*x.shape[:-1], self._width)
        seen = SeenModule(self.module, **{joint_layer(self.module): JointLayer(self._layer, x, shown)})
        return type(self.module).forward(seen, shown, *args, **kwargs)

    def _run_on_numbers(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        module, last = self.module, self.module.proj
        shown = _numbered(x, self._width)
        joint = _MovedLayer(self._layer, x, shown, (self._width / self._dense) ** 0.5)
        seen = SeenModule(module, qkv=joint, proj=_Later(), dropout=0.)
        heads = type(module).forward(seen, shown, *args, **kwargs)
        return F.dropout(F.linear(heads, last.weight, last.bias), module.dropout, module.training)


def _numbered(x: Tensor, width: int) -> Tensor:
    """Return ``(..., width)`` whose first channels say, digit by digit, which place of ``x`` each is, from 1."""
    places = torch.arange(1, x[..., 0].numel() + 1, device=x.device).view(x.shape[:-1])
    digits = torch.stack([places // _BASE ** i % _BASE for i in range(_DIGITS)], -1)[..., :width]
    return F.pad(digits.to(x.dtype), (0, max(width - _DIGITS, 0)))


class JointLayer:
    """The layer of all heads, and its weight, as code sees them that is shown another input.

    Args:
        layer: The layer.
        x: What it reads, ``(..., C)``.
        shown: What the code is shown in the place of that.
        scale: By which the queries are multiplied, where the code takes the weight.
    """

    def __init__(self, layer: nn.Linear, x: Tensor, shown: Tensor, scale: float = 1.) -> None:
        self.weight, self.bias = self, layer.bias
        self._layer, self._x, self._shown, self._scale = layer, x, shown, scale

    def __call__(self, given: Tensor) -> Tensor:
        """Call the layer."""
        return self._layer(self._real(given))

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: tuple = (),
                           kwargs: dict[str, Any] | None = None) -> Tensor:
        return cls.product(*args, **(kwargs or {})) if func is F.linear else NotImplemented

    @staticmethod
    def product(input: Tensor, weight: JointLayer, bias: Tensor | None = None) -> Tensor:
        """Return the product of what the layer really reads with its weight; the arguments of ``F.linear``."""
        joint = F.linear(weight._real(input), weight._layer.weight, bias)
        queries = joint.shape[-1] // _PARTS
        if weight._scale == 1:
            return joint
        return joint * torch.cat([joint.new_full((queries,), weight._scale), joint.new_ones(2 * queries)])

    def _real(self, given: Tensor) -> Tensor:
        """Return what is really read where the code gives something to the layer."""
        return self._x if given is self._shown else given


class _MovedLayer(JointLayer):
    """The layer of all heads, as code sees it that has moved the numbered places that it was shown."""

    def _real(self, given: Tensor) -> Tensor:
        digits = given[..., :_DIGITS].long()
        places = (digits * _BASE ** torch.arange(digits.shape[-1], device=digits.device)).sum(-1)
        # A place without a number is padding, of zeros.
        return torch.cat([self._x.new_zeros(1, self._x.shape[-1]), self._x.flatten(0, -2)])[places]


class _Later:
    """The last layer, and its weight: a product with it gives what enters, and is made of what the module returns."""

    @property
    def weight(self) -> _Later:
        return self

    bias = None

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: tuple = (),
                           kwargs: dict[str, Any] | None = None) -> Tensor:
        return (args[0] if args else kwargs['input']) if func is F.linear else NotImplemented
