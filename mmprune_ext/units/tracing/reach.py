"""Which channels a layer that never ran may read.

Code inside a module sees the inputs of the call and what the modules that it calls take and return, but nothing that
those compute inside. So a layer that did not run can only be meant for what the code of a module around it saw, or
that of a module which was given it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor, nn

from mmprune_ext.units.labels import LabelSpace, get_core
from mmprune_ext.units.layers import rule_for


class Reach:
    """The labels that the code of each module had in hand, by the module's path."""

    def __init__(self) -> None:
        self._running: list[str] = ['']
        self._seen: dict[str, list[np.ndarray]] = defaultdict(list)
        self._lent: dict[str, set[str]] = defaultdict(set)

    def begin(self) -> None:
        """Start another pass: the one before may have ended in an error."""
        self._running = ['']

    def enter(self, path: str, inputs: list[Tensor], lent: Sequence[str]) -> None:
        """Note the call of a module with some tensors, and with other modules, by their paths."""
        self.note(inputs)
        self._running.append(path)
        self.note(inputs)
        for other in lent:
            self._lent[other].add(path)

    def leave(self, path: str, outputs: list[Tensor]) -> None:
        """Note what a call returned; calls inside it that ended in an error have ended with it."""
        while len(self._running) > 1 and self._running.pop() != path:
            pass
        self.note(outputs)

    def note(self, tensors: list[Tensor]) -> None:
        """Note what the code of the running module has in hand."""
        cores = [core for core in map(get_core, tensors) if core is not None]
        self._seen[self._running[-1]] += [np.unique(core.numpy()) for core in cores]

    def readable(self, layers: Mapping[str, nn.Module], paths: Sequence[str], space: LabelSpace,
                 records: Mapping[tuple, np.ndarray]) -> list[np.ndarray]:
        """Return the labels that layers which were never called may read, judged by their width too.

        Args:
            layers: All layers by path.
            paths: Those never called.
            space: The labels.
            records: Labels by layer path, role and dimension.
        """
        found = []
        for path in paths:
            widths = rule_for(layers[path]).widths(layers[path])
            width = widths.get('consumer', widths.get('follower', 0))
            seen = self._seen_around(path, space)
            for (_, role, _), labels in records.items():
                many = width // len(labels) if isinstance(layers[path], nn.Linear) else 1
                if role != 'consumer' and len(labels) * many == width and np.isin(space.roots(labels), seen).any():
                    found.append(labels)
        return found

    def _seen_around(self, path: str, space: LabelSpace) -> np.ndarray:
        """Return the representatives of what the code around a layer, or what it was lent to, saw."""
        parts = path.split('.')
        around = {'.'.join(parts[:i]) for i in range(len(parts))}
        around |= {user for part in [*around, path] for user in self._lent.get(part, ())}
        arrays = [labels for module in around for labels in self._seen.get(module, ())]
        return np.unique(space.roots(np.unique(np.concatenate([*arrays, np.zeros(1, dtype=np.int64)]))))
