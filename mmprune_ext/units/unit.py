"""Channel units: the channels of one or more layers that are kept or removed together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmprune_ext.errors import PruningError
from mmprune_ext.units.reasons import Reason


@dataclass(frozen=True)
class Member:
    """The place of a unit's channels in one dimension of one layer.

    Channel ``c`` of the unit occupies ``block`` positions of the dimension:
    ``start + c * block ... start + c * block + block - 1``, or ``index[c]`` where the positions are
    not regular (shuffled or concatenated several times).

    Attributes:
        module: Path of the layer, or of the parameter or buffer that no layer owns.
        start: First position of the unit in the dimension.
        end: One past the last position.
        block: Positions per channel; above 1 for a linear layer after a flatten, for example.
        index: ``None``, or the positions of each channel, ``num_channels`` rows.
        dim: Dimension of a parameter that no layer owns (a position embedding); else ``None``.
    """

    module: str
    start: int
    end: int
    block: int = 1
    index: tuple[tuple[int, ...], ...] | None = None
    dim: int | None = None

    @classmethod
    def from_positions(cls, module: str, positions: np.ndarray, dim: int | None = None) -> Member:
        """Describe ``positions``, an integer array ``(num_channels, block)``."""
        count, block = positions.shape
        start, end = int(positions.min()), int(positions.max()) + 1
        if np.array_equal(positions.ravel(), np.arange(start, start + count * block)):
            return cls(module, start, end, block, None, dim)
        return cls(module, start, end, block, tuple(map(tuple, positions.tolist())), dim)

    def positions(self, num_channels: int) -> np.ndarray:
        """Return the positions of each channel, an integer array ``(num_channels, block)``."""
        if self.index is not None:
            return np.asarray(self.index, dtype=np.int64).reshape(num_channels, self.block)
        return self.start + np.arange(num_channels * self.block).reshape(num_channels, self.block)

    def places(self, channels: np.ndarray) -> np.ndarray:
        """Return all positions of some of the unit's channels, an integer array of one dimension."""
        if self.index is not None:
            return np.asarray(self.index, dtype=np.int64)[channels].ravel()
        if self.block == 1:
            return channels + self.start if self.start else channels
        return (self.start + channels[:, None] * self.block + np.arange(self.block)).ravel()

    def to_dict(self) -> dict[str, Any]:
        """Return the member as it stands in a channel-unit file."""
        record: dict[str, Any] = {'module': self.module, 'start': self.start, 'end': self.end}
        if self.block != 1:
            record['block'] = self.block
        if self.index is not None:
            record['index'] = [list(row) for row in self.index]
        if self.dim is not None:
            record['dim'] = self.dim
        return record


@dataclass(frozen=True)
class InitArgs:
    """Rounding of a unit's kept number.

    Attributes:
        divisor: The kept number is a multiple of this where the unit has that many channels.
        min_channels: The kept number is never below this.
        round_up: Whether it becomes the next multiple above, and not the one below.
    """

    divisor: int = 1
    min_channels: int = 1
    round_up: bool = False

    def __post_init__(self) -> None:
        for key, value in (('divisor', self.divisor), ('min_channels', self.min_channels)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise PruningError(f'{key} should be an integer of at least 1, but got {value!r}')
        if not isinstance(self.round_up, bool):
            raise PruningError(f'round_up should be True or False, but got {self.round_up!r}')


@dataclass
class ChannelUnit:
    """Channels that can only be kept or removed together, in every layer they pass through.

    Attributes:
        name: Path of the first producer, ``backbone.layer1.0.conv1``.
        num_channels: Channels that can be chosen independently of each other in this unit.
        producers: Layers whose output channels these are.
        followers: Layers and parameters that carry the channels through: normalisation, PReLU,
            depthwise convolution, layer scale.
        consumers: Layers that read the channels as input.
        prunable: Whether channels may be removed.
        reason: Why not, if not.
        detail: What exactly stands behind the reason: an operator, a layer, an error.
        indices: Sorted channels that stay, or ``None`` for all; always relative to the dense model.
        init_args: Rounding of the kept number.
        by_number: Whether a file told only how many stay; ``indices`` are then the first ones, which
            says nothing about the dense model's weights.
    """

    name: str
    num_channels: int
    producers: list[Member] = field(default_factory=list)
    followers: list[Member] = field(default_factory=list)
    consumers: list[Member] = field(default_factory=list)
    prunable: bool = True
    reason: Reason | None = None
    detail: str = ''
    indices: list[int] | None = None
    init_args: InitArgs = field(default_factory=InitArgs)
    by_number: bool = False

    @property
    def keep(self) -> int:
        """Number of channels that stay."""
        return self.num_channels if self.indices is None else len(self.indices)

    @property
    def members(self) -> list[Member]:
        """All producers, followers and consumers."""
        return [*self.producers, *self.followers, *self.consumers]

    def forbid(self, reason: Reason, detail: str = '') -> None:
        """Mark the unit not prunable; the first reason given stays."""
        if self.prunable:
            self.prunable, self.reason, self.detail = False, reason, detail

    def choose(self, indices: Sequence[int] | None) -> None:
        """Set the channels that stay.

        Raises:
            PruningError: Where an index is out of range or repeated, none is left, or the unit is
                not prunable and the choice drops channels.
        """
        self.by_number = False
        if indices is None:
            self.indices = None
            return
        where = f'unit "{self.name}" ({self.num_channels} channels)'
        for i in indices:
            if isinstance(i, bool) or not hasattr(i, '__index__'):
                raise PruningError(f'{where}: indices should be integers, got {i!r}')
        chosen = sorted(int(i) for i in indices)
        if not chosen:
            raise PruningError(f'{where}: no channel is kept; keep at least one')
        if chosen[0] < 0 or chosen[-1] >= self.num_channels:
            raise PruningError(
                f'{where}: channel {chosen[0] if chosen[0] < 0 else chosen[-1]} is out of range; '
                f'indices run from 0 to {self.num_channels - 1}')
        if len(set(chosen)) != len(chosen):
            raise PruningError(f'{where}: the indices of kept channels repeat')
        if len(chosen) < self.num_channels and not self.prunable:
            raise PruningError(f'{where} cannot be pruned: {self.why()}')
        self.indices = chosen

    def why(self) -> str:
        """Return reason and detail as one text, empty for a prunable unit."""
        if self.reason is None:
            return ''
        return f'{self.reason.value} ({self.detail})' if self.detail else self.reason.value

    def kept_number(self, ratio: float) -> int:
        """Return how many channels stay at a pruning ratio.

        ``int(C * (1 - ratio))`` in double precision, rounded down (or up) to ``divisor``, at least
        ``min_channels``, at most ``C``.
        """
        return self.round_keep(int(self.num_channels * (1 - ratio)))

    def round_keep(self, keep: int) -> int:
        """Apply ``divisor``, ``round_up`` and ``min_channels`` to a kept number."""
        divisor = self.init_args.divisor
        if keep < self.num_channels and divisor > 1:
            multiples = -(-keep // divisor) if self.init_args.round_up else keep // divisor
            keep = max(multiples, 1) * divisor
        return min(max(keep, self.init_args.min_channels, 1), self.num_channels)
