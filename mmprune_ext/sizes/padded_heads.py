"""Attention whose code moves its input about, and takes the width of heads from that, before a layer reads it."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

# By class name, the layers that make queries, keys and values: of Twins, XCiT, CaiT and PVT, mmpretrain's and timm's.
MAKERS = {'Attention': ('q', 'kv'), 'ClassAttn': ('q', 'k', 'v'), 'ClassAttntion': ('q', 'k', 'v'),
          'GlobalSubSampleAttn': ('q', 'kv'), 'GlobalSubsampledAttention': ('q', 'kv'),
          'LocallyGroupedAttn': ('qkv', ), 'LocallyGroupedSelfAttention': ('qkv', )}


class SeenModule:
    """A module as its own code sees it, with other things in the place of some of its own."""

    def __init__(self, module: nn.Module, **others: Any) -> None:
        self._module = module
        for name, other in others.items():  # one by one: torch.compile follows no update of a dict of attributes
            setattr(self, name, other)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def moves_its_input(module: nn.Module) -> bool:
    """Whether a module is of one of these classes; other libraries may have one of that name without such layers."""
    makers = MAKERS.get(type(module).__name__, ())
    return bool(makers) and all(isinstance(getattr(module, name, None), nn.Linear) for name in makers)


class PaddedHeads:
    """The ``forward`` of such a module whose input and whose heads have lost channels independently.

    Its code sees one width for all: the input is padded with zeros, and so is each head; a layer that reads what was
    padded leaves the zeros out.

    Args:
        module: The module, slimmed.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @classmethod
    def put_where_needed(cls, module: nn.Module) -> None:
        """Give a slimmed module of this kind this ``forward`` if its layers are not of one width any more."""
        if moves_its_input(module) and 'forward' not in vars(module) and len(set(_widths(module))) > 1:
            module.forward = cls(module)

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the module's code.

        Args:
            x: The input, ``(N, L, C)``.
            args: What else the module takes.
            kwargs: The same by name.
        """
        heads = self.module.num_heads
        width = -(-max(_widths(self.module)) // heads)
        seen = _WithPaddedHeads(self.module, width)
        return type(self.module).forward(seen, F.pad(x, (0, heads * width - x.shape[-1])), *args, **kwargs)


def _widths(module: nn.Module) -> list[int]:
    """Return the widths that the code takes for one: of the input, of all heads, of the input with fewer places."""
    makers = [(name, getattr(module, name)) for name in MAKERS[type(module).__name__]]
    fewer = [module.sr.out_channels] if isinstance(getattr(module, 'sr', None), nn.Conv2d) else []
    # The name of a layer has a letter for each that it makes: queries, keys, values.
    heads = [layer.out_features // len(name) for name, layer in makers]
    return [makers[0][1].in_features, module.proj.in_features, *heads, *fewer]


class _WithPaddedHeads(SeenModule):
    """A module as its own code sees it, with heads of another width."""

    def __init__(self, module: nn.Module, width: int) -> None:
        super().__init__(module)
        self._width = width
        self.head_dims = self.head_dim = width
        self.embed_dims = width * module.num_heads
        for name in MAKERS[type(module).__name__]:
            layer = getattr(module, name)
            setattr(self, name, self._maker(layer, layer.out_features // len(name) // module.num_heads))
        if getattr(module, 'sr', module) is None:
            self.sr = None

    def _maker(self, layer: nn.Linear, width: int) -> Callable[[Tensor], Tensor]:
        def make(given: Tensor) -> Tensor:
            heads = layer(given[..., :layer.in_features]).unflatten(-1, (-1, width))
            return F.pad(heads, (0, self._width - width)).flatten(-2)
        return make

    def proj(self, given: Tensor) -> Tensor:
        """Read the heads without what was padded."""
        layer, count = self._module.proj, self._module.num_heads
        return layer(given.unflatten(-1, (count, self._width))[..., :layer.in_features // count].flatten(-2))

    def sr(self, given: Tensor) -> Tensor:
        """Put a map on fewer places."""
        fewer = self._module.sr(given[:, :self._module.sr.in_channels])
        return F.pad(fewer, (0, 0, 0, 0, 0, self.embed_dims - fewer.shape[1]))

    def norm(self, given: Tensor) -> Tensor:
        """Normalise these."""
        return self._module.norm(given[..., :self._module.sr.out_channels])
