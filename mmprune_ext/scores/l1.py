"""The L1 norm of filters."""

from __future__ import annotations

from torch import Tensor

from mmprune_ext.errors import PruningError


def l1_norm(weight: Tensor, dim: int = 0) -> Tensor:
    r"""Return the L1 norm of the weights of each output channel.

    .. math:: s_j = \sum_{i} \lVert \mathcal{F}_{i,j} \rVert_1 = \sum_{i,u,v} |W_{j,i,u,v}|

    Source: H. Li, A. Kadav, I. Durdanovic, H. Samet, H. P. Graf, "Pruning Filters for Efficient
    ConvNets", ICLR 2017, section 3.1 (https://arxiv.org/abs/1608.08710).

    Args:
        weight: Weights of a layer: ``(C, C_in, kH, kW)`` of a convolution, ``(C, C_in)`` of a
            linear layer, ``(C_in, C, kH, kW)`` of a transposed convolution; any real type.
        dim: Dimension of the output channels: 0, or 1 for a transposed convolution.

    Returns:
        ``(C,)``, float64, at least 0, on the device of ``weight``; larger is more important. Sums
        are taken in double precision, so that they do not depend on the type of the weights or the
        order of addition in any way that changes a ranking.

    Raises:
        PruningError: If ``weight`` has no dimension ``dim``, or holds an infinite value or NaN.
    """
    if not -weight.dim() <= dim < weight.dim():
        raise PruningError(f'l1_norm: weight of shape {tuple(weight.shape)} has no dimension {dim}')
    rows = weight.detach().double().abs().movedim(dim, 0)
    scores = rows.reshape(rows.shape[0], -1).sum(1) if rows.numel() else rows.new_zeros(
        rows.shape[0])
    if not bool(scores.isfinite().all()):
        bad = int((~scores.isfinite()).nonzero()[0])
        raise PruningError(f'l1_norm: output channel {bad} of a weight of shape '
                           f'{tuple(weight.shape)} holds an infinite value or NaN; check the '
                           'checkpoint')
    return scores
