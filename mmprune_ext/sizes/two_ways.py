"""Attention that can compute its product in two ways: fused, and in its own code by a scale that it stores."""
from __future__ import annotations

from torch import nn


class TwoWays:
    """The attention of timm, whose fused way takes the scale from the width of the heads.

    Once this has changed it computes by its own code, as it does where torch has no fused way: the scale there is the
    one stored when the dense module was built.

    Args:
        module: A module that is about to be slimmed, of a kind told by :meth:`applies`.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._before = self._widths()

    @staticmethod
    def applies(module: nn.Module) -> bool:
        """Whether a module has both ways, and takes the fused one where it can."""
        own = vars(module)
        return type(own.get('fused_attn')) is bool and isinstance(own.get('scale'), float)

    def renew(self) -> None:
        """Leave the fused way if the heads, after the layers were slimmed, have another width."""
        if self._widths() != self._before:
            self.module.fused_attn = False

    def _widths(self) -> list[float]:
        """Return the channels of a head in each layer that makes heads: all layers but the last one."""
        heads = getattr(self.module, 'num_heads', 1)
        return [getattr(layer, 'out_features', getattr(layer, 'out_channels', 0)) / heads
                for name, layer in self.module.named_modules() if name.partition('.')[0] != 'proj']
