"""Channel labels: integers that run beside the values of a traced model.

A *label tensor* has the shape of the activation it belongs to and names, at each place, the channel
the value comes from (0: none). Labels rarely vary over more than the channel dimension, so they are
held as a *core*: a tensor with the same number of dimensions whose size is 1 along every dimension
that the labels do not vary along. Cores broadcast like the activations do.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_ATTRIBUTE = '_mmprune_core'


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


class LabelSpace:
    """Labels, and which of them are tied together (a union-find forest).

    Two labels are tied when their channels can only be removed together. ``frozen`` maps the
    root of a set of tied labels to the reason why they cannot be removed at all.
    """

    def __init__(self) -> None:
        self._parent = np.zeros(1024, dtype=np.int64)
        self._size = 1
        self._frozen: list[tuple[np.ndarray, object]] = []

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
        pairs = np.unique(np.stack([first[differ], second[differ]], 1), axis=0)
        for a, b in pairs.tolist():
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
        values = np.unique(labels.numpy() if isinstance(labels, Tensor) else labels)
        values = values[values > 0]
        if len(values):
            self._frozen.append((values, why))

    def frozen(self) -> dict[int, object]:
        """Return the reason of each frozen set by its representative; the first reason stays."""
        reasons: dict[int, object] = {}
        for values, why in self._frozen:
            for root in self.roots(values).tolist():
                reasons.setdefault(root, why)
        return reasons
