"""Several forms of one model in one memory: what differs is exchanged, all else is shared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_STORES = ('_parameters', '_buffers')
_PLAIN = (bool, int, float, str, tuple, type(None))
_MISSING = object()
_Place = tuple[nn.Module, str, str]  # a module, where it keeps a value, and the value's name


@dataclass(frozen=True)
class Form:
    """What one form of a model has in the place of the model's own.

    Attributes:
        values: By place, the value of this form.
        own: By place, what the model itself has there.
    """

    values: dict[_Place, Any]
    own: dict[_Place, Any]

    @property
    def modules(self) -> set[nn.Module]:
        """The modules that have something of their own in this form."""
        return {module for module, _, _ in self.values}

    @property
    def tensors(self) -> list[Tensor]:
        """The parameters and buffers that only this form has."""
        return [value for value in self.values.values() if isinstance(value, Tensor)]


class Forms:
    """Make forms of a model, such as slimmed ones, and let it take one at a time.

    Nothing stands between the model and its user: it stays the same object with the same modules, whose parameters,
    buffers and sizes are exchanged.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._modules = list(model.modules())
        self._taken: Form | None = None

    def make(self, change: Callable[[nn.Module], Any]) -> Form:
        """Return the form that a change gives the model; the model itself is as it was before.

        Args:
            change: Changes the model by putting other parameters, buffers or attributes in the place of its own. What
                it writes into those that are there changes all forms.
        """
        self.take(None)
        own = _contents(self._modules)
        try:
            change(self.model)
        finally:
            changed = _contents(self._modules)
            places = [place for place in dict.fromkeys([*own, *changed])
                      if own.get(place, _MISSING) is not changed.get(place, _MISSING)]
            _put({place: own.get(place, _MISSING) for place in places})
        differing = {place: changed.get(place, _MISSING) for place in places
                     if not _same(own.get(place, _MISSING), changed.get(place, _MISSING))}
        return Form(differing, {place: own.get(place, _MISSING) for place in differing})

    def take(self, form: Form | None) -> None:
        """Give the model a form, or what is its own."""
        if self._taken is not None:
            _put(self._taken.own)
        if form is not None:
            _put(form.values)
        self._taken = form


def _contents(modules: list[nn.Module]) -> dict[_Place, Any]:
    """Return all that modules hold themselves, by place."""
    found: dict[_Place, Any] = {}
    for module in modules:
        own = vars(module)
        for store in _STORES:
            found.update({(module, store, name): value for name, value in own[store].items()})
        found.update({(module, '', name): value for name, value in own.items() if name not in (*_STORES, '_modules')})
    return found


def _put(values: dict[_Place, Any]) -> None:
    for (module, store, name), value in values.items():
        held = vars(module)[store] if store else vars(module)
        if value is _MISSING:
            held.pop(name, None)
        else:
            held[name] = value


def _same(first: Any, second: Any) -> bool:
    if first is second:
        return True
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.shape == second.shape and first.dtype == second.dtype and torch.equal(first, second)
    return type(first) is type(second) and isinstance(first, _PLAIN) and first == second
