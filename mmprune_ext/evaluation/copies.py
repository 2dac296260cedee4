"""Many copies of one value, faster than ``copy.deepcopy`` makes each."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

from torch import Tensor


class Copies:
    """Copies of a batch: the tensors are cloned, the rest is pickled once and unpickled for each copy.

    Args:
        value: The value, which is not changed afterwards. If it holds what pickle cannot tell, or tensors that
            share memory or belong to a graph, copies are made by ``copy.deepcopy``.
    """

    def __init__(self, value: Any) -> None:
        self._value = value
        self._tensors: list[Tensor] = []
        buffer = io.BytesIO()
        try:
            _Pickler(buffer, self._tensors).dump(value)
        except Exception:  # objects say in any way that they cannot be pickled
            self._pickled = None
            return
        storages = {tensor.untyped_storage().data_ptr() for tensor in self._tensors if tensor.numel()}
        apart = len(storages) == sum(tensor.numel() > 0 for tensor in self._tensors)
        self._pickled = buffer.getvalue() if apart else None

    def new(self) -> Any:
        """Return a copy that may be changed."""
        if self._pickled is None:
            return copy.deepcopy(self._value)
        return _Unpickler(io.BytesIO(self._pickled), self._tensors).load()


class _Pickler(pickle.Pickler):
    """Leave plain tensors out, each once."""

    def __init__(self, file: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.tensors = tensors
        self._places: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> int | None:
        """Return the number of a tensor."""
        if type(obj) is not Tensor:
            return None
        if obj.requires_grad:
            raise pickle.PicklingError('it belongs to a graph')
        if id(obj) not in self._places:
            self._places[id(obj)] = len(self.tensors)
            self.tensors.append(obj)
        return self._places[id(obj)]


class _Unpickler(pickle.Unpickler):
    """Put clones in the places of the tensors that were left out."""

    def __init__(self, file: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(file)
        self.tensors = tensors
        self._clones: dict[int, Tensor] = {}

    def persistent_load(self, pid: int) -> Tensor:
        """Return the clone of a tensor."""
        if pid not in self._clones:
            self._clones[pid] = self.tensors[pid].clone()
        return self._clones[pid]
