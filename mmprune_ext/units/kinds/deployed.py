"""Blocks that have one form in training and another one when they are deployed.

Such a block (RepVGG, MobileOne, RepLKNet, RIFormer) stores the widths it was built with, and makes the layers of its
second form by them: sizes that no forward pass reads. They are set anew from the layers after these were slimmed.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from mmprune_ext.units.layers import rule_for
from mmprune_ext.units.slimming import AROUND

# Methods by which a block is turned into its deployed form, or computes what that holds.
_CONVERSION = re.compile(r'deploy|reparam|equivalent|merge|collapse|convert|local_inject|^_?fuse')
_WIDTH = re.compile(r'(channels?|features|planes|dims?|width|filters|chs?)$|^(inp|oup|[cn]_?in|[cn]_?out|c1|c2)$')
_READ, _GIVEN = re.compile(r'^(in|[cn]_?in$|c1$)'), re.compile(r'^(out|oup|[cn]_?out$|c2$)')
# The kernel of an identity, which some blocks keep once they have made it.
_CACHED = ('id_tensor',)


@dataclass(frozen=True)
class _Stored:
    """One size that a block stores, and the sizes of its layers that are the same before slimming.

    Attributes:
        block: The block.
        name: Of its attribute.
        key: In that, where it is a dictionary of settings; else empty.
        sizes: Each returns the size of one layer as it is now.
        holds_blocks: Whether it holds other such blocks, the layers of which may be of other widths.
    """

    block: nn.Module
    name: str
    key: str
    sizes: list[Callable[[], int]]
    holds_blocks: bool

    def update(self) -> None:
        """Store what most of these sizes are now, or all of them."""
        counts = Counter(size() for size in self.sizes)
        if self.holds_blocks and len(counts) > 1:
            return
        size = counts.most_common(1)[0][0]
        setattr(self.block, self.name, {**getattr(self.block, self.name), self.key: size} if self.key else size)


@functools.cache
def _converts(kind: type[nn.Module]) -> bool:
    """Whether a type of block has methods that turn it into another form."""
    return any(_CONVERSION.search(name) and callable(getattr(kind, name, None)) for name in dir(kind))


def _stored(module: nn.Module) -> list[tuple[str, str, int]]:
    """Return the sizes that a module with another form stores: attribute, key in a dictionary there, and size."""
    if rule_for(module) is not None or not _converts(type(module)):
        return []
    found = [(name, '', value) for name, value in vars(module).items()]
    for name, value in vars(module).items():
        if type(value) is dict and not name.startswith('_'):
            found += [(name, key, size) for key, size in value.items() if isinstance(key, str)]
    return [(name, key, size) for name, key, size in found
            if type(size) is int and ((key or name) == 'groups' or _WIDTH.search(key or name))]


def _sizes(block: nn.Module, name: str, value: int) -> list[Callable[[], int]]:
    """Return the sizes of a block's layers that a stored one of that name speaks of."""
    found = []
    for layer in block.modules():
        rule = rule_for(layer)
        if rule is None:
            continue
        if name == 'groups':
            if value > 1 and getattr(layer, 'groups', None) == value:
                found.append(functools.partial(getattr, layer, 'groups'))
            continue
        sides = (['consumer'] if _READ.search(name) else ['producer'] if _GIVEN.search(name)
                 else ['consumer', 'producer', 'follower'])
        widths = rule.widths(layer)
        found += [functools.partial(_width, layer, side) for side in sides if widths.get(side) == value]
    # A block may be no more than a norm, whose width is that of its input, of its output, and its groups.
    return found or [functools.partial(_width, layer, 'follower') for layer in block.modules()
                     if value > 1 and (rule := rule_for(layer)) and rule.widths(layer).get('follower') == value]


def _width(layer: nn.Module, side: str) -> int:
    return rule_for(layer).widths(layer)[side]


def stored_sizes(model: nn.Module) -> Callable[[], None]:
    """Note what the blocks of a model store; return a function that sets it by the layers as they are then.

    Args:
        model: A model that is about to be slimmed.
    """
    blocks = [block for block in model.modules() if _stored(block)]
    found = [_Stored(block, name, key, sizes, any(part is not block and _stored(part) for part in block.modules()))
             for block in blocks for name, key, size in _stored(block)
             if (sizes := _sizes(block, key or name, size))]

    def update() -> None:
        for stored in found:
            stored.update()
        for block in blocks:
            for name in _CACHED:
                vars(block).pop(name, None)
    return update


AROUND.append(stored_sizes)
