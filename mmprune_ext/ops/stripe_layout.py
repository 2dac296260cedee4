"""Where the stripes of a convolution read and write: sizes alone, no weights."""
from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

# Products held at once, as a share of what would double the memory of a dense convolution.
MEMORY_SHARE = 0.75


class Piece(NamedTuple):
    """Stripes of one kernel position, and what of a plane of products they give to the output.

    Attributes:
        rows: Of the weight, and of the list of filters.
        products: The same rows, counted from the first of the step.
        source: Rows and columns of the plane.
        target: Rows and columns of the output.
    """

    rows: slice
    products: slice
    source: tuple[slice, slice]
    target: tuple[slice, slice]


class Step(NamedTuple):
    """One matrix product: rows of the weight, the plane that they read, and what is added up of it.

    Attributes:
        rows: Of the weight.
        plane: Rows and columns of the input, one slice each: all, or every second with a stride of 2.
        pieces: What the output gets.
    """

    rows: slice
    plane: tuple[slice, slice]
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class StripeLayout:
    """The sizes of a convolution that has lost stripes; all of it is known before the input is.

    Attributes:
        channels: Input and output channels.
        kernel: Rows and columns of the kernel, `(kH, kW)`, as of the convolution.
        stride, dilation: As of the convolution.
        pads: Positions put around the input: above, below, left, right.
        counts: Stripes at each kernel position, row by row.
    """

    channels: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pads: tuple[int, int, int, int]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, conv: nn.Module, keep: Tensor) -> StripeLayout:
        """Return the layout of a convolution, or of what has its attributes, with stripes `(C_out, kH, kW)`."""
        return cls((conv.in_channels, conv.out_channels), tuple(conv.kernel_size), tuple(conv.stride),
                   tuple(conv.dilation), _pads(conv), tuple(keep.flatten(1).sum(0).tolist()))

    @property
    def box(self) -> tuple[slice, slice]:
        """Rows and columns of the smallest part of the kernel that holds all stripes."""
        live = [divmod(position, self.kernel[1]) for position, count in enumerate(self.counts) if count]
        return tuple(slice(min(places), max(places) + 1) for places in zip(*live, strict=True))

    def box_pads(self, padded: bool) -> tuple[int, int, int, int]:
        """Return the positions to put around the input of the box, above, below, left, right.

        Negative ones are to be cut away: the kernel positions that would read them are outside the box.

        Args:
            padded: Whether :attr:`pads` has been put around the input already.
        """
        sides = []
        for box, size, dilation, pads in zip(self.box, self.kernel, self.dilation, (self.pads[:2], self.pads[2:]),
                                             strict=True):
            before, after = (0, 0) if padded else pads
            sides += [before - dilation * box.start, after - dilation * (size - box.stop)]
        return tuple(sides)

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return rows and columns of the output for those of the input."""
        (above, below, left, right), (height, width) = self.pads, size
        padded = height + above + below, width + left + right
        return tuple((p - d * (k - 1) - 1) // s + 1 for p, k, s, d in
                     zip(padded, self.kernel, self.stride, self.dilation, strict=True))

    def without_pads(self) -> StripeLayout:
        """Return the layout for an input that is padded already."""
        return StripeLayout(self.channels, self.kernel, self.stride, self.dilation, (0, 0, 0, 0), self.counts)

    def positions(self) -> list[tuple[int, int, int]]:
        """Return row and column in the kernel, and the number of stripes, of each position that has some."""
        return [(*divmod(position, self.kernel[1]), count) for position, count in enumerate(self.counts) if count]


@functools.lru_cache(maxsize=1024)
def steps(layout: StripeLayout, size: tuple[int, int], copies: int) -> tuple[Step, ...]:
    """Return how the output of an input of `size` rows and columns is added up.

    The products of a step fit into the memory that is left when input, output and copies are held, of twice the
    input and the output. Stripes that read nothing but padding are in no step.

    Args:
        layout: The convolution.
        size: Rows and columns of the input.
        copies: How many copies of a plane that a step reads are held beside the input.
    """
    target = layout.output_size(size)
    reads = []
    row = 0
    for a, b, count in layout.positions():
        rows, row = slice(row, row + count), row + count
        shift = a * layout.dilation[0] - layout.pads[0], b * layout.dilation[1] - layout.pads[2]
        windows = [_window(*axis) for axis in zip(shift, layout.stride, size, target, strict=True)]
        if all(out.start < out.stop for _, _, out in windows):
            reads.append((rows, *zip(*windows, strict=True)))
    # With a stride, the positions that read the same plane are not neighbours.
    reads.sort(key=lambda read: [axis.start for axis in read[1]])
    result: list[Step] = []
    for rows, plane, source, out in reads:
        room = _room(layout, size, target, plane, copies)
        first = rows.start
        while first < rows.stop:
            last = result[-1] if result else None
            if not (last and last.plane == plane and last.rows.stop == first < last.rows.start + room):
                last = Step(slice(first, first), plane, ())
                result.append(last)
            start = last.rows.start
            stop = min(rows.stop, start + room)
            piece = Piece(slice(first, stop), slice(first - start, stop - start), source, out)
            result[-1] = Step(slice(start, stop), plane, (*last.pieces, piece))
            first = stop
    return tuple(result)


def _window(shift: int, stride: int, size: int, target: int) -> tuple[slice, slice, slice]:
    """Return, along one axis, the plane that a kernel position reads, the part that counts, and its place.

    Output `r` reads input `r * stride + shift`, which is place `r + shift // stride` of the plane of every
    `stride`-th input from `shift % stride` on.
    """
    offset, phase = divmod(shift, stride)
    length = -((phase - size) // stride)
    low, high = max(0, -offset), min(target, length - offset)
    return slice(phase, size, stride), slice(low + offset, high + offset), slice(low, high)


def _room(layout: StripeLayout, size: tuple[int, int], target: tuple[int, int], plane: tuple[slice, slice],
          copies: int) -> int:
    """Return how many rows of products may be held at once, at least 1."""
    inputs, outputs = layout.channels
    places = _places(plane)
    if places < size[0] * size[1]:
        copies += 1
    free = inputs * size[0] * size[1] + outputs * target[0] * target[1] - copies * inputs * places
    return max(1, int(MEMORY_SHARE * free / places))


def _places(plane: tuple[slice, slice]) -> int:
    rows, columns = (len(range(s.start, s.stop, s.step)) for s in plane)
    return rows * columns


def _pads(conv: nn.Module) -> tuple[int, int, int, int]:
    """Return how far a convolution pads its input above, below, left and right."""
    if conv.padding == 'valid':
        return 0, 0, 0, 0
    if conv.padding == 'same':
        totals = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        # Of an odd total, the larger part lies behind.
        return tuple(part for total in totals for part in (total // 2, total - total // 2))
    rows, columns = conv.padding
    return rows, rows, columns, columns
