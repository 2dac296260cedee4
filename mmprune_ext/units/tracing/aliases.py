"""Views of one memory: labels that are written through one of them show in all.

An activation and its views are different tensor objects, each with labels of its own. Which of them
share memory is noted when a view is made.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from mmprune_ext.units.labels import compress, get_core, set_core

_BASE, _VIEWS = '_mmprune_base', '_mmprune_views'


def base_of(tensor: Tensor) -> Tensor:
    """Return the tensor that a view, or a view of a view, was made of; else the tensor itself."""
    base = getattr(tensor, _BASE, None)
    return tensor if base is None else base


def note_views(base: Tensor, views: Sequence[Tensor]) -> None:
    """Remember which tensors are views of a base."""
    aliases = base.__dict__.setdefault(_VIEWS, [])
    for view in views:
        if base_of(view) is not base:
            setattr(view, _BASE, base)
            aliases.append(weakref.ref(view))


def spread(tensor: Tensor) -> None:
    """Give the labels of a tensor that was written to to its base and all other views."""
    base = base_of(tensor)
    aliases = [view for view in (ref() for ref in getattr(base, _VIEWS, ())) if view is not None]
    if not aliases:
        return
    memory = torch.zeros(base.untyped_storage().nbytes() // base.element_size(), dtype=torch.int64)

    def window(t: Tensor) -> Tensor:
        return memory.as_strided(t.shape, t.stride(), t.storage_offset())

    for owner in (base, tensor):
        core = get_core(owner)
        window(owner).copy_(torch.zeros(1, dtype=torch.int64) if core is None else core)
    for owner in (base, *aliases):
        set_core(owner, compress(window(owner).clone()))
