"""Channel labels: integers that run beside the values of a traced model.

A *label tensor* has the shape of the activation it belongs to and names, at each place, the channel
the value comes from (0: none). Labels rarely vary over more than the channel dimension, so they are
held as a *core*: a tensor with the same number of dimensions whose size is 1 along every dimension
that the labels do not vary along. Cores broadcast like the activations do.

An activation and its views are different tensor objects, each with labels of its own. Which of them share memory is
noted when a view is made, so that labels that are written through one of them show in all.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_ATTRIBUTE = '_mmprune_core'
_BASE, _VIEWS = '_mmprune_base', '_mmprune_views'


def tensors_in(value: Any) -> list[Tensor]:
    """Return all tensors of a nested structure, objects with fields (data samples) included."""
    found, queue, seen = [], [value], set()
    while queue:
        item = queue.pop()
        if isinstance(item, Tensor):
            found.append(item)
        elif item is None or isinstance(item, (bool, int, float, str)) or id(item) in seen:
            continue
        elif isinstance(item, dict):
            queue.extend(item.values())
        elif isinstance(item, (list, tuple, set)):
            queue.extend(item)
        elif not isinstance(item, (type, nn.Module)):
            queue.extend(getattr(item, '__dict__', {}).values())
            slots = [name for cls in type(item).__mro__ for name in getattr(cls, '__slots__', ())]
            queue.extend(getattr(item, name, None) for name in slots)
        seen.add(id(item))
    return found[::-1]


def get_core(tensor: Tensor) -> Tensor | None:
    """Return the labels of an activation, ``None`` if it has none."""
    return getattr(tensor, _ATTRIBUTE, None)


def set_core(tensor: Tensor, core: Tensor | None) -> None:
    """Attach labels to an activation, or take them away."""
    if core is not None and not bool(core.any()):
        core = None
    if core is None and get_core(tensor) is None:
        return
    setattr(tensor, _ATTRIBUTE, core)


def varying(core: Tensor) -> set[int]:
    """Return the dimensions along which the labels vary."""
    return {d for d in range(core.dim()) if core.shape[d] > 1}


def compress(labels: Tensor) -> Tensor:
    """Reduce a full label tensor to its core."""
    for d in reversed(range(labels.dim())):
        if labels.shape[d] <= 1:
            continue
        first = labels.narrow(d, 0, 1)
        if labels.stride(d) == 0 or bool((labels == first).all()):
            labels = first
    return labels


def channel_dim(shape: Sequence[int]) -> int | None:
    """Guess in which dimension a parameter that no layer owns has its channels; ``None`` where it has none.

    A wrong guess ties unrelated channels into one, which makes them not prunable; it cannot make the result wrong.
    """
    wide = [d for d, size in enumerate(shape) if size > 1]
    if len(wide) < 2:
        return wide[0] if wide else None
    if len(shape) == 4 and not shape[1] == shape[2] != shape[3]:
        return 1 if shape[1] > 1 else None
    return len(shape) - 1 if shape[-1] > 1 else None


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
        window(owner).copy_(torch.zeros((), dtype=torch.int64) if core is None else core)
    for owner in (base, *aliases):
        set_core(owner, compress(window(owner).clone()))


class LabelSpace:
    """Labels, and which of them are tied together (a union-find forest).

    Two labels are tied when their channels can only be removed together. ``frozen`` maps the
    root of a set of tied labels to the reason why they cannot be removed at all.

    Attributes:
        splits: The labels of each view that has made several dimensions of channels, before it tied any.
        as_maps: Which of these, by number, make maps: their channels lie along the first of the dimensions.
    """

    def __init__(self) -> None:
        self._parent = np.zeros(1024, dtype=np.int64)
        self._size = 1
        self._frozen: list[tuple[np.ndarray, object]] = []
        self.splits: list[np.ndarray] = []
        self.as_maps: frozenset[int] = frozenset()

    def new(self, count: int) -> np.ndarray:
        """Return ``count`` new labels."""
        while self._size + count > len(self._parent):
            self._parent = np.concatenate([self._parent, np.zeros_like(self._parent)])
        labels = np.arange(self._size, self._size + count)
        self._parent[labels] = labels
        self._size += count
        return labels

    def roots(self, labels: np.ndarray) -> np.ndarray:
        """Return the representative of each label's set."""
        found = self._parent[labels]
        while True:
            above = self._parent[found]
            if np.array_equal(above, found):
                break
            found = above
        self._parent[labels] = found
        return np.asarray(found)  # a single label would come out as a number

    def canonical(self, core: Tensor) -> Tensor:
        """Return a core with every label replaced by its representative, compressed."""
        return compress(torch.from_numpy(self.roots(core.numpy())))

    def tie(self, first: np.ndarray, second: np.ndarray) -> None:
        """Tie labels pairwise, after broadcasting; pairs with a 0 say nothing."""
        first, second = np.broadcast_arrays(first, second)
        first, second = self.roots(first).ravel(), self.roots(second).ravel()
        differ = (first != second) & (first > 0) & (second > 0)
        if not differ.any():
            return
        # A pair as one number: rows are sorted many times slower than numbers.
        pairs = np.unique(first[differ] * self._size + second[differ])
        for a, b in zip(*(column.tolist() for column in np.divmod(pairs, self._size))):
            a, b = self._root(a), self._root(b)
            if a != b:
                self._parent[max(a, b)] = min(a, b)

    def _root(self, label: int) -> int:
        while self._parent[label] != label:
            self._parent[label] = self._parent[self._parent[label]]
            label = int(self._parent[label])
        return label

    def freeze(self, labels: Tensor | np.ndarray, why: object) -> None:
        """Record that these labels' channels cannot be removed, and why."""
        met = np.zeros(self._size, dtype=bool)
        met[labels.numpy() if isinstance(labels, Tensor) else labels] = True
        values = np.flatnonzero(met[1:]) + 1
        if len(values):
            self._frozen.append((values, why))

    def split(self, labels: np.ndarray) -> bool:
        """Note a view that makes several dimensions of channels; return whether it makes maps."""
        self.splits.append(np.unique(labels))
        return len(self.splits) - 1 in self.as_maps

    def splits_frozen_for(self, reason: object) -> frozenset[int]:
        """Return the views that have split channels which are frozen for a reason, by number."""
        frozen = [values for values, why in self._frozen if why[0] is reason]
        roots = np.unique(self.roots(np.concatenate([np.zeros(1, dtype=np.int64), *frozen])))[1:]
        return frozenset(number for number, labels in enumerate(self.splits)
                         if np.isin(self.roots(labels), roots).any())

    def frozen(self) -> dict[int, object]:
        """Return the reason of each frozen set by its representative; the first reason stays."""
        reasons: dict[int, object] = {}
        for values, why in self._frozen:
            for root in self.roots(values).tolist():
                reasons.setdefault(root, why)
        return reasons
