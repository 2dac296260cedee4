"""Which weights of a model were loaded, and which are still what an initialisation drew."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn

from mmprune_ext.units import UnitSet

_FOR_A_RUN: ContextVar[bool] = ContextVar('for_a_run', default=False)


@contextlib.contextmanager
def built_for_a_run() -> Iterator[None]:
    """Have models that are built in this block refuse random weights before they score anything."""
    token = _FOR_A_RUN.set(True)
    try:
        yield
    finally:
        _FOR_A_RUN.reset(token)


def is_for_a_run() -> bool:
    """Whether a model that is built now is going to be trained by this project's tools."""
    return _FOR_A_RUN.get()


@contextlib.contextmanager
def watched_loading() -> Iterator[set[Tensor]]:
    """Yield a set that fills with the parameters and buffers that are loaded in this block, by whoever loads them.

    ``load_state_dict``, mmengine's loading and what libraries do in their own ``init_weights`` all end in the same
    method of a module.
    """
    original, loaded = nn.Module._load_from_state_dict, set()

    def watched(module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *further: Any, **named: Any) -> None:
        original(module, state_dict, prefix, *further, **named)
        for name, value in (*module._parameters.items(), *module._buffers.items()):
            given = state_dict.get(prefix + name)
            if value is not None and isinstance(given, Tensor) and given.shape == value.shape:
                loaded.add(value)

    nn.Module._load_from_state_dict = watched
    try:
        yield loaded
    finally:
        nn.Module._load_from_state_dict = original


def tensor_names(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a model by name, but for the counters of batch normalisation."""
    modules = model.named_modules(remove_duplicate=False)
    return {f'{path}.{name}'.removeprefix('.'): value for path, module in modules
            for name, value in (*module._parameters.items(), *module._buffers.items())
            if value is not None and name != 'num_batches_tracked' and name not in module._non_persistent_buffers_set}


def share_text(model: nn.Module, loaded: Collection[str], source: str) -> str:
    """Return how many tensors of a model were loaded, and the first of the others, in words."""
    names = list(tensor_names(model))
    text = f'{sum(name in loaded for name in names)} of {len(names)} tensors of the dense model were loaded, {source}'
    left = [name for name in names if name not in loaded]
    return f'{text}; not {few(left)}' if left else text


def not_loaded(units: UnitSet, model: nn.Module, loaded: Collection[str], method: str) -> str | None:
    """Return what is wrong where layers whose channels are going to be chosen have weights that nothing loaded."""
    names = list(tensor_names(model))
    layers = dict.fromkeys(member.module for unit in units.prunable.values() for member in unit.producers)
    left = []
    for path in layers:
        own = [name for name in names if name == path or name.startswith(f'{path}.')]
        if own and not any(name in loaded for name in own):
            left.append(path)
    return None if not left else (
        f'{method}: {len(left)} of the {len(layers)} layers to prune have random weights, for init_cfg loads others '
        f'alone: {few(left)}; set model.checkpoint to weights of the whole dense model, or let the mutator prune what '
        'was loaded (mutator.scope, exclude), or say from_scratch=True in the model section')


def few(names: Sequence[str]) -> str:
    """Return the first names of many."""
    return ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')
