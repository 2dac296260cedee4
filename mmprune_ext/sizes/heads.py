"""How many heads a module has, and how wide they are: numbers beside its layers, set anew when these are slimmed."""
from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from torch import nn
from torch.nn import functional as F

from mmprune_ext.sizes.two_ways import TwoWays

_WIDTHS = ('head_dims', 'head_dim')
_JOINT = ('attn_dim',)
_FUSED = 'scaled_dot_product_attention'


def keeps_scale(module: nn.Module) -> bool:
    """Whether a module can be told the scale of its fused attention, which else follows the width of its heads."""
    function = vars(module).get(_FUSED)
    return getattr(function, 'func', function) is F.scaled_dot_product_attention or TwoWays.applies(module)


def heads_left(removed: np.ndarray | None, count: int) -> list[int]:
    """Return which heads are left of a layer's channels.

    Args:
        removed: Which channels go, bool ``(count * width,)``, those of a head in a row; ``None`` for none.
        count: Heads.

    Returns:
        The heads that are left, in order; all of them where it is not whole heads that go.
    """
    rows = np.zeros((count, 1), dtype=bool) if removed is None else removed.reshape(count, -1)
    whole = rows.all(1)
    return np.flatnonzero(~whole).tolist() if np.array_equal(rows.any(1), whole) else list(range(count))


class Heads:
    """The heads of a module that is about to be slimmed.

    Args:
        module: It has a number of heads, and a linear layer ``proj``, or in ``proj``, that reads all of them, one after
            the other.

    Attributes:
        reader: Path of that layer in the module; empty where the module is of another kind.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module, self.reader = module, ''
        self.count, proj = getattr(module, 'num_heads', None), getattr(module, 'proj', None)
        if type(self.count) is not int or self.count < 1 or not isinstance(proj, nn.Module):
            return
        layers = [(name, part) for name, part in proj.named_modules(prefix='proj') if isinstance(part, nn.Linear)]
        if layers and layers[0][1].in_features % self.count == 0:
            self.reader, self.inner = layers[0][0], layers[0][1].in_features
            self.width = self.inner // self.count

    def renew(self, removed: np.ndarray | None) -> None:
        """Set the numbers anew, after the layers were slimmed.

        Args:
            removed: Which channels ``proj`` does not read any more, bool, ``None`` for none.
        """
        if removed is None:
            return
        count = len(heads_left(removed, self.count))
        whole = self.module.get_submodule(self.reader).in_features
        self._set('num_heads', count)
        for name in _WIDTHS:
            if vars(self.module).get(name) == self.width:
                self._set(name, whole // count)
                self._set('embed_dims', whole)
        for name in _JOINT:
            if vars(self.module).get(name) == self.inner:
                self._set(name, whole)
        if whole // count != self.width and vars(self.module).get(_FUSED) is F.scaled_dot_product_attention:
            self._set(_FUSED, partial(F.scaled_dot_product_attention, scale=self.width ** -0.5))

    def _set(self, name: str, value: Any) -> None:
        if name in vars(self.module):
            setattr(self.module, name, value)
