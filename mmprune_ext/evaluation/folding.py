"""Fold batch normalisation into the convolutions before it, where the model stays the same function."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from mmcv.cnn.utils import fuse_conv_bn
from torch import Tensor, nn

from mmprune_ext.repair.batch_norm import batch_norms
from mmprune_ext.units.labels import tensors_in

# Of the largest output: float32 rounding, through a hundred layers.
_ROUNDING = 1e-3


def folded(model: nn.Module, batch: Any) -> nn.Module | None:
    """Return a copy of a model in eval mode whose batch normalisation is part of its convolutions.

    mmcv goes by the order in which modules are defined, which need not be that in which they run: whether the copy
    is the same function is seen on a batch.

    Args:
        model: The model.
        batch: A batch as its dataloader gives it, which may be changed.

    Returns:
        The copy, or ``None`` where nothing can be folded or the outputs are not the same to float32 rounding.
    """
    other = fuse_conv_bn(copy.deepcopy(model))
    if len(batch_norms(other)) == len(batch_norms(model)):
        return None
    with torch.no_grad():
        first, second = (tensors_in(_outputs(each, copy.deepcopy(batch))) for each in (model, other))
    if not first or len(first) != len(second):
        return None
    same = all(one.shape == two.shape and _near(one, two) for one, two in zip(first, second))
    return other if same else None


def _outputs(model: nn.Module, batch: Any) -> Any:
    data = model.data_preprocessor(batch, False)
    return model(**data, mode='tensor') if isinstance(data, Mapping) else model(*data, mode='tensor')


def _near(one: Tensor, two: Tensor) -> bool:
    if not one.is_floating_point():
        return torch.equal(one, two)
    return bool((one - two).abs().max() <= _ROUNDING * one.abs().max()) if one.numel() else True
