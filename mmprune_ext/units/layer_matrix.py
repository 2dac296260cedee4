"""Convolution and linear layers as the product of a matrix of weights with columns of their input."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

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
        inputs: Values that each output of a group is a sum over: places of the kernel times channels of the group,
            the channels last.
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
        return isinstance(layer, (_ConvNd, nn.Linear)) and 'weight' in layer._parameters

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
        weight = weight.reshape(self.groups, self.outputs, -1, math.prod(self.kernel))
        return weight.transpose(2, 3).reshape(self.groups, self.outputs, self.inputs)

    def bias(self) -> Tensor | None:
        """Return the bias, ``(groups, outputs)``, if there is one."""
        bias = self.layer.bias
        return None if bias is None else bias.detach().reshape(self.groups, self.outputs)

    @torch.no_grad()
    def set_weight(self, weight: Tensor) -> None:
        """Give the layer weights, ``(groups, outputs, inputs)``."""
        weight = weight.reshape(self.groups, self.outputs, math.prod(self.kernel), -1).transpose(2, 3)
        weight = weight.reshape(self.groups, self.outputs, -1, *self.kernel)
        if self.transposed:
            weight = weight.flip(list(range(3, weight.dim()))).transpose(1, 2)
        self.layer.weight.copy_(weight.reshape(self.layer.weight.shape))

    @torch.no_grad()
    def set_bias(self, bias: Tensor) -> None:
        """Give the layer a bias, ``(groups, outputs)``."""
        self.layer.bias.copy_(bias.reshape(-1))

    def samples(self, x: Tensor, outputs: Sequence[Tensor], share: float = 1.0,
                generator: torch.Generator | None = None,
                target: Callable[..., Tensor] = lambda y: y) -> Iterator[Tensor]:
        """Yield columns of an input, each beside the wanted outputs and a one, ``(groups, n, inputs + outputs + 1)``.

        Args:
            x: What the layer reads.
            outputs: What is wanted, of the shape that it gives; or several of such a shape, with any channels, from
                which ``target`` makes it.
            share: Of the positions, drawn anew in each call, the same of each image.
            generator: What draws them.
            target: Given all outputs at these positions, channels last, returns what is wanted there.
        """
        windows = self._windows(x, outputs[0])
        places = _drawn(windows.shape[1:1 + max(len(self.kernel), 1)], share, generator)
        values = [self._channels_last(y) for y in outputs]
        if places is not None:
            values = [value[(slice(None), *places)] for value in values]
        wanted = target(*values)
        depth = (self.inputs + self.outputs + 1) * self.groups * x.element_size()
        images = max(1, BYTES // max(1, depth * math.prod(wanted.shape[1:-1])))
        for first in range(0, len(wanted), images):
            some, targets = windows[first:first + images], wanted[first:first + images]
            if places is not None:
                some = some[(slice(None), *places)]
            rows = max(1, BYTES // (depth * math.prod(targets.shape[2:-1]))) if images == 1 else targets.shape[1]
            for row in range(0, targets.shape[1], rows):
                yield self._beside(some[:, row:row + rows], targets[:, row:row + rows])

    def is_batched(self, x: Tensor) -> bool:
        """Whether the first dimension of what the layer reads is that of samples."""
        return x.dim() > 1 if self.is_linear else x.dim() == len(self.kernel) + 2

    def reads_as_many(self, x: Tensor, output: Tensor) -> bool:
        """Whether the layer reads as many samples as another output of it has: code may choose them by values."""
        x, output = self._channels_last(x), self._channels_last(output)
        return x.shape[:-1] == output.shape[:-1] if self.is_linear else len(x) == len(output)

    def _channels_last(self, value: Tensor) -> Tensor:
        """Return a view ``(N, *positions, C)`` of what the layer reads or gives."""
        value = value if self.is_batched(value) else value[None]
        if not self.is_linear:
            return value.movedim(1, -1)
        return value.reshape(len(value), math.prod(value.shape[1:-1]), value.shape[-1])

    def _windows(self, x: Tensor, output: Tensor) -> Tensor:
        """Return a view of the input, ``(N, *positions, *kernel, C)``."""
        if self.is_linear:
            return self._channels_last(x)
        layer, dims = self.layer, len(self.kernel)
        x = x if self.is_batched(x) else x[None]
        stride = layer.stride
        if self.transposed:
            x, stride = self._with_zeros_between(x, output.shape[-dims:]), (1,) * dims
        else:
            mode = 'constant' if layer.padding_mode == 'zeros' else layer.padding_mode
            x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
        x = x.movedim(1, -1).contiguous()  # what a row of the kernel reads then lies in one piece
        for dim, (size, step, apart) in enumerate(zip(self.kernel, stride, layer.dilation)):
            x = x.unfold(dim + 1, (size - 1) * apart + 1, step)[..., ::apart]
        return x.movedim(dims + 1, -1)

    def _with_zeros_between(self, x: Tensor, given: Sequence[int]) -> Tensor:
        layer = self.layer
        sizes = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], layer.stride)]
        spread = x.new_zeros(*x.shape[:2], *sizes)
        spread[(..., *(slice(None, None, step) for step in layer.stride))] = x
        pads = []
        for size, out, kernel, apart, padding in zip(sizes, given, self.kernel, layer.dilation, layer.padding):
            reach = (kernel - 1) * apart
            before = reach - padding
            pads = [before, out + reach - size - before, *pads]
        return F.pad(spread, pads)

    def _beside(self, windows: Tensor, wanted: Tensor) -> Tensor:
        found = windows.new_empty(self.groups, math.prod(wanted.shape[:-1]), self.inputs + self.outputs + 1)
        for columns, values in ((found[..., :self.inputs], windows), (found[..., self.inputs:-1], wanted)):
            values = values.unflatten(-1, (self.groups, -1)).movedim(-2, 0)
            columns.view(values.shape).copy_(values)
        found[..., -1] = 1
        return found


def _drawn(sizes: Sequence[int], share: float, generator: torch.Generator | None) -> tuple[Tensor, ...] | None:
    """Return a share of all positions by their places in each dimension, ``None`` for all."""
    total = math.prod(sizes)
    count = max(1, math.ceil(share * total))
    if count >= total:
        return None
    drawn = torch.randperm(total, generator=generator)[:count].sort().values
    return torch.unravel_index(drawn, sizes)
