"""Which channels a layer that never ran may read.

Code inside a module sees the inputs of the call and what the modules that it calls take and return, but nothing that
those compute inside. So a layer that did not run can only be meant for what the code of a module around it saw, or
that of a module which was given it; and for nothing if no code names it.
"""

from __future__ import annotations

import dis
import functools
import inspect
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from types import CodeType

import numpy as np
from torch import Tensor, nn

from mmprune_ext.units.labels import LabelSpace, get_core
from mmprune_ext.units.layers import rule_for

# By these, code gets at modules without their names.
_NAMELESS = {'getattr', 'children', 'named_children', 'modules', 'named_modules', 'get_submodule', '_modules'}
# They make, fill and switch layers; they call none.
_NOT_CALLING = {'__init__', 'init_weights', '_init_weights', 'train', '_freeze_stages'}
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Reach:
    """The labels that the code of each module had in hand, by the module's path."""

    def __init__(self) -> None:
        self._running: list[str] = ['']
        self._seen: dict[str, list[np.ndarray]] = defaultdict(list)
        self._lent: dict[str, set[str]] = defaultdict(set)

    @property
    def running(self) -> str:
        """Path of the module whose code is running."""
        return self._running[-1]

    def begin(self) -> None:
        """Start another pass: the one before may have ended in an error."""
        self._running = ['']

    def enter(self, path: str, inputs: list[Tensor], lent: Sequence[str]) -> None:
        """Note the call of a module with some tensors, and with other modules, by their paths."""
        self.note(inputs)
        self._running.append(path)
        self.note(inputs)
        for other in lent:
            self._lent[other].add(path)

    def leave(self, path: str, outputs: list[Tensor]) -> None:
        """Note what a call returned; calls inside it that ended in an error have ended with it."""
        while len(self._running) > 1 and self._running.pop() != path:
            pass
        self.note(outputs)

    def note(self, tensors: list[Tensor]) -> None:
        """Note what the code of the running module has in hand."""
        cores = [core for core in map(get_core, tensors) if core is not None]
        self._seen[self._running[-1]] += [np.unique(core.numpy()) for core in cores]

    def readable(self, layers: Mapping[str, nn.Module], paths: Sequence[str], space: LabelSpace,
                 records: Mapping[tuple, np.ndarray]) -> list[np.ndarray]:
        """Return the labels that layers which were never called may read, judged by their width too.

        Args:
            layers: All layers by path.
            paths: Those never called.
            space: The labels.
            records: Labels by layer path, role and dimension.
        """
        found = []
        for path in paths:
            widths = rule_for(layers[path]).widths(layers[path])
            width = widths.get('consumer', widths.get('follower', 0))
            seen = self._seen_around(path, space)
            for (_, role, _), labels in records.items():
                many = width // len(labels) if isinstance(layers[path], nn.Linear) else 1
                if role != 'consumer' and len(labels) * many == width and np.isin(space.roots(labels), seen).any():
                    found.append(labels)
        return found

    def _seen_around(self, path: str, space: LabelSpace) -> np.ndarray:
        """Return the representatives of what the code around a layer, or what it was lent to, saw."""
        parts = path.split('.')
        around = {'.'.join(parts[:i]) for i in range(len(parts))}
        around |= {user for part in [*around, path] for user in self._lent.get(part, ())}
        arrays = [labels for module in around for labels in self._seen.get(module, ())]
        return np.unique(space.roots(np.unique(np.concatenate([*arrays, np.zeros(1, dtype=np.int64)]))))


def without_name(model: nn.Module, paths: Sequence[str]) -> set[str]:
    """Return the layers that were made, and that no code of the model's classes gets at: they cannot run."""
    kinds = {type(module) for module in model.modules()}
    return {path for path in paths if any(
        not isinstance(owner, _CONTAINERS) and not _gets_at(type(owner), name, kinds)
        for owner, name in _links(model, path))}


def _links(model: nn.Module, path: str) -> Iterator[tuple[nn.Module, str]]:
    """Yield each module on the way to a layer, with the name of the next one in it."""
    for name in path.split('.'):
        yield model, name
        model = model.get_submodule(name)


def _gets_at(kind: type, name: str, kinds: set[type]) -> bool:
    own, _ = _loaded(kind)
    return name in own or bool(own & _NAMELESS) or any(name in _loaded(other)[1] for other in kinds)


@functools.cache
def _loaded(kind: type) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names that the code of a class loads, and those that it loads from other objects than ``self``."""
    names, of_others = set(), set()
    for base in kind.__mro__:
        if base.__module__.partition('.')[0] in ('torch', 'mmengine', 'builtins'):
            continue
        for member in vars(base).values():
            for code in _codes(member):
                before = None
                for step in dis.get_instructions(code):
                    if step.opname.startswith('LOAD_') and isinstance(step.argval, str):
                        names.add(step.argval)
                        if before is None or before.argval != 'self':
                            of_others.add(step.argval)
                    before = step
    return frozenset(names), frozenset(of_others)


def _codes(member: object) -> Iterator[CodeType]:
    """Yield the code of a method or property, and of the functions inside it."""
    parts = [member.fget, member.fset] if isinstance(member, property) else [getattr(member, '__func__', member)]
    pending = [inspect.unwrap(part).__code__ for part in parts if inspect.isfunction(part)]
    while pending:
        code = pending.pop()
        if code.co_name not in _NOT_CALLING:
            yield code
            pending += [value for value in code.co_consts if isinstance(value, CodeType)]
