"""Structured optimal brain surgeon: which channels a layer can make up for best, all its other weights following."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmprune_ext.errors import PruningError

ROUNDS = 128  # channels go one at a time up to so many, larger layers lose some in each round


@dataclass(frozen=True)
class Reader:
    """A layer, or a group of one, that reads the channels.

    Attributes:
        gram: ``sum x x^T`` over samples of its inputs, ``(K, K)``, float64.
        weight: ``(O, K)``.
        columns: The inputs that each channel is, ``(C, b)``: of a convolution all places of the kernel.
    """

    gram: Tensor
    weight: Tensor
    columns: Tensor


def brain_surgeon(readers: Sequence[Reader], ridge: float = 1e-3, rounds: int = ROUNDS) -> Tensor:
    """Return what has been lost when each channel goes, as channels go one after the other, the cheapest first.

    Removing the inputs ``S`` of a layer, and giving all others the weights that keep its outputs nearest to what
    they were, raises the squared error by ``sum over outputs of w_S^T ((H^-1)_SS)^-1 w_S``. Each time the channel
    goes for which that is least, summed over the readers; then weights and ``H^-1`` are those of the channels left.

    Source: Hassibi and Stork, "Second Order Derivatives for Network Pruning: Optimal Brain Surgeon", 1992, with
    blocks of inputs for single ones.

    Args:
        readers: All layers that read the channels.
        ridge: What is added to the diagonal of each Gram matrix, as a share of its mean: it holds weights to what
            they were.
        rounds: In how many rounds at most channels go.

    Returns:
        ``(C,)``, float64: the error when the channel is gone with all those before it, as a share of the squares of
        the readers' outputs. It grows along the order in which they go, so that any number of channels may stay.

    Raises:
        PruningError: If there is no reader, or a value is not finite.
    """
    if not readers:
        raise PruningError('brain_surgeon: no layer reads the channels')
    states = [_State(reader, ridge) for reader in readers]
    count = len(readers[0].columns)
    left = torch.arange(count)
    scores = torch.zeros(count, dtype=torch.float64)
    size = sum(state.size for state in states)
    if not math.isfinite(size):
        raise PruningError('brain_surgeon: weights or Gram matrices hold NaN or infinity')
    # A reader whose inputs or weights are all zero loses nothing, whatever goes.
    states = [state for state in states if state.size]
    together, lost = -(-count // rounds), 0.0
    while len(left):
        errors = sum((state.errors(left) for state in states), torch.zeros(len(left), dtype=torch.float64))
        cheapest = errors.argsort(stable=True)[:together]
        for place in cheapest.tolist():
            lost += max(float(errors[place]), 0.0)
            scores[left[place]] = lost
        gone = left[cheapest]
        left = left[~torch.isin(left, gone)]
        if len(left):
            for state in states:
                state.remove(gone)
    return scores / max(size, torch.finfo(torch.float64).tiny)


class _State:
    """What is left of a reader."""

    def __init__(self, reader: Reader, ridge: float) -> None:
        gram, self._weight = reader.gram.double(), reader.weight.double().clone()
        self._columns = reader.columns.to(gram.device)
        self.size = max(float((self._weight @ gram * self._weight).sum()), 0.0)
        self._inverse = _inverse(gram, ridge)

    def errors(self, channels: Tensor) -> Tensor:
        """Return how much the error rises if one channel goes, ``(len(channels),)``."""
        columns = self._columns[channels.to(self._columns.device)]
        blocks = self._inverse[columns[:, :, None], columns[:, None, :]]
        weights = self._weight[:, columns].permute(1, 2, 0)
        return (weights * torch.linalg.solve(blocks, weights)).sum((1, 2)).cpu()

    def remove(self, channels: Tensor) -> None:
        """Remove channels; all other weights follow."""
        columns = self._columns[channels.to(self._columns.device)].flatten()
        rows = self._inverse[columns]
        change = torch.linalg.solve(rows[:, columns], rows)
        self._weight -= self._weight[:, columns] @ change
        self._inverse -= rows.mT @ change


def _inverse(gram: Tensor, ridge: float) -> Tensor:
    """Return the inverse of a Gram matrix with a ridge, by eigenvalues where rounding has made some negative."""
    scale = gram.diagonal().mean()
    floor = torch.where(scale > 0, ridge * scale, 1.0)
    factor, info = torch.linalg.cholesky_ex(gram + floor * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
    if not bool(info.any()) or not bool(gram.isfinite().all()):
        return torch.cholesky_inverse(factor)
    # Of inputs that hardly vary, nothing but rounding is left once their means are taken off.
    values, vectors = torch.linalg.eigh(gram)
    values = values.clamp(min=0) + torch.where(values.max() > 0, ridge * values.clamp(min=0).mean(), 1.0)
    return vectors / values @ vectors.mT
