"""Which channels of a model are zero, where filters of its convolutions are."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from torch import nn

from mmprune_ext.ops import ZeroPadShortcut
from mmprune_ext.ops.zero_pad_shortcut import ZERO
from mmprune_ext.units.unit_set import UnitSet

Marks = dict[str, np.ndarray]


class DeadChannels:
    """How dead filters make channels dead, and dead channels further filters.

    A channel is dead when all layers that produce it give zeros for it. A convolution that reads dead channels only
    gives zeros itself; filters that only dead convolutions read serve nothing.

    Args:
        units: The channel units of a model.
        model: The dense model.
        convs: Paths of the convolutions whose filters may die.
        free: Names of the units whose dead channels are silent for every layer that reads them, once the layers
            between are told so.
    """

    def __init__(self, units: UnitSet, model: nn.Module, convs: Collection[str], free: Collection[str]) -> None:
        self._convs = {path: model.get_submodule(path) for path in convs}
        self._shortcuts = {path: module for path, module in model.named_modules()
                           if isinstance(module, ZeroPadShortcut)}
        self._free = set(free)
        self._widths = {name: unit.num_channels for name, unit in units.items()}
        self._producers: dict[str, list[tuple[str, np.ndarray]]] = {}
        self._readers: dict[str, list[str]] = {}
        self._inputs: dict[str, list[tuple[str, np.ndarray]]] = {}
        for name, unit in units.items():
            self._producers[name] = [(member.module, member.positions(unit.num_channels)) for member in unit.producers]
            self._readers[name] = [member.module for member in unit.consumers]
            for member in unit.consumers:
                self._inputs.setdefault(member.module, []).append((name, member.positions(unit.num_channels)))

    def spread(self, filters: Mapping[str, np.ndarray], silent: Mapping[str, np.ndarray] | None = None,
               ) -> tuple[Marks, Marks]:
        """Return all that is dead where some filters are.

        Args:
            filters: Dead filters by path of their convolution, bool ``(C_out,)``.
            silent: Channels of free units that are zero for their readers if their filters are, bool
                ``(num_channels,)`` by unit; ``None`` for all of them.

        Returns:
            Dead channels by name of a free unit, bool ``(num_channels,)``; dead filters as given, and those that
            follow.
        """
        dead = {path: np.array(marks) for path, marks in filters.items()}
        while True:
            channels = self._channels(dead, silent)
            further = [path for path, marks in dead.items() if not marks.all() and self._hears_nothing(path, channels)]
            for path in further:
                dead[path][:] = True
            for name in self._free:
                if self._is_unheard(name, dead):
                    for path, places in self._producers[name]:
                        further += [] if dead[path][places].all() else [path]
                        dead[path][places] = True
            if not further:
                return channels, dead

    def _channels(self, dead: Marks, silent: Mapping[str, np.ndarray] | None) -> Marks:
        """Return the dead channels of free units; those that shortcuts without weights pass on, too."""
        found: Marks = {}
        while True:
            before = {name: marks.sum() for name, marks in found.items()}
            for name in self._producers.keys() & self._free:
                marks = np.ones(self._widths[name], dtype=bool)
                for path, places in self._producers[name]:
                    marks &= self._dead_outputs(path, dead, found, places).all(1)
                if silent is not None:
                    marks &= silent[name]
                found[name] = marks
            if before == {name: marks.sum() for name, marks in found.items()}:
                return found

    def _dead_outputs(self, path: str, dead: Marks, channels: Marks, places: np.ndarray) -> np.ndarray:
        if path in dead:
            return dead[path][places]
        if path not in self._shortcuts:
            return np.zeros(places.shape, dtype=bool)
        shortcut = self._shortcuts[path]
        sources = np.array(shortcut.sources)[places]
        return (sources == ZERO) | self._dead_inputs(path, shortcut.in_channels, channels)[sources]

    def _dead_inputs(self, path: str, size: int, channels: Marks) -> np.ndarray:
        marks = np.zeros(size, dtype=bool)
        for name, places in self._inputs.get(path, []):
            if name in channels:
                marks[places[channels[name]]] = True
        return marks

    def _hears_nothing(self, path: str, channels: Marks) -> bool:
        return bool(self._dead_inputs(path, self._convs[path].in_channels, channels).all())

    def _is_unheard(self, name: str, dead: Marks) -> bool:
        readers = self._readers[name]
        return bool(readers) and all(path in dead and dead[path].all() for path in readers) and all(
            path in dead for path, _ in self._producers[name])
