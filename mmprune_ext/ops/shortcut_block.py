"""What is left of a residual block whose branch has died."""
from __future__ import annotations

import copy

from torch import Tensor, nn

from mmprune_ext.registry import MODELS

FUNCTION = 'relu'  # of a block that calls its activation as a function


@MODELS.register_module()
class ShortcutBlock(nn.Module):
    """The shortcut of a residual block, and its activation.

    Source: Meng et al., "Pruning Filter in Filter", NeurIPS 2020: a block with a dead convolution is its shortcut.
    Input and output are those of the block. The layers keep the names that they had in the block, and with them
    the names of their weights.

    Args:
        block: The block.
        shortcut: Name of the layer of its shortcut, empty where that is the identity.
        activation: Name of the layer that follows the sum, `'relu'` too where the block calls a function; empty for
            none.

    Raises:
        ValueError: If the block has no such layer.
    """

    def __init__(self, block: nn.Module, shortcut: str = '', activation: str = '') -> None:
        super().__init__()
        layers = dict(block.named_children())
        if shortcut and shortcut not in layers:
            raise ValueError(f'{type(block).__name__} has no layer "{shortcut}"; it has {", ".join(layers)}')
        if activation and activation not in layers and activation != FUNCTION:
            raise ValueError(f'{type(block).__name__} has no layer "{activation}"; it has {", ".join(layers)}')
        self.shortcut_name, self.activation_name = shortcut, activation
        if shortcut:
            self.add_module(shortcut, layers[shortcut])
        if activation:
            layer = copy.deepcopy(layers.get(activation, nn.ReLU()))
            if hasattr(layer, 'inplace'):
                layer.inplace = False  # its input may be the block's, which others read
            self.add_module(activation, layer)
        self.train(block.training)

    def forward(self, input: Tensor) -> Tensor:
        """Return what the block gives when its branch gives zeros."""
        output = getattr(self, self.shortcut_name)(input) if self.shortcut_name else input
        return getattr(self, self.activation_name)(output) if self.activation_name else output

