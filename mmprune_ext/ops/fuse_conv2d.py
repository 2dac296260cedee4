"""The convolution that DCFF (arXiv 2107.06916) trains: all filters learn, fewer are applied."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmprune_ext.ops.in_place import conv_with
from mmprune_ext.scores import fusion_matrix


@dataclass(frozen=True)
class FusionPart:
    """Filters of a layer that are fused with each other: those of one channel unit.

    Attributes:
        filters: Rows of the layer's weight, integers `(n, block)`: `block` rows to a channel.
        outputs: Output channels that take their place, integers `(m, block)`.
        start: Which of the `n` channels are put out before the first update, `m` integers,
            ascending.
    """

    filters: np.ndarray
    outputs: np.ndarray
    start: np.ndarray


class FuseConv2d(nn.Conv2d):
    """A convolution of `C` learned filters that applies `m` mixtures of them.

    Input `(N, C_in, H, W)`, output `(N, m, H', W')`: the convolution with the weight `P W` and the
    bias `P b`. `P`, the buffer `fusion`, is a constant of the forward pass, so that gradients reach
    all `C` filters and none reaches `P`; :meth:`update` computes it anew.

    With `groups=1` every filter reads all input channels. In a depthwise convolution each output
    channel reads one, and `groups` is the number of those that stay.

    Args:
        conv: The convolution with all its filters. Its weight and bias become this layer's.
        parts: Which filters are fused with each other. Rows in no part are applied as they are.

    Attributes:
        weight: All filters, `(C, C_in / groups, kH, kW)`.
        bias: One value a filter, `(C,)`, or `None`.
        fusion: `P`, `(m, C)`, in the type of the weight; its rows sum to 1.
        chosen: The filters that the rows of `P` belong to, bool `(C,)`.
    """

    fusion: Tensor
    chosen: Tensor

    def __init__(self, conv: nn.Conv2d, parts: Sequence[FusionPart]) -> None:
        filters = conv.out_channels
        kept = filters - sum(part.filters.size - part.outputs.size for part in parts)
        depthwise = conv.groups > 1
        if depthwise and (conv.groups != conv.in_channels or kept * conv.groups % filters):
            raise ValueError(f'FuseConv2d takes groups=1 or a depthwise convolution, got {conv}')
        groups = kept * conv.groups // filters if depthwise else 1
        # Nothing is drawn at random for the parameters that the next lines replace.
        super().__init__(groups if depthwise else conv.in_channels, kept, conv.kernel_size,
                         conv.stride, conv.padding, conv.dilation, groups, conv.bias is not None,
                         conv.padding_mode, device='meta')
        self.weight, self.bias = conv.weight, conv.bias
        self.parts = tuple(parts)
        self.train(conv.training)
        matrix = np.zeros((kept, filters))
        matrix[_others(kept, [part.outputs for part in parts]),
               _others(filters, [part.filters for part in parts])] = 1
        for part in parts:
            matrix[part.outputs, part.filters[part.start]] = 1
        self.register_buffer('fusion', torch.from_numpy(matrix).to(conv.weight))
        self.register_buffer('chosen', (self.fusion == 1).any(0))

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, keep: int) -> FuseConv2d:
        """Return the layer for a convolution whose filters are all fused with each other.

        Args:
            conv: A convolution with `groups=1`, or a depthwise one with as many outputs as inputs.
            keep: Number of output channels.

        Raises:
            ValueError: If `keep` is not 1 to the number of filters, or the convolution is grouped.
        """
        if not 1 <= keep <= conv.out_channels:
            raise ValueError(f'keep should be 1 to {conv.out_channels}, got {keep}')
        places = np.arange(conv.out_channels)[:, None]
        return cls(conv, [FusionPart(places, places[:keep], np.arange(keep))])

    @torch.no_grad()
    def update(self, temperature: float) -> bool:
        """Compute `P` from the present filters.

        Args:
            temperature: `T`, positive; 1 mixes, large values choose.

        Returns:
            Whether it did: if a filter holds an infinite value or NaN, `P` stays as it is.
        """
        if not bool(self.weight.isfinite().all()):
            return False
        for part in self.parts:
            places = torch.from_numpy(part.filters).to(self.weight.device)
            matrix, chosen = fusion_matrix(self.weight[places], len(part.outputs), temperature,
                                           self.chosen[places[:, 0]])
            matrix = matrix.to(self.fusion.dtype)
            # Shares that change no sum in this type; without them a choice is exactly one-hot.
            matrix[matrix < torch.finfo(matrix.dtype).eps ** 2] = 0
            outputs = torch.from_numpy(part.outputs).to(places)
            for column, row in zip(places.T, outputs.T, strict=True):
                # In place: what holds the buffers (DDP, averaging hooks) sees the new values.
                self.fusion[row[:, None], column] = matrix
                self.chosen[column] = chosen
        return True

    def fused_weight(self) -> tuple[Tensor, Tensor | None]:
        """Return `P W`, `(m, C_in / groups, kH, kW)`, and `P b`, `(m,)` or `None`."""
        # Sums over all filters would lose digits in the types of mixed precision.
        with torch.autocast(self.weight.device.type, enabled=False):
            index = self._one_hot()
            if index is not None:
                return (self.weight.index_select(0, index),
                        None if self.bias is None else self.bias.index_select(0, index))
            weight = mixed(self.fusion, self.weight.flatten(1)[None])[0].unflatten(1, self.weight.shape[1:])
            return weight, None if self.bias is None else self.fusion @ self.bias

    def _one_hot(self) -> Tensor | None:
        """Return the filter of each row if `P` only chooses, which spares the product.

        Told by the values, which averaging hooks exchange behind the module's back. On an
        accelerator the product is cheaper than waiting for the answer.
        """
        fusion = self.fusion
        if fusion.device.type != 'cpu' or torch.count_nonzero(fusion) != len(fusion):
            return None
        values, index = fusion.max(1)
        return index if bool((values == 1).all()) else None

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution with the fused filters (shapes: see the class)."""
        if self.training and self._outputs_cost_less(input) and self._one_hot() is None:
            filtered = self._conv_forward(input, self.weight, self.bias)
            return mixed(self.fusion, filtered.flatten(2)).unflatten(2, filtered.shape[2:])
        weight, bias = self.fused_weight()
        return self._conv_forward(input, weight, bias)

    def _outputs_cost_less(self, input: Tensor) -> bool:
        """Whether mixing the outputs of all filters takes fewer products than mixing the filters.

        So it is where a small batch has few positions in deep layers. Counted are both passes of
        the mixing, and all three of a convolution with the filters that fusing would have spared.
        """
        mixed_precision = input.dtype != self.weight.dtype or _autocast_on_cpu()
        if self.groups > 1 or input.device.type != 'cpu' or mixed_precision:
            return False
        (kept, filters), size = self.fusion.shape, self.weight[0].numel()
        positions = input.numel() // self.in_channels // (self.stride[0] * self.stride[1])
        mixing = 2 * kept * filters
        return positions * (mixing + 3 * (filters - kept) * size) < mixing * size

    @torch.no_grad()
    def fused_conv(self) -> nn.Conv2d:
        """Return a plain convolution that computes the same."""
        weight, bias = self.fused_weight()
        return conv_with(self, nn.Parameter(weight, self.weight.requires_grad),
                         None if bias is None else nn.Parameter(bias, self.bias.requires_grad))

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, filters={len(self.weight)}'


def mixed(fusion: Tensor, values: Tensor) -> Tensor:
    """Return the products of `P`, `(m, C)`, and each of the values `(N, C, L)`, as `(N, m, L)`."""
    if values.device.type != 'cpu':
        return fusion @ values
    # A convolution, for which torch takes oneDNN: BLAS may not know the processor, and takes twice as
    # long on AMD's with AVX-512. On one thread torch would do without oneDNN, but for strides: this
    # one is over the only row.
    return F.conv2d(values[:, :, None], fusion[:, :, None, None], stride=(2, 1)).squeeze(2)


def _autocast_on_cpu() -> bool:
    try:
        return torch.is_autocast_enabled('cpu')
    except TypeError:  # torch before 2.4, where the name without an argument asks for CUDA
        return torch.is_autocast_cpu_enabled()


def _others(size: int, places: list[np.ndarray]) -> np.ndarray:
    """Return the integers below `size` that are not among `places`, ascending."""
    return np.setdiff1d(np.arange(size), np.concatenate([p.ravel() for p in places] or [[]]))
