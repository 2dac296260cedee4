"""Position encodings that are computed anew in each pass, of some of their channels."""
from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class KeptPositions:
    """The ``forward`` of a position encoding of which some channels are left.

    Args:
        module: The encoding; its own code gives maps ``(N, C, H, W)``.
        kept: Which of these channels are left.
    """

    def __init__(self, module: nn.Module, kept: list[int]) -> None:
        self.module, self.kept = module, kept

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run the module's code; returns ``(N, len(kept), H, W)``."""
        return type(self.module).forward(self.module, *args, **kwargs)[:, self.kept]
