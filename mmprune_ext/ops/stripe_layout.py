"""Where the stripes of a convolution read and write: sizes alone, no weights."""
from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

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

    rows: slice
    columns: slice
    pads: tuple[int, int]


class Piece(NamedTuple):
    """Stripes of one kernel position, and what of their products, of a flattened plane, the output gets.

    Attributes:
        count: Stripes.
        source: First place of the plane.
        target: First place of the output.
        length: Places.
        wrapped: First and number of the columns of the plane that no output in the same row reads. What outputs in the
            row before or after it would read of them has to be zero.
    """

    count: int
    source: int
    target: int
    length: int
    wrapped: tuple[int, int]


class Step(NamedTuple):
    """One matrix product, and what is added up of it.

    Attributes:
        rows: Of the weight.
        plane: What is multiplied by them.
        pieces: What the output gets, in the order of the rows.
    """

    rows: slice
    plane: Plane
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


@functools.lru_cache(maxsize=1024)
def steps(layout: StripeLayout, size: tuple[int, int], copies: int) -> tuple[Step, ...]:
    """Return how the output is added up.

    Output and planes have the same number of columns, so that a shift in both directions is one offset. The products
    of a step fit into the memory that is left when input, output and copies are held, of twice the input and the
    output. Stripes that read nothing but padding are in no step.

    Args:
        layout: The convolution.
        size: Rows and columns of the input.
        copies: How many copies of a plane are held beside the input, if it is a plane itself.
    """
    reads = _reads(layout, size)
    # Positions that read the same plane need not be neighbours.
    reads.sort(key=lambda read: (read.plane.rows.start, read.plane.columns.start, read.plane.pads))
    result: list[Step] = []
    for read in reads:
        room = _room(layout, size, read.plane, copies)
        first, piece = read.rows.start, read.pieces[0]
        while first < read.rows.stop:
            step = result[-1] if result else None
            if not (step and step.plane == read.plane and step.rows.stop == first < step.rows.start + room):
                step = Step(slice(first, first), read.plane, ())
                result.append(step)
            stop = min(read.rows.stop, step.rows.start + room)
            result[-1] = Step(slice(step.rows.start, stop), read.plane,
                              (*step.pieces, piece._replace(count=stop - first)))
            first = stop
    return tuple(result)


def _reads(layout: StripeLayout, size: tuple[int, int]) -> list[Step]:
    """Return a step for each kernel position that reads more than padding."""
    target = layout.output_size(size)
    width = target[1]
    result, row = [], 0
    for a, b, count in layout.positions():
        weight_rows, row = slice(row, row + count), row + count
        shift = a * layout.dilation[0] - layout.pads[0], b * layout.dilation[1] - layout.pads[2]
        (rows, down, top, bottom), (columns, right, left, stop) = (
            _window(*axis) for axis in zip(shift, layout.stride, size, target, strict=True))
        if top >= bottom or left >= stop:
            continue
        plane = Plane(rows, columns, (0, width - _length(columns)))
        if size[1] > layout.stride[1] * width:  # too wide a plane: one for each shift of columns
            first = columns.start + (left + right) * columns.step
            columns = slice(first, first + (stop - left - 1) * columns.step + 1, columns.step)
            plane, right = Plane(rows, columns, (left, width - stop)), 0
        # Beyond the plane lies what only columns of other rows would read.
        offset = down * width + right
        start, end = max(top * width, -offset), min(bottom * width, _length(rows) * width - offset)
        wrapped = (width + right, -right) if right < 0 else (0, right)
        result.append(Step(weight_rows, plane, (Piece(count, start + offset, start, end - start, wrapped),)))
    return result


def _window(shift: int, stride: int, size: int, target: int) -> tuple[slice, int, int, int]:
    """Return, along one axis, what a kernel position reads.

    Returns:
        The plane: every `stride`-th input; how far behind the output's place in it the place lies that is read; the
        first output that reads the plane, and the end of those that do.
    """
    offset, phase = divmod(shift, stride)
    plane = slice(phase, size, stride)
    return plane, offset, max(0, -offset), min(target, _length(plane) - offset)


def _length(places: slice) -> int:
    return len(range(places.start, places.stop, places.step))


def _room(layout: StripeLayout, size: tuple[int, int], plane: Plane, copies: int) -> int:
    """Return how many rows of products may be held at once, at least 1."""
    inputs, outputs = layout.channels
    height, width = layout.output_size(size)
    places = _length(plane.rows) * width
    if (_length(plane.rows), _length(plane.columns), *plane.pads) != (*size, 0, 0):
        copies += 1
    free = inputs * size[0] * size[1] + outputs * height * width - copies * inputs * places
    return max(1, int(MEMORY_SHARE * free / places))


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
