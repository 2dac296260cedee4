"""Drawn networks: what steps make of a draft, and the Python that a network prints itself as."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import nn

from tests.test_units.toy_base import randomise

SHAPE = (3, 8, 8)
MOST_CHANNELS = 32
T = TypeVar('T')
Step = Callable[['Draft', 'Map'], None]
# By kind of feature map, the steps that take it; which are likelier stand there several times.
STEPS: dict[str, list[Step]] = {'image': [], 'tokens': [], 'signal': [], 'vector': []}
# By kind, a layer of as many outputs as inputs.
SAME = {'image': 'nn.Conv2d({0}, {0}, 3, padding=1)', 'tokens': 'nn.Linear({0}, {0})',
        'signal': 'nn.Conv1d({0}, {0}, 3, padding=1)', 'vector': 'nn.Linear({0}, {0})'}
HEAD = '''\
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn import utils
from torch.nn.utils import parametrizations, prune


class Drawn(nn.Module):
    def __init__(self):
        super().__init__()
'''


@dataclass(frozen=True)
class Map:
    """A feature map.

    Attributes:
        name: The variable that holds it.
        kind: ``image`` ``(N, C, H, W)``, ``tokens`` ``(N, L, C)``, ``signal`` ``(N, C, L)`` or ``vector`` ``(N, C)``.
        channels: How many it has.
        size: Of its other dimensions.
    """

    name: str
    kind: str
    channels: int
    size: tuple[int, ...] = ()

    def __str__(self) -> str:
        return self.name

    @property
    def form(self) -> tuple[Any, ...]:
        """What two maps have in common that can be added."""
        return self.kind, self.channels, self.size


@dataclass(frozen=True)
class Drawn:
    """A drawn network: the statements of its ``__init__`` and of its ``forward``."""

    layers: tuple[str, ...]
    lines: tuple[str, ...]

    def source(self) -> str:
        """Return the network as a file of Python."""
        return (HEAD + ''.join(f'        {layer}\n' for layer in self.layers) + '\n    def forward(self, x0):\n'
                + ''.join(f'        {line}\n' for line in self.lines))

    def build(self) -> nn.Module:
        """Return the network in eval mode, with weights and statistics that hide no mistake."""
        names: dict[str, Any] = {'__name__': 'drawn_network'}
        exec(compile(self.source(), '<drawn network>', 'exec'), names)
        # Without gradients, as weights that old hooks compute cannot be copied with them.
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            net = names['Drawn']()
            randomise(net)
        return net.eval()

    __repr__ = source


class Draft:
    """A network in the making."""

    def __init__(self) -> None:
        self.maps = [Map('x0', 'image', SHAPE[0], SHAPE[1:])]
        self._layers: dict[str, str] = {}
        self._lines: list[tuple[str, str]] = []  # what each line assigns or changes, and its text
        self._named = 0
        self._numbers: Iterator[int] = iter(())

    def step(self, numbers: list[int]) -> None:
        """Take one more step."""
        self._numbers = iter(numbers)
        # Mostly the map that was made last; the image is only put beside others.
        x = self.maps[-1 - min(self.pick(0, 0, 0, 1, 0, 2), len(self.maps) - 2)]
        steps = STEPS[x.kind]
        steps[next(self._numbers, 0) % len(steps)](self, x)

    def pick(self, *options: T) -> T:
        """Return one of some options, the first without further numbers."""
        return options[next(self._numbers, 0) % len(options)]

    def width(self) -> int:
        """Return how many channels a layer shall make."""
        return self.pick(8, 4, 6, 12)

    def layer(self, expression: str) -> str:
        """Add an attribute to the network; return how code names it."""
        return self._attribute(f'{{0}} = {expression}')

    def parameter(self, *shape: int) -> str:
        """Add a parameter that is no layer's."""
        return self.layer(f'nn.Parameter(torch.randn({", ".join(map(str, shape))}))')

    def buffer(self, values: str) -> str:
        """Add a buffer."""
        return self._attribute(f"self.register_buffer('{{1}}', {values})")

    def _attribute(self, statement: str) -> str:
        name = f'm{len(self._layers)}'
        self._layers[f'self.{name}'] = statement.format(f'self.{name}', name)
        return f'self.{name}'

    def let(self, expression: str) -> str:
        """Give the value of an expression a name."""
        self._named += 1
        name = f'x{self._named}'
        self._lines.append((name, f'{name} = {expression}'))
        return name

    def change(self, name: str, statement: str) -> None:
        """Run a statement that changes a variable in place."""
        self._lines.append((name, statement))

    def put(self, expression: str, like: Map, **changes: Any) -> Map:
        """Make a feature map of an expression, like another but for some of its attributes."""
        self.maps.append(replace(like, name=self.let(expression), **changes))
        return self.maps[-1]

    def partner(self, x: Map) -> str:
        """Return another map that can be added to one; a layer on it makes one where there is none."""
        found = [y.name for y in self.maps if y.form == x.form and y is not x]
        if found and self.pick(True, True, False):
            return self.pick(*found[::-1])
        return self.let(f'{self.layer(SAME[x.kind].format(x.channels))}({x})')

    def number(self, x: Map, divisor: int = 1) -> str:
        """Return the number of channels of a map, or a part of it, mostly taken from its shape."""
        dim = -1 if x.kind == 'tokens' else 1
        number = f'{x}.shape[{dim}]' if divisor == 1 else f'{x}.shape[{dim}] // {divisor}'
        return self.pick(number, number, number, str(x.channels // divisor))

    def finish(self) -> Drawn:
        """Return the network; what does not lead to its outputs is left out."""
        text = f'return {self._head(self.maps[-1])}'
        used, layers, lines = _variables(text), _attributes(text), [text]
        for target, line in reversed(self._lines):
            if target in used:
                used |= _variables(line)
                layers |= _attributes(line)
                lines.append(line)
        return Drawn(tuple(code for name, code in self._layers.items() if name in layers), tuple(lines[::-1]))

    def _head(self, x: Map) -> str:
        if x.kind == 'image':
            return f'{self.layer(f"nn.Conv2d({x.channels}, 5, 1)")}({x})'
        if x.kind == 'signal':
            return f'{self.layer(f"nn.Conv1d({x.channels}, 5, 1)")}({x})'
        return f'{self.layer(f"nn.Linear({x.channels}, 5)")}({x})'


def _variables(line: str) -> set[str]:
    return set(re.findall(r'\bx\d+\b', line))


def _attributes(line: str) -> set[str]:
    return set(re.findall(r'\bself\.m\d+\b', line))


def step(kind: str, times: int = 1) -> Callable[[Step], Step]:
    """Register a step that takes feature maps of a kind."""
    def register(function: Step) -> Step:
        STEPS[kind] += [function] * times
        return function
    return register
