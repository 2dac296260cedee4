"""The output of a convolution as a sum of matrix products, one row a stripe."""
from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmprune_ext.ops.stripe_layout import Plane, Step, StripeLayout, steps

# Up to this many places a plane, the images of a batch go into one matrix product.
FOLDED_PLACES = 49


class _Prepared(NamedTuple):
    """A step with all that does not depend on values.

    Attributes:
        plane: What it reads, `None` for that of the step before.
        runs: Rows of the weight.
        inside: 1 for the columns of each stripe's products that an output in the same row gets, 0 for the others,
            `(stripes, 1, columns)`; `None` if all columns count.
        filters: Of the stripes at each kernel position.
        counts: How many these are.
        places: First place of the products, first place of the output, and number of places, for each.
    """

    plane: Plane | None
    runs: list[slice]
    inside: Tensor | None
    filters: list[Tensor]
    counts: list[int]
    places: list[tuple[int, int, int]]


class StripeSum:
    """The sum for inputs of one size, without gradients.

    Args:
        layout: Of the convolution.
        filters: The filter of each stripe, int64 `(num_stripes,)`.
        size: Rows and columns of the input.
        images: 1, or the number of images in a batch if their planes go into one product.
    """

    def __init__(self, layout: StripeLayout, filters: Tensor, size: tuple[int, int], images: int) -> None:
        self.images, self.outputs = images, layout.channels[1]
        self.size = layout.output_size(size)
        inside = self._inside(layout).to(filters.device) if layout.wraps(size) else None
        self.steps: list[_Prepared] = []
        last = None
        for step in steps(layout, size, int(images > 1)):
            self.steps.append(self._prepare(step, filters, inside, None if step.plane == last else step.plane))
            last = step.plane

    @staticmethod
    def folds(images: int, size: tuple[int, int]) -> bool:
        """Whether all planes of a batch should go into one product, which pays where they are small."""
        return images > 1 and size[0] * size[1] <= FOLDED_PLACES

    def _inside(self, layout: StripeLayout) -> Tensor:
        width = self.size[1]
        columns = torch.arange(width) - torch.tensor(layout.column_shifts())[:, None]
        inside = ((columns >= 0) & (columns < width)).float()
        return inside.repeat_interleave(torch.tensor(layout.counts), 0).repeat_interleave(self.images, 1)[:, None]

    def _prepare(self, step: Step, filters: Tensor, inside: Tensor | None, plane: Plane | None) -> _Prepared:
        counts = [piece.count for piece in step.pieces]
        places = [tuple(self.images * place for place in (piece.source, piece.target, piece.length))
                  for piece in step.pieces]
        return _Prepared(plane, step.runs, None if inside is None else _taken(inside, step.runs),
                         list(_taken(filters, step.runs).split(counts)), counts, places)

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the output of a convolution.

        Args:
            x: Input, `(N, C_in, H, W)`.
            weight: Stripes, `(num_stripes, C_in)`.
            bias: `(C_out,)` or `None`.

        Returns:
            `(N, C_out, H', W')`.
        """
        # (groups, channels, rows, columns, images of a group): one group of all images, or each alone.
        x = x[..., None] if self.images == 1 else x.permute(1, 2, 3, 0)[None].contiguous()
        # Of a weight that may learn, torch would rather copy the planes than take one product an image.
        weight, output = weight.detach(), None
        for step in self.steps:
            if step.plane is not None:
                plane = step.plane.of(x)
            products = torch.matmul(_taken(weight, step.runs), plane)
            if output is None:
                output = self._start(products, bias)
            self._add(output, products, step)
            del products  # before the next are made
        if output is None:
            output = self._start(x, bias)
        output = output.view(*output.shape[:2], *self.size, self.images)
        return output[..., 0] if self.images == 1 else output[0].permute(3, 0, 1, 2).contiguous()

    def _start(self, like: Tensor, bias: Tensor | None) -> Tensor:
        """Return the bias, or zeros, at all places."""
        return filled(like, (like.shape[0], self.outputs, self.size[0] * self.size[1] * self.images), bias, 1)

    def _add(self, output: Tensor, products: Tensor, step: _Prepared) -> None:
        """Add products to the output, in place."""
        if step.inside is not None:
            rows = products.view(*products.shape[:2], -1, step.inside.shape[2])
            rows.mul_(step.inside)
        parts = products.split_with_sizes(step.counts, 1)
        for part, filters, (source, target, length) in zip(parts, step.filters, step.places, strict=True):
            if length < part.shape[2]:
                part = part.narrow(2, source, length)
            output.narrow(2, target, length).index_add_(1, filters, part)


def filled(like: Tensor, shape: tuple[int, ...], bias: Tensor | None, axis: int) -> Tensor:
    """Return a bias, zeros if it is `None`, spread over a shape with filters on one axis, in the type of `like`."""
    if bias is None:
        return like.new_zeros(shape)
    sizes = [1] * len(shape)
    sizes[axis] = bias.shape[0]
    return bias.to(like.dtype).view(sizes).expand(shape).clone(memory_format=torch.contiguous_format)


def sum_traced(x: Tensor, weight: Tensor, bias: Tensor | None, filters: Tensor, layout: StripeLayout) -> Tensor:
    """Return the output of a convolution, in operations that exporters know, for any input size, with gradients.

    Args:
        x: Input, `(N, C_in, H, W)`.
        weight: Stripes, `(num_stripes, C_in)`.
        bias: `(C_out,)` or `None`.
        filters: The filter of each stripe, int64 `(num_stripes,)`.
        layout: Of the convolution.
    """
    above, below, left, right = layout.pads
    size = tuple(x.shape[2:])
    height, width = layout.output_size(size)
    span_y, span_z = (d * (k - 1) for d, k in zip(layout.dilation, layout.kernel, strict=True))
    x = x.transpose(0, 1)
    positions = layout.positions()
    counts = [count for _, _, count in positions]
    whole = layout.stride == (1, 1) and _within(layout.pads, (span_y, span_z), size)
    if whole:
        rows = torch.matmul(weight, x.flatten(1)).unflatten(1, x.shape[1:]).split(counts)
    else:
        x, rows = F.pad(x, (left, right, above, below)), weight.split(counts)
    output, first = None, 0
    for (a, b, count), part in zip(positions, rows, strict=True):
        y, z = a * layout.dilation[0], b * layout.dilation[1]
        if whole:
            part = F.pad(part, (left - z, right - span_z + z, above - y, below - span_y + y))
        else:
            step_y, step_z = layout.stride
            plane = x[:, :, y:y + step_y * (height - 1) + 1:step_y, z:z + step_z * (width - 1) + 1:step_z]
            part = torch.matmul(part, plane.flatten(1)).unflatten(1, plane.shape[1:])
        if output is None:
            output = filled(part, (layout.channels[1], *part.shape[1:]), bias, 0)
        output = output.index_add(0, filters[first:first + count], part)
        first += count
    return output.transpose(0, 1)


def _within(pads: tuple[int, int, int, int], spans: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether no kernel position lies beyond a plane of this size; of one yet unknown, a single place is sure."""
    sides = (max(pads[0], spans[0] - pads[0]), size[0]), (max(pads[2], spans[1] - pads[2]), size[1])
    return all(reach <= (length if isinstance(length, int) else 1) for reach, length in sides)


def _taken(tensor: Tensor, runs: list[slice]) -> Tensor:
    """Return some rows of a tensor, a view if they are neighbours."""
    return tensor[runs[0]] if len(runs) == 1 else torch.cat([tensor[run] for run in runs])
