"""Group Fisher importance (Liu et al., "Group Fisher Pruning for Practical Network Compression", ICML 2021)."""

from __future__ import annotations

import torch
from torch import Tensor


def gate_gradient(values: Tensor, gradients: Tensor, dim: int, samples: bool = True) -> Tensor:
    """Return the derivative of a loss by gates of 1 that multiply the channels of a tensor, for each sample.

    Source: arXiv 2108.00708: the sum over positions of gradient times activation.

    Args:
        values: The tensor, ``(N, ...)`` with ``C`` channels in dimension ``dim``.
        gradients: The loss's gradient by it, of the same shape.
        dim: The dimension of the channels.
        samples: Whether the first dimension is that of samples; else the tensor is of one sample.

    Returns:
        ``(N, C)``, float64; ``(1, C)`` where the tensor is of one sample.
    """
    dim %= values.dim()
    product = values * gradients
    first = 1 if samples else 0
    positions = [place for place in range(first, values.dim()) if place != dim]
    found = product.sum(positions, dtype=torch.float64) if positions else product.double()
    return found if samples else found.unsqueeze(0)
