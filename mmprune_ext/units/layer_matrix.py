"""Convolution and linear layers as the product of a matrix of weights with columns of their input."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

BYTES = 32 * 2 ** 20  # of the columns that are written out at a time


class LayerMatrix:
    """What a layer multiplies, and by what.

    A convolution multiplies the patches of its input, a transposed convolution those of its input with zeros
    between the places, by the kernel turned round; a linear layer the vectors along its last dimension.

    Args:
        layer: The layer.

    Attributes:
        groups: Of the layer.
        inputs: Values that each output of a group is a sum over: channels of the group times places of the kernel,
            the places last.
        outputs: Of each group.
        kernel: Places of the kernel, in each dimension.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.is_linear = isinstance(layer, nn.Linear)
        self.transposed = isinstance(layer, _ConvTransposeNd)
        self.groups = 1 if self.is_linear else layer.groups
        self.kernel = () if self.is_linear else tuple(layer.kernel_size)
        self.outputs = self._width(out=True) // self.groups
        self.inputs = self._width(out=False) // self.groups * math.prod(self.kernel)

    @staticmethod
    def fits(layer: nn.Module) -> bool:
        """Whether a layer is of a kind that this describes; a class of one's own may compute something else."""
        return isinstance(layer, (_ConvNd, nn.Linear)) and not hasattr(layer, 'parametrizations')

    def _width(self, out: bool) -> int:
        if self.is_linear:
            return self.layer.out_features if out else self.layer.in_features
        return self.layer.out_channels if out else self.layer.in_channels

    def weight(self) -> Tensor:
        """Return the weights, ``(groups, outputs, inputs)``."""
        weight = self.layer.weight.detach()
        if self.transposed:
            weight = weight.unflatten(0, (self.groups, -1)).transpose(1, 2)
            weight = weight.flip(list(range(3, weight.dim())))
        return weight.reshape(self.groups, self.outputs, self.inputs)

    def bias(self) -> Tensor | None:
        """Return the bias, ``(groups, outputs)``, if there is one."""
        bias = self.layer.bias
        return None if bias is None else bias.detach().reshape(self.groups, self.outputs)

    @torch.no_grad()
    def set_weight(self, weight: Tensor) -> None:
        """Give the layer weights, ``(groups, outputs, inputs)``."""
        weight = weight.reshape(self.groups, self.outputs, -1, *self.kernel)
        if self.transposed:
            weight = weight.flip(list(range(3, weight.dim()))).transpose(1, 2)
        self.layer.weight.copy_(weight.reshape(self.layer.weight.shape))

    @torch.no_grad()
    def set_bias(self, bias: Tensor) -> None:
        """Give the layer a bias, ``(groups, outputs)``."""
        self.layer.bias.copy_(bias.reshape(-1))

    def samples(self, x: Tensor, y: Tensor, share: float = 1.0,
                generator: torch.Generator | None = None) -> Iterator[Tensor]:
        """Yield the columns of an input over the wanted outputs over ones, ``(groups, inputs + outputs + 1, n)``.

        Args:
            x: What the layer reads.
            y: What it should give, of the shape that it gives.
            share: Of the positions, drawn anew in each call, the same of each image.
            generator: What draws them.
        """
        windows, wanted = self._windows(x, y)
        places = _drawn(wanted.shape[2:], share, generator)
        count = math.prod(wanted.shape[2:]) if places is None else len(places[0])
        depth = (self.inputs + self.outputs + 1) * self.groups * x.element_size()
        images = max(1, BYTES // max(1, depth * count))
        for first in range(0, len(x) if x.dim() > 1 else 1, images):
            some, targets = windows[first:first + images], wanted[first:first + images]
            if places is not None:
                some, targets = some[(slice(None), slice(None), *places)], targets[(slice(None), slice(None), *places)]
            rows = max(1, BYTES // (depth * math.prod(targets.shape[3:]))) if images == 1 else targets.shape[2]
            for row in range(0, targets.shape[2], rows):
                yield self._stacked(some[:, :, row:row + rows], targets[:, :, row:row + rows])

    def _windows(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return a view of the input ``(N, C, *positions, *kernel)``, and the outputs ``(N, C_out, *positions)``."""
        if self.is_linear:
            x, y = (t.reshape(1 if t.dim() == 1 else len(t), -1, t.shape[-1]).transpose(1, 2) for t in (x, y))
            return x, y
        layer, dims = self.layer, len(self.kernel)
        if x.dim() == dims + 1:
            x, y = x[None], y[None]
        stride = layer.stride
        if self.transposed:
            x, stride = self._with_zeros_between(x, y), (1,) * dims
        else:
            mode = 'constant' if layer.padding_mode == 'zeros' else layer.padding_mode
            x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
        for dim, (size, step, apart) in enumerate(zip(self.kernel, stride, layer.dilation)):
            x = x.unfold(dim + 2, (size - 1) * apart + 1, step)[..., ::apart]
        return x, y

    def _with_zeros_between(self, x: Tensor, y: Tensor) -> Tensor:
        layer = self.layer
        sizes = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], layer.stride)]
        spread = x.new_zeros(*x.shape[:2], *sizes)
        spread[(..., *(slice(None, None, step) for step in layer.stride))] = x
        pads = []
        for size, out, kernel, apart, padding in zip(sizes, y.shape[2:], self.kernel, layer.dilation, layer.padding):
            reach = (kernel - 1) * apart
            before = reach - padding
            pads = [before, out + reach - size - before, *pads]
        return F.pad(spread, pads)

    def _stacked(self, windows: Tensor, wanted: Tensor) -> Tensor:
        dims, kernels = wanted.dim() - 2, len(self.kernel)
        positions = wanted.shape[2:]
        found = windows.new_empty(self.groups, self.inputs + self.outputs + 1, len(wanted) * math.prod(positions))
        columns = windows.unflatten(1, (self.groups, -1))
        order = (1, 2, *range(3 + dims, 3 + dims + kernels), 0, *range(3, 3 + dims))
        found[:, :self.inputs].view(self.groups, -1, *self.kernel, len(wanted), *positions).copy_(
            columns.permute(order))
        found[:, self.inputs:-1].view(self.groups, -1, len(wanted), *positions).copy_(
            wanted.unflatten(1, (self.groups, -1)).permute(1, 2, 0, *range(3, 3 + dims)))
        found[:, -1] = 1
        return found


def _drawn(sizes: torch.Size, share: float, generator: torch.Generator | None) -> tuple[Tensor, ...] | None:
    """Return a share of all positions by their places in each dimension, ``None`` for all."""
    total = math.prod(sizes)
    count = max(1, math.ceil(share * total))
    if count >= total:
        return None
    drawn = torch.randperm(total, generator=generator)[:count].sort().values
    return torch.unravel_index(drawn, sizes)
