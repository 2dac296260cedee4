"""Where the stripes of a convolution read and write: sizes alone, no weights."""
from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

# Products held at once, as a share of what would double the memory of a dense convolution.
MEMORY_SHARE = 0.75


class Plane(NamedTuple):
    """What of the input a kernel position reads.

    Attributes:
        rows: Of the input: all, or every second with a stride of 2.
        columns: Of the input.
        pads: Columns of zeros put before and after them, which makes as many as the output has.
    """

    rows: range
    columns: range
    pads: tuple[int, int]

    def of(self, x: Tensor) -> Tensor:
        """Return the plane of an input `(groups, channels, rows, columns, images)`, flattened behind the channels."""
        rows, columns = (slice(r.start, r.stop, r.step) for r in (self.rows, self.columns))
        plane = x[:, :, rows, columns]
        return (F.pad(plane, (0, 0, *self.pads)) if any(self.pads) else plane).flatten(2)


class Piece(NamedTuple):
    """Stripes of one kernel position, and what of their products, of a flattened plane, the output gets.

    Attributes:
        first: First of them, a row of the weight.
        count: How many.
        source: First place of the plane.
        target: First place of the output.
        length: Places.
    """

    first: int
    count: int
    source: int
    target: int
    length: int

    @property
    def end(self) -> int:
        """Row of the weight behind the last."""
        return self.first + self.count


class Step(NamedTuple):
    """One matrix product, and what is added up of it.

    Attributes:
        plane: What is multiplied by rows of the weight.
        pieces: These rows, in order, and what the output gets.
    """

    plane: Plane
    pieces: tuple[Piece, ...]

    @property
    def runs(self) -> list[slice]:
        """The rows of the weight, neighbours in one slice."""
        runs: list[slice] = []
        for piece in self.pieces:
            start = runs.pop().start if runs and runs[-1].stop == piece.first else piece.first
            runs.append(slice(start, piece.end))
        return runs


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
        live = [(row, column) for row, column, _ in self.positions()]
        return tuple(slice(min(places), max(places) + 1) for places in zip(*live, strict=True))

    def box_pads(self) -> tuple[tuple[int, int], tuple[int, ...] | None]:
        """Return how the input is padded for a convolution with the box alone.

        Returns:
            Rows and columns on either side, and what comes before that: positions on the left, on the right, above and
            below, as `torch.nn.functional.pad` takes them, `None` if there are none. Negative ones are cut away.
        """
        sides = []
        for box, size, dilation, before, after in zip(self.box, self.kernel, self.dilation, self.pads[::2],
                                                      self.pads[1::2], strict=True):
            sides.append((before - dilation * box.start, after - dilation * (size - box.stop)))
        even = tuple(max(0, min(side)) for side in sides)
        uneven = tuple(pad - even[axis] for axis in (1, 0) for pad in sides[axis])
        return even, uneven if any(uneven) else None

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return rows and columns of the output for those of the input."""
        (above, below, left, right), (height, width) = self.pads, size
        padded = height + above + below, width + left + right
        return tuple((p - d * (k - 1) - 1) // s + 1 for p, k, s, d in
                     zip(padded, self.kernel, self.stride, self.dilation, strict=True))

    def positions(self) -> list[tuple[int, int, int]]:
        """Return row and column in the kernel, and the number of stripes, of each position that has some."""
        return [(*divmod(position, self.kernel[1]), count) for position, count in enumerate(self.counts) if count]

    def column_shifts(self) -> list[int]:
        """Return, for each kernel position, how many columns to the right of the output's the plane is read."""
        return [(column * self.dilation[1] - self.pads[2]) // self.stride[1]
                for _ in range(self.kernel[0]) for column in range(self.kernel[1])]

    def wraps(self, size: tuple[int, int]) -> bool:
        """Whether shifts to the side are offsets into flattened planes, for an input of this size.

        Then what would come from beyond the border comes from another row, and has to be zero. Otherwise a plane, which
        has more columns than the output, is cut to those that a kernel position reads.
        """
        return size[1] <= self.stride[1] * self.output_size(size)[1]


def steps(layout: StripeLayout, size: tuple[int, int], copies: int) -> list[Step]:
    """Return how the output is added up.

    Output and planes have the same number of columns, so that a shift in both directions is one offset. The products
    of a step fit into the memory that is left when input, output and copies are held, of twice the input and the
    output. Stripes that read nothing but padding are in no step.

    Args:
        layout: The convolution.
        size: Rows and columns of the input.
        copies: How many copies of a plane are held beside the input, if it is a plane itself.
    """
    by_plane: dict[Plane, list[Piece]] = {}
    for plane, piece in _reads(layout, size):
        by_plane.setdefault(plane, []).append(piece)
    result = []
    for plane, pieces in by_plane.items():
        room = left = _room(layout, size, plane, copies)
        chosen: list[Piece] = []
        for piece in pieces:
            first = piece.first
            while first < piece.end:
                count = min(left, piece.end - first)
                chosen.append(piece._replace(first=first, count=count))
                first, left = first + count, left - count
                if not left:
                    result.append(Step(plane, tuple(chosen)))
                    chosen, left = [], room
        if chosen:
            result.append(Step(plane, tuple(chosen)))
    return result


def _reads(layout: StripeLayout, size: tuple[int, int]) -> list[tuple[Plane, Piece]]:
    """Return what each kernel position reads, if it is more than padding."""
    target = layout.output_size(size)
    width = target[1]
    result, first = [], 0
    for a, b, count in layout.positions():
        first += count
        shift = a * layout.dilation[0] - layout.pads[0], b * layout.dilation[1] - layout.pads[2]
        (rows, down, top, bottom), (columns, right, left, stop) = (
            _window(*axis) for axis in zip(shift, layout.stride, size, target, strict=True))
        if top >= bottom or left >= stop:
            continue
        plane = Plane(rows, columns, (0, width - len(columns)))
        if not layout.wraps(size):
            plane, right = Plane(rows, columns[left + right:stop + right], (left, width - stop)), 0
        # Beyond the plane lies what only columns of other rows would read.
        offset = down * width + right
        low, high = max(top * width, -offset), min(bottom * width, len(rows) * width - offset)
        result.append((plane, Piece(first - count, count, low + offset, low, high - low)))
    return result


def _window(shift: int, stride: int, size: int, target: int) -> tuple[range, int, int, int]:
    """Return, along one axis, what a kernel position reads.

    Returns:
        The plane: every `stride`-th input; how far behind the output's place in it the place lies that is read; the
        first output that reads the plane, and the end of those that do.
    """
    offset, phase = divmod(shift, stride)
    plane = range(phase, size, stride)
    return plane, offset, max(0, -offset), min(target, len(plane) - offset)


def _room(layout: StripeLayout, size: tuple[int, int], plane: Plane, copies: int) -> int:
    """Return how many rows of products may be held at once, at least 1."""
    inputs, outputs = layout.channels
    height, width = layout.output_size(size)
    places = len(plane.rows) * width
    row = places
    if plane != Plane(range(size[0]), range(size[1]), (0, 0)):
        copies += 1
        row += inputs  # the weights of positions that are no neighbours are copied too
    free = inputs * size[0] * size[1] + outputs * height * width - copies * inputs * places
    return max(1, int(MEMORY_SHARE * free / row))


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
