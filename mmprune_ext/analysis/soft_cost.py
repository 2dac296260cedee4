"""What a model would cost for numbers of channels that need not be whole: a function to train with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmprune_ext.analysis.cost_model import CostModel
from mmprune_ext.errors import PruningError

_Coefficients = tuple[float, Tensor, Tensor, Tensor, Tensor, Tensor]


class SoftCost:
    """One cost of a model as a differentiable function of how many channels of each unit stay.

    The ``V`` of ChipNet's budget constraint (Tiwari et al., ICLR 2021, arXiv 2102.07156), for any traced
    model. It is the sum of :class:`mmprune_ext.analysis.cost_model.CostTerms`, taken at
    real numbers of channels: a product of input and output widths for each layer, and a term for each
    channel. For whole numbers in float64 it is exact, the integers of :class:`CostModel`.

    Numbers in half precision are computed with in float32, also under automatic mixed precision. The
    coefficients are kept as integers, and cast and moved once for each type and device.

    Args:
        cost: The cost model of the dense model.
        kind: ``'macs'``, ``'params'``, ``'channels'`` (of the prunable units) or ``'volume'``.

    Attributes:
        kind: Which cost.
        names: Names of the units, in the order of the numbers of channels.
        dense: The cost of the dense model, of which :meth:`__call__` returns the share.

    Raises:
        PruningError: For an unknown kind, a ``volume`` that the cost model does not know, or a dense
            model without this cost.
    """

    def __init__(self, cost: CostModel, kind: str) -> None:
        self._terms = cost.terms(kind)
        self.kind, self.names, self.dense = kind, list(cost.names), self._terms.dense
        if self.dense == 0:
            raise PruningError(f'soft cost: the dense model (or its part) has no {kind}, of which no share can be '
                               'taken; choose another budget or scope')
        self._cast: dict[tuple[torch.device, torch.dtype], _Coefficients] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave what was cast for a device out of copies and files."""
        return {**self.__dict__, '_cast': {}}

    def __call__(self, counts: Tensor) -> Tensor:
        """Return the share of the dense cost that remains.

        Args:
            counts: How many channels of each unit stay, ``(U,)``, in the order of :attr:`names`.

        Returns:
            A scalar, 1 where all channels stay; float64 for float64, else float32.

        Raises:
            PruningError: If the numbers are not floating-point, or not one a unit.
        """
        return self.total(counts) / self.dense

    def total(self, counts: Tensor) -> Tensor:
        """Return the cost itself, in channels, parameters, multiply-accumulates or values; see :meth:`__call__`."""
        if counts.shape != (len(self.names),) or not counts.is_floating_point():
            raise PruningError(f'soft cost: counts should be a floating-point tensor ({len(self.names)},), one number '
                               f'a channel unit, but got {counts.dtype} {tuple(counts.shape)}')
        counts = counts.to(torch.promote_types(counts.dtype, torch.float32))
        constant, linear, weights, groups, fixed, use = self._coefficients(counts.device, counts.dtype)
        # Sums of products, not matrix products: those lose digits under autocast and TF32.
        ins, outs = (fixed + (use * counts).sum(-1)).unbind()
        return constant + (linear * counts).sum() + (weights * (ins / groups) * outs).sum()

    def _coefficients(self, device: torch.device, dtype: torch.dtype) -> _Coefficients:
        key = (device, dtype)
        if key not in self._cast:
            terms = self._terms
            arrays = (terms.linear, terms.weights, terms.groups, np.stack([terms.in_fixed, terms.out_fixed]),
                      np.stack([terms.in_use, terms.out_use]))
            # Tensors that are first made during inference could not be trained with later.
            with torch.inference_mode(False):
                self._cast[key] = (float(terms.constant),
                                   *(torch.from_numpy(array).to(device, dtype) for array in arrays))
        return self._cast[key]
