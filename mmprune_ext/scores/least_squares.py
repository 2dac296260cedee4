"""Least squares from second moments: all of the data that is kept is one matrix."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

ENOUGH = 300  # samples for each input; with fewer, more is put on the weights that are there
BLOCKS = 4  # rows are multiplied in so many blocks, so that most of the lower triangle is left out


class Solution(NamedTuple):
    """The weights nearest to what is wanted.

    Attributes:
        weight: ``(groups, outputs, inputs)``.
        shift: ``(groups, outputs)``, zeros where none was asked for.
        before: Squared error of the weights that were there, summed over samples and outputs.
        after: That of these weights.
        size: Squares of the wanted outputs, about their mean if a shift was asked for: what errors are a share of.
    """

    weight: Tensor
    shift: Tensor
    before: float
    after: float
    size: float


class Moments:
    """Sums of ``z z^T`` over samples, ``z`` being inputs, wanted outputs and a one in a row.

    Args:
        groups: Layers of this form side by side: the groups of a convolution.
        inputs: Of each group.
        outputs: Of each group.
        device: Where the sums are kept.

    Attributes:
        sums: ``(groups, size, size)``, float64, only the upper triangle, ``size = inputs + outputs + 1``.
    """

    def __init__(self, groups: int, inputs: int, outputs: int, device: torch.device | str = 'cpu') -> None:
        self.inputs = inputs
        self.outputs = outputs
        size = inputs + outputs + 1
        self.sums = torch.zeros(groups, size, size, dtype=torch.float64, device=device)

    def add(self, samples: Tensor) -> None:
        """Add samples, ``(groups, n, size)``. Products are of the samples' precision, their sums are float64."""
        rows = -(-samples.shape[2] // BLOCKS)
        for first in range(0, samples.shape[2], rows):
            block = slice(first, first + rows)
            self.sums[:, block, first:] += samples[..., block].mT @ samples[..., first:]

    def gram(self) -> Tensor:
        """Return the whole matrix, ``(groups, size, size)``."""
        upper = self.sums.triu()
        return upper + upper.triu(1).mT

    def solve(self, kept: Tensor, bias: Tensor | None, ridge: float, shifts: bool) -> Solution:
        """Return ``argmin sum |W x + b - y|^2 + lambda |W - kept|^2`` over ``W``, and over ``b`` if it may shift.

        Args:
            kept: The weights that are there, ``(groups, outputs, inputs)``.
            bias: The bias that is there, ``(groups, outputs)``.
            ridge: ``lambda`` as a share of the mean of the Gram matrix' diagonal, of each group by itself, after the
                means are taken off where there is a shift. With fewer than 300 samples for each input it is as large as
                with 300: few samples move weights less.
            shifts: Whether ``b`` is free; else it is zero.
        """
        whole, kept = self.gram(), kept.double()
        x, y = slice(0, self.inputs), slice(self.inputs, self.inputs + self.outputs)
        gram, cross, power = whole[:, x, x], whole[:, y, x], whole[:, y, y].diagonal(dim1=1, dim2=2)
        sum_x, sum_y, count = whole[:, -1, x], whole[:, -1, y], whole[:, -1, -1:]
        before = _error(gram, cross, power, kept)
        if bias is not None:
            bias = bias.double()
            before += float((bias * (count * bias + 2 * ((kept @ sum_x[..., None])[..., 0] - sum_y))).sum())
        if shifts:
            count = count.clamp(min=1)
            gram = gram - sum_x[:, :, None] * (sum_x / count)[:, None]
            cross = cross - sum_y[:, :, None] * (sum_x / count)[:, None]
            power = power - sum_y.square() / count
        few = max(1.0, ENOUGH * self.inputs / max(float(whole[0, -1, -1]), 1.0))
        weight = kept + _ridge(gram, cross - kept @ gram, few * ridge)
        shift = (sum_y - (weight @ sum_x[..., None])[..., 0]) / count if shifts else torch.zeros_like(sum_y)
        return Solution(weight, shift, max(before, 0.0), max(_error(gram, cross, power, weight), 0.0),
                        max(float(power.sum()), 0.0))


def _ridge(gram: Tensor, cross: Tensor, ridge: float) -> Tensor:
    """Return ``cross (gram + lambda)^-1``, by eigenvalues where rounding has left the matrix singular."""
    scale = gram.diagonal(dim1=1, dim2=2).mean(1)
    # Inputs that are all zero say nothing: any diagonal leaves the weights as they are.
    diagonal = torch.where(scale > 0, ridge * scale, 1.0)[:, None, None] * torch.eye(
        gram.shape[1], dtype=gram.dtype, device=gram.device)
    factor, info = torch.linalg.cholesky_ex(gram + diagonal)
    if not bool(info.any()):
        return torch.cholesky_solve(cross.mT, factor).mT
    values, vectors = torch.linalg.eigh(gram + diagonal)
    floor = gram.shape[1] * torch.finfo(gram.dtype).eps * values[:, -1:]
    inverse = torch.where(values > floor, 1 / values, 0.0)
    return (cross @ vectors * inverse[:, None]) @ vectors.mT


def _error(gram: Tensor, cross: Tensor, power: Tensor, weight: Tensor) -> float:
    return float((weight * (weight @ gram - 2 * cross)).sum() + power.sum())
