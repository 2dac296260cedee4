"""Attention whose heads have another width than its input divided by their number."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from mmprune_ext.sizes.padded_heads import moves_its_input

_PARTS = 3  # queries, keys and values, from one layer
_STORED = ('head_dims', 'head_dim', 'key_dim')


def takes_width_of_input(module: nn.Module) -> bool:
    """Whether a dense module has one layer ``qkv`` for all its heads, and keeps no width of theirs.

    Its code then takes that from the width ``C`` of the input: ``qkv.reshape(B, N, 3, num_heads, C // num_heads)``.
    """
    qkv, heads = getattr(module, 'qkv', None), getattr(module, 'num_heads', None)
    stored = any(hasattr(module, key) for key in _STORED)
    return (isinstance(qkv, nn.Linear) and isinstance(heads, int) and not stored and not moves_its_input(module)
            and qkv.out_features == _PARTS * qkv.in_features)


class HeadWidth:
    """The ``forward`` of an attention module whose input and whose heads have lost channels independently.

    The code of the module stays what it is; it is shown an input as wide as all heads together, of which it can only
    take the shape: what its layer ``qkv`` reads of it is the real one. All layers are called with what they are called
    with in the dense module, so that hooks on them see the same.

    Args:
        module: The module, of a kind told by :func:`takes_width_of_input`, with slimmed layers.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @classmethod
    def put_where_needed(cls, module: nn.Module) -> None:
        """Give a slimmed module this ``forward`` if the width of its heads is not that which its code expects."""
        if module.qkv.out_features != _PARTS * module.qkv.in_features and 'forward' not in vars(module):
            module.forward = cls(module)

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the module's code.

        Args:
            x: What ``qkv`` reads, ``(..., C)``.
            args: What else the module takes.
            kwargs: The same by name.
        """
        qkv = self.module.qkv
        shown = x.new_zeros(1).expand(*x.shape[:-1], qkv.out_features // _PARTS)
        seen = _Seen(self.module, lambda given: qkv(x if given is shown else given))
        return type(self.module).forward(seen, shown, *args, **kwargs)


class _Seen:
    """A module as its own code sees it, with another ``qkv``."""

    def __init__(self, module: nn.Module, qkv: Callable[[Tensor], Tensor]) -> None:
        self._module, self.qkv = module, qkv

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)
