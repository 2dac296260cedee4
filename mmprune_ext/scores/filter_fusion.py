r"""Filter fusion: how the filters of a convolution resemble each other, and what follows from it.

Source: M. Lin, R. Ji, B. Chen, F. Chao, J. Liu, W. Zeng, Y. Tian, Q. Tian, "Training Compact CNNs
for Image Classification using Dynamic-coded Filter Fusion" (https://arxiv.org/abs/2107.06916),
section 3. With the distance :math:`D_{jk} = \lVert W_j - W_k \rVert_2` of two filters and a
temperature :math:`T`, all rows of

.. math:: Q_{jk} = \exp(-T D_{jk}) \Big/ \sum_l \exp(-T D_{jl})

are distributions. A filter is important if its row is unlike the others, and what is kept of a
layer are the mixtures of its filters by the rows of the most important ones.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmprune_ext.errors import PruningError

EPSILON = 1e-7
# Below this share of the norms, a squared distance from the products of filters has lost digits.
NEAR = 1e-6
# Scores that agree to this relative precision are equal: what differs beyond it is rounding.
SAME = 1e-9
# Elements of a temporary: 8 MB in double precision.
CHUNK = 1 << 20


def fusion_temperature(step: float, total: float, start: float = 1.0,
                       end: float = 10000.0) -> float:
    r"""Return the temperature :math:`T` of training step ``step`` of ``total``.

    .. math:: T = \frac{A}{1 + e^{-s}} + T_s - \frac{A}{2}, \qquad
              A = \frac{2 (T_e - T_s)(1 + e^{-S})}{1 - e^{-S}}

    which is :math:`T_s + (T_e - T_s) \tanh(s/2) / \tanh(S/2)`: the form used here, in which nothing
    overflows. It rises from ``start`` at step 0 to ``end`` at step ``total``.

    Args:
        step: Epochs (or iterations) done, 0 to ``total``.
        total: Epochs (or iterations) of the whole training.
        start: Temperature at step 0.
        end: Temperature at step ``total``.

    Raises:
        PruningError: If ``total`` is not positive, or ``step`` is not within it.
    """
    if not total > 0 or not 0 <= step <= total:
        raise PruningError('fusion_temperature: step should lie in 0 to total and total be '
                           f'positive, but got step {step} of {total}')
    return start + (end - start) * math.tanh(step / 2) / math.tanh(total / 2)


def similarity(weight: Tensor, temperature: float) -> Tensor:
    """Return ``Q``: how each filter's similarity is spread over all filters of the layer.

    Args:
        weight: Weights of a convolution, ``(C, ...)``, any real type.
        temperature: ``T``, positive; the larger, the nearer to one-hot rows.

    Returns:
        ``(C, C)``, float64, on the device of ``weight``; rows are at least 0 and sum to 1.

    Raises:
        PruningError: If ``weight`` holds no filter, or a value that is not finite, or
            ``temperature`` is not a positive number.
    """
    return _similarity(weight, temperature)[0]


def fusion_importance(weight: Tensor, temperature: float) -> Tensor:
    r"""Return how unlike the others' each filter's similarity is.

    .. math:: s_j = \frac{1}{C} \sum_k \sum_c Q_{jc} \log \frac{Q_{jc}}{Q_{kc} + 10^{-7}}
                  = \sum_c Q_{jc} \Big(\log Q_{jc} - \frac{1}{C} \sum_k \log (Q_{kc} + 10^{-7})\Big)

    The right-hand form needs time and memory of order ``C^2``; the middle one, ``C^3``. A product
    ``0 log 0`` is 0.

    Args:
        weight: Weights of a convolution, ``(C, ...)``, any real type.
        temperature: ``T``, positive (:func:`fusion_temperature`).

    Returns:
        ``(C,)``, float64, finite, on the device of ``weight``; larger is more important.

    Raises:
        PruningError: As :func:`similarity`.
    """
    return _importance(*_similarity(weight, temperature))


def fusion_matrix(weight: Tensor, keep: int, temperature: float,
                  previous: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the mixtures that stay: the rows of ``Q`` of the most important filters.

    At high temperatures ``Q`` is one-hot and all filters are equally important. Of equally
    important ones those chosen before stay, then those of lower index, so that rounding decides
    nothing.

    Args:
        weight: Weights of a convolution, ``(C, ...)``, any real type.
        keep: Number of rows, 1 to ``C``.
        temperature: ``T``, positive (:func:`fusion_temperature`).
        previous: Filters chosen at the last update, bool ``(C,)``.

    Returns:
        ``P``, ``(keep, C)``, float64, in the order of the filters; and the filters that its rows
        belong to, bool ``(C,)``.

    Raises:
        PruningError: As :func:`similarity`, and if ``keep`` is out of range.
    """
    spread, logarithms = _similarity(weight, temperature)
    count = len(spread)
    if not 1 <= keep <= count:
        raise PruningError(f'fusion_matrix: keep should be 1 to {count}, the number of filters, '
                           f'but got {keep}')
    scores = _importance(spread, logarithms)
    ranks = (scores / (scores.abs().max().clamp(min=1e-300) * SAME)).round()
    order = torch.arange(count, device=weight.device)
    if previous is not None:
        order = torch.argsort(previous.int(), descending=True, stable=True)
    order = order[torch.argsort(ranks[order], descending=True, stable=True)]
    chosen = torch.zeros(count, dtype=torch.bool, device=weight.device)
    chosen[order[:keep]] = True
    return spread[chosen], chosen


def _similarity(weight: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return ``Q`` and ``log Q`` in double precision; where ``Q`` is 0, its logarithm is finite."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise PruningError(f'temperature should be a positive number, but got {temperature!r}')
    if weight.dim() < 1 or weight.shape[0] < 1:
        raise PruningError(f'a weight of shape {tuple(weight.shape)} holds no filter')
    filters = weight.detach().reshape(weight.shape[0], -1)
    if not bool(filters.isfinite().all()):
        raise PruningError(f'a weight of shape {tuple(weight.shape)} holds an infinite value or '
                           'NaN; did the training diverge?')
    logarithms = _distances(filters).mul_(-temperature)
    # The distance of a filter to itself is 0, so that each sum of exponentials is at least 1.
    spread = logarithms.exp()
    sums = spread.sum(1, keepdim=True)
    return spread.div_(sums), logarithms.sub_(sums.log())


def _importance(spread: Tensor, logarithms: Tensor) -> Tensor:
    """Return the scores, leaving ``log Q`` less its columns' means in ``logarithms``."""
    count = len(spread)
    # One logarithm of a product for 32 of its factors, which are at least 1e-7: no underflow.
    rows = math.ceil(count / 32)
    product = spread.new_ones(rows, count)
    for part in spread.split(rows):
        product[:len(part)].mul_(part + EPSILON)
    logarithms.sub_(product.log_().sum(0) / count)
    return torch.einsum('ij,ij->i', spread, logarithms)


def _distances(filters: Tensor) -> Tensor:
    """Return the Euclidean distances of all pairs of filters ``(C, d)``, float64.

    They come from the products of filters, which is what processors do fastest. For pairs much
    nearer to each other than to the mean of all, where that loses digits, they come from
    differences.
    """
    count = len(filters)
    distances = filters.new_zeros(count, count, dtype=torch.float64)
    for columns in filters.split(_share(4 * CHUNK, count), dim=1):
        columns = columns.double()
        columns = columns - columns.mean(0)
        distances.addmm_(columns, columns.T)
    squares = distances.diagonal().clone()
    distances.mul_(-2).add_(squares[:, None]).add_(squares)
    distances.fill_diagonal_(math.inf)
    step = _share(CHUNK, count)
    for start in range(0, count, step):
        rows = distances[start:start + step]
        near = (rows < NEAR * (squares[start:start + step, None] + squares)).nonzero()
        for pairs in near.split(_share(CHUNK, filters.shape[1])):
            first, second = pairs.unbind(1)
            difference = filters[start + first].double() - filters[second].double()
            rows[first, second] = torch.einsum('ij,ij->i', difference, difference)
    return distances.clamp_(min=0).sqrt_().fill_diagonal_(0)


def _share(budget: int, size: int) -> int:
    """Return how many rows (or columns) of ``size`` elements are worked on at a time."""
    return max(1, budget // max(1, size))
