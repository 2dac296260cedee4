"""Repair a pruned network without training: weights by least squares, layer after layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from mmprune_ext.units import UnitSet


@dataclass(frozen=True)
class LayerError:
    """How far the outputs of a layer are from the dense model's, as a share of their own size, squared.

    Attributes:
        before: With the weights that pruning left, on the inputs that the repaired layers before it give.
        after: With the weights that were solved for.
    """

    before: float
    after: float


@dataclass(frozen=True)
class RepairReport:
    """What a repair has done.

    Attributes:
        num_images: Images used, of all processes.
        layers: The errors of each repaired layer, by path, in execution order.
        skipped: Why other layers that lost channels were left alone, by path.
    """

    num_images: int
    layers: dict[str, LayerError]
    skipped: dict[str, str]


def repair_least_squares(model: nn.Module, dense: nn.Module, units: UnitSet, dataloader: Iterable[Any],
                         num_images: int = 1024, *, ridge: float = 1e-3, positions: float = 1.0, seed: int = 0,
                         quiet: bool = False) -> RepairReport:
    """Give each layer of a slimmed model, in execution order, the weights whose outputs are nearest to the dense's."""
    raise NotImplementedError
