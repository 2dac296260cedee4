"""What tells models apart: by the shapes of their parameters, or by their values."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def fingerprint(model: nn.Module, outputs: Mapping[str, int | None] | None = None) -> str:
    """Return a fingerprint of a model's structure: parameter and buffer names with their shapes.

    Args:
        model: The model.
        outputs: By path of a layer, how many outputs it has in the model that the fingerprint is of.
    """
    def shape(name: str, value: Any) -> tuple[int, ...]:
        first = (outputs or {}).get(name.rpartition('.')[0])
        return tuple(value.shape) if first is None or not value.shape else (first, *value.shape[1:])
    text = '\n'.join(f'{name} {shape(name, value)}' for name, value in
                     sorted(model.state_dict(keep_vars=True).items())
                     if hasattr(value, 'shape'))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def weights_digest(model: nn.Module) -> str:
    """Return a digest of a model's weights and buffers, with their names."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        if isinstance(value, Tensor):
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
