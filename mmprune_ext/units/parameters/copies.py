"""Copies of a model, whatever its modules keep beside their parameters."""

from __future__ import annotations

import copy
from collections import deque
from typing import Any

from torch import Tensor, nn


def copied(model: nn.Module) -> nn.Module:
    """Return a deep copy of a model, of activations too that its modules have stored in a pass with gradients."""
    try:
        return copy.deepcopy(model)
    except RuntimeError:
        memo: dict[int, Any] = {}
        for module in model.modules():
            for value in _tensors(vars(module)):
                if not value.is_leaf:
                    memo[id(value)] = value.detach().clone()
        return copy.deepcopy(model, memo)


def not_copied(model: nn.Module) -> str:
    """Return which attribute keeps a model from being copied, and the line that mends it; empty if none does."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name in ('_parameters', '_buffers', '_modules'):
                continue
            try:
                copy.deepcopy(value, {id(tensor): tensor for tensor in _tensors(value)})
            except Exception as error:  # copying runs code of the value's own
                place = f"model.get_submodule('{path}')" if path else 'model'
                return (f'"{name}" of {path or type(module).__name__} is a {type(value).__name__} '
                        f'({type(error).__name__}: {error}); {place}.{name} = None before helps')
    return ''


def _tensors(held: Any) -> list[Tensor]:
    """Return the tensors that a value holds, in containers and in objects, but not in modules of its own."""
    found, values, seen = [], [held], set()
    while values:
        value = values.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, dict):
            values.extend(value.values())
        elif isinstance(value, (list, tuple, set, frozenset, deque)):
            values.extend(value)
        elif not isinstance(value, (type, nn.Module)):
            values.extend(getattr(value, '__dict__', {}).values())
            slots = [name for kind in type(value).__mro__ for name in getattr(kind, '__slots__', ())]
            values.extend(getattr(value, name, None) for name in slots)
    return found
