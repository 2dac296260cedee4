"""A digest of all that a model and its demo inputs hold, but for the values of its weights."""

from __future__ import annotations

import enum
import functools
import hashlib
import inspect
import logging
import sys
import types
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes, type(...), range, torch.dtype, torch.device,
                    torch.layout, torch.memory_format})
_PLAIN_KINDS = (np.dtype, np.generic, PurePath)
_BUILTIN = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)
# What a norm layer has seen; tracing takes it anew.
_STATISTICS = frozenset({'running_mean', 'running_var', 'num_batches_tracked'})
# How weights were set, and what happens at saving, loading and in a backward pass.
_WITHOUT_PART = frozenset({
    'init_cfg', '_is_init', '_params_init_info', '_backward_hooks', '_backward_pre_hooks', '_is_full_backward_hook',
    '_state_dict_hooks', '_state_dict_pre_hooks', '_load_state_dict_pre_hooks', '_load_state_dict_post_hooks'})
# Their keys are numbers that count all hooks of a process.
_HOOKS = frozenset({'_forward_hooks', '_forward_pre_hooks', '_forward_hooks_with_kwargs',
                    '_forward_hooks_always_called', '_forward_pre_hooks_with_kwargs'})
# What an algorithm that is mixed into a model replaces of it, and no pass runs.
_OF_STATES = frozenset({'_save_to_state_dict', '_load_from_state_dict', 'init_weights'})
_MOST = 1_000_000


class UnknownPart(Exception):
    """Something of which no digest can be taken that tells it from all others."""


class Digest:
    """A digest of values, equal for equal values in every process.

    What is held is followed: attributes of modules and of other objects, tensors by their values, functions by their
    code and what they close over, classes by their code as it is now. Parameters count by shape, type and whether they
    are trained, and one that several modules share is told from several; so do the statistics of norm layers.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._seen: dict[int, int] = {}
        self._kept: list[Any] = []  # an id is given anew when an object has gone
        self._count = 0

    def hexdigest(self) -> str:
        """Return it as text."""
        return self._hash.hexdigest()

    def add(self, value: Any) -> None:
        """Add a value.

        Raises:
            UnknownPart: If it holds something that cannot be followed: what a class of a notebook or of a function does
                depends on more than its code, a generator or a lock has no state that can be read.
        """
        self._count += 1
        if self._count > _MOST:
            raise UnknownPart('too many parts')
        if isinstance(value, enum.Enum):
            self._write('enum', _name_of(type(value)), value.name)
        elif _is_plain(value):
            self._write(type(value).__name__, repr(value))
        elif isinstance(value, (logging.Logger, types.ModuleType)):
            self._write(type(value).__name__, getattr(value, '__name__', '') or value.name)
        elif id(value) in self._seen:
            self._write('again', str(self._seen[id(value)]))
        else:
            self._seen[id(value)] = len(self._seen)
            self._kept.append(value)
            self._follow(value)
            if type(value) is tuple:
                del self._seen[id(value)]  # whether equal ones are one is up to the interpreter

    def _write(self, *texts: str) -> None:
        for text in texts:
            data = text.encode()
            self._hash.update(b'%d:' % len(data) + data)

    def _follow(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, np.ndarray):
            if value.dtype.hasobject:
                raise UnknownPart('an array of objects')
            self._write('array', value.dtype.str, str(value.shape))
            self._hash.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, (list, tuple)):
            self._write(_name_of(type(value)), str(len(value)))
            self._all(value)
        elif isinstance(value, (set, frozenset)):
            self._write(type(value).__name__, *sorted(_digest_of(item) for item in value))
        elif isinstance(value, Mapping):
            self._write(_name_of(type(value)), str(len(value)))
            for key, item in value.items():
                self._all((key, item))
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, nn.Module):
            self._module(value)
        else:
            self._other(value)

    def _all(self, values: Iterable[Any]) -> None:
        for value in values:
            self.add(value)

    def _tensor(self, tensor: Tensor) -> None:
        self._write('tensor', _name_of(type(tensor)), str(tuple(tensor.shape)), str(tensor.dtype),
                    str(tensor.requires_grad))
        if isinstance(tensor, nn.Parameter):
            if not bool(torch.isfinite(tensor).all()):
                raise UnknownPart('a weight that is not finite')
            return
        values = tensor.detach().cpu().contiguous().reshape(-1)
        self._hash.update(values.view(torch.uint8).numpy().data if values.numel() else b'')

    def _module(self, module: nn.Module) -> None:
        if isinstance(module, torch.jit.ScriptModule):
            raise UnknownPart('a compiled module')
        kind, beside = type(module), _WITHOUT_PART
        if hasattr(kind, 'architecture_type'):
            kind, own = kind.architecture_type, _names_of(kind.algorithm_type)
            beside = beside | own
            if any(hasattr(kind, name) for name in own - _OF_STATES):
                self.add(type(module).algorithm_type)
        self.add(kind)
        for name, value in vars(module).items():
            if name in beside:
                continue
            self._write(name)
            if name in _HOOKS:
                self._all(value.values())
            elif name == '_buffers':
                for key, buffer in value.items():
                    self.add((key, buffer.shape) if key in _STATISTICS and buffer is not None else (key, buffer))
            else:
                self.add(value)

    def _other(self, value: Any) -> None:
        if isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.MethodType):
            self._write('method')
            self._all((value.__self__, value.__func__))
        elif isinstance(value, functools.partial):
            self._write('partial')
            self._all((value.func, value.args, value.keywords))
        elif isinstance(value, _BUILTIN):
            owner = getattr(value, '__self__', None)
            plain = owner is None or isinstance(owner, (type, types.ModuleType))
            self._write('builtin', getattr(value, '__module__', None) or '', value.__qualname__)
            self.add(None if plain else owner)
        elif isinstance(value, types.CellType):
            self.add(value.cell_contents)
        else:
            held = dict(getattr(value, '__dict__', {}))
            for name in (name for cls in type(value).__mro__ for name in getattr(cls, '__slots__', ())):
                if hasattr(value, name):
                    held[name] = getattr(value, name)
            if not held and not hasattr(value, '__dict__'):
                raise UnknownPart(f'a {type(value).__name__}')
            self.add(type(value))
            self.add(held)

    def _function(self, function: types.FunctionType) -> None:
        if function.__module__ in (None, '__main__', '__mp_main__'):
            raise UnknownPart(f'{function.__qualname__}, which is in no file')
        self._write('function', function.__module__, function.__qualname__)
        self._code(function.__code__)
        self._all((function.__defaults__, function.__kwdefaults__, function.__closure__ or ()))

    def _code(self, code: types.CodeType) -> None:
        self._hash.update(code.co_code)
        self._write(repr(code.co_names))
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._code(constant)
            else:
                # The order of a set of texts is another in each process.
                plain = sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant
                self._write(repr(plain))

    def _class(self, cls: type) -> None:
        """Add a class with the code and the plain attributes that it has now; someone may have replaced them."""
        place: Any = sys.modules.get(cls.__module__)
        for name in cls.__qualname__.split('.'):
            place = getattr(place, name, None)
        if place is not cls or cls.__module__ in ('__main__', '__mp_main__'):
            raise UnknownPart(f'{_name_of(cls)}, which is in no file')
        self._write('class', _name_of(cls))
        for base in cls.__mro__:
            if base.__module__.partition('.')[0] in ('builtins', 'torch', 'abc', 'typing', 'collections'):
                self._write(_name_of(base))
                continue
            for name, value in vars(base).items():
                function = getattr(value, '__func__', getattr(value, 'fget', value))
                function = getattr(function, '__wrapped__', function)
                if isinstance(function, types.FunctionType):
                    self._write(name)
                    self._code(function.__code__)
                elif _is_plain(value) and name not in ('__module__', '__doc__', '__firstlineno__'):
                    self._write(name, repr(value))


def _names_of(algorithm: type) -> frozenset[str]:
    """Return the attributes and methods that an algorithm brings into the class of a model."""
    names = {name for kind in algorithm.__mro__[:-1] for name in (*vars(kind), *inspect.get_annotations(kind))}
    return frozenset(name for name in names if not name.startswith('__'))


def _is_plain(value: Any) -> bool:
    return type(value) in _PLAIN or isinstance(value, _PLAIN_KINDS)


def _name_of(cls: type) -> str:
    return f'{cls.__module__}.{cls.__qualname__}'


def _digest_of(value: Any) -> str:
    digest = Digest()
    digest.add(value)
    return digest.hexdigest()
