"""A model of two units, whose sensitivities tests write by hand."""
from __future__ import annotations

from torch import Tensor, nn


class Two(nn.Module):
    """Two units of 8 and 6 channels, and an output that cannot be pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU())
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))
