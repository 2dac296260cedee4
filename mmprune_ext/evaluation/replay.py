"""Passes of several forms of a model over one batch, without computing again what is the same in all."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmprune_ext.draws import Draws
from mmprune_ext.units.labels import tensors_in

MEMORY = 2 * 1024 ** 3  # bytes of outputs that are held at most
_PLAIN = (bool, int, float, str, type(None), torch.Size, torch.dtype, torch.device)


@dataclass
class _Call:
    """One call of a module that came to its end before anything that differs had a part in it.

    Attributes:
        module: The module.
        output: What it gave.
        versions: How often each tensor of it had been written to by then.
        valid: Whether it still is what the module gave, and may be given again.
    """

    module: nn.Module
    output: Any
    versions: list[int]
    valid: bool = True

    def check(self) -> None:
        """Give up an output that was written to in place after the call."""
        if self.valid and [tensor._version for tensor in tensors_in(self.output)] != self.versions:
            self.output, self.valid = None, False


class Replay:
    """Record a pass of one form of a model, and let passes of other forms start from where they differ.

    Modules whose call ended before anything that differs was reached give the same output in every form. In a pass
    that is replayed these calls are not computed but answered from the record, the outermost of them alone. What is
    recorded is therefore exactly what the pass would compute; where that is not certain, it is computed:

    * a call that writes to its arguments, takes or gives other things than tensors and plain values in tuples, lists
      and dicts, or whose output is written to later, is run again in every pass;
    * a tensor that differs counts as reached when any operator reads it, also outside its own module;
    * nothing is recorded of a pass that draws random numbers;
    * a pass whose calls come in another order than those recorded is reported (:attr:`trusted`), and the caller has to
      run it whole.

    Args:
        model: The model; inside the block of :meth:`installed` its modules answer to this.
        memory: Bytes of outputs that are held at most; what comes later in a pass is computed again.

    Attributes:
        trusted: Whether the last pass is worth anything; ``False`` after one that went another way.
    """

    def __init__(self, model: nn.Module, memory: int = MEMORY) -> None:
        self.model = model
        self.memory = memory
        self.trusted = True
        self._calls: list[_Call] = []
        self._next = 0
        self._mode = ''
        self._differing: Collection[nn.Module] = ()

    @contextlib.contextmanager
    def installed(self) -> Iterator[Replay]:
        """Put this in front of every module's forward for a block."""
        modules = [module for module in self.model.modules()
                   if module is not self.model and not isinstance(module, torch.jit.ScriptModule)]
        before = {module: vars(module).get('forward') for module in modules}
        try:
            for module in modules:
                vars(module)['forward'] = self._in_front_of(module, module.forward)
            yield self
        finally:
            for module, forward in before.items():
                del vars(module)['forward']
                if forward is not None:
                    vars(module)['forward'] = forward
            self.forget()

    def forget(self) -> None:
        """Drop what was recorded."""
        self._calls = []

    def record(self, run: Callable[[], Any], modules: Collection[nn.Module], tensors: Iterable[Tensor]) -> Any:
        """Run a pass and keep what is the same in all forms.

        Args:
            run: Runs the model, in one of its forms.
            modules: The modules that differ between forms.
            tensors: The parameters and buffers of the present form that do.

        Returns:
            What ``run`` returns, whether or not anything could be recorded.
        """
        self.forget()
        self._differing, self._mode = modules, 'record'
        before = Draws.now()
        try:
            with _Watch({_storage(tensor) for tensor in tensors}, self._stop):
                output = run()
        finally:
            self._mode = ''
        if before != Draws.now():
            self.forget()
        self._check()
        return output

    def replay(self, run: Callable[[], Any]) -> Any:
        """Run a pass of another form on the same batch; its result counts if it is :attr:`trusted` afterwards."""
        self._mode, self._next, self.trusted = 'replay', 0, True
        self._recorded = {call.module for call in self._calls}
        try:
            output = run()
        finally:
            self._mode = ''
        self.trusted = self.trusted and self._next == len(self._calls)
        self._check()
        return output

    def _check(self) -> None:
        for call in self._calls:
            call.check()

    def _stop(self) -> None:
        if self._mode == 'record':
            self._mode = ''

    def _in_front_of(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def answer(*args: Any, **kwargs: Any) -> Any:
            if self._mode == 'record':
                return self._run_recorded(module, forward, args, kwargs)
            if self._mode == 'replay' and self._next < len(self._calls):
                return self._answer(module, forward, args, kwargs)
            return forward(*args, **kwargs)
        return answer

    def _run_recorded(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if module in self._differing:
            self._stop()
            return forward(*args, **kwargs)
        mark, before = len(self._calls), _state_of((args, kwargs))
        output = forward(*args, **kwargs)
        if self._mode != 'record' or before is None or before != _state_of((args, kwargs)):
            return output
        if _state_of(output) is None:
            return output
        # The calls inside this one are not asked again where this one is not run.
        self._calls[mark:] = [_Call(module, _copied(output), [tensor._version for tensor in tensors_in(output)])]
        if self._bytes() > self.memory:
            del self._calls[mark:]
            self._stop()
        return output

    def _bytes(self) -> int:
        sizes = {_storage(tensor): tensor.untyped_storage().nbytes()
                 for call in self._calls for tensor in tensors_in(call.output)}
        return sum(sizes.values())

    def _answer(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        call = self._calls[self._next]
        if call.module is not module:
            if module in self._recorded:
                self.trusted = False
            return forward(*args, **kwargs)
        self._next += 1
        return _copied(call.output) if call.valid else forward(*args, **kwargs)


class _Watch(TorchDispatchMode):
    """Notice the first operator that reads one of some tensors, or a view of it."""

    def __init__(self, storages: set[int], notice: Callable[[], None]) -> None:
        super().__init__()
        self.storages = storages
        self.notice = notice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at the arguments of an operator and run it."""
        kwargs = kwargs or {}
        if self.storages and any(_storage(tensor) in self.storages for tensor in tensors_in((args, kwargs))):
            self.storages = set()
            self.notice()
        return func(*args, **kwargs)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _state_of(value: Any) -> list[Any] | None:
    """Return what changes when nested values are written to; ``None`` if there is anything that this cannot tell of."""
    if isinstance(value, Tensor):
        return None if value.is_inference() else [id(value), value._version]
    if isinstance(value, _PLAIN):
        return [value]
    if type(value) not in (tuple, list, dict):
        return None
    parts = [_state_of(item) for item in (value.values() if isinstance(value, dict) else value)]
    keys = list(value) if isinstance(value, dict) else []
    return None if None in parts else [type(value), *keys, *parts]


def _copied(value: Any) -> Any:
    """Return nested values in new containers; the tensors are the same."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return type(value)(map(_copied, value)) if type(value) in (tuple, list) else value
