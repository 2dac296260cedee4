"""The papers' sparsity strings: one list of pruning ratios for a whole network.

``[0.]+[0.1]*3+[0.35]*16`` is a sum of lists, each repeated a number of times. Which unit a number
belongs to is the list's layout. A string may name it, ``dcff: [0.7]*27+[0.]*3``; otherwise it has to
follow from the length of the list and the structure of the network.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mmprune_ext.errors import TargetError
from mmprune_ext.units import UnitSet

# No network has as many units; a longer list is a slip of the pen that would fill the memory.
MAX_LENGTH = 10000
_NAMED = re.compile(r'\s*(?P<layout>[A-Za-z]\w*)\s*:\s*(?P<text>\[.*)', re.DOTALL)


def is_sparsity(text: str) -> bool:
    """Whether a text is a sparsity string, and not the path of a file."""
    return text.lstrip().startswith('[') or _NAMED.fullmatch(text) is not None


def split_layout(text: str) -> tuple[str | None, str]:
    """Return the layout that a sparsity string names (``None`` if it names none) and its list.

    Raises:
        TargetError: If there is no such layout.
    """
    named = _NAMED.fullmatch(text)
    if named is None:
        return None, text
    if named['layout'] not in LAYOUTS:
        raise TargetError(f'sparsity string {text!r}: unknown layout "{named["layout"]}"; choose '
                          f'from {", ".join(LAYOUTS)}')
    return named['layout'], named['text']


def parse_sparsity(text: str) -> list[float]:
    """Read a sparsity string.

    Raises:
        TargetError: If it is anything but sums and repetitions of lists of numbers.
    """
    try:
        value = _evaluate(ast.parse(text.strip(), mode='eval').body)
    except (SyntaxError, ValueError, TypeError) as error:
        raise TargetError(f'sparsity string {text!r} is malformed ({error}); write it like '
                          '"[0.]+[0.1]*3+[0.35]*16"') from None
    if not isinstance(value, list) or not value:
        raise TargetError(f'sparsity string {text!r} does not give a list of numbers')
    return value


def _evaluate(node: ast.AST) -> Any:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_evaluate(node.operand)
    if isinstance(node, ast.List):
        numbers = [_evaluate(item) for item in node.elts]
        if any(isinstance(number, list) for number in numbers):
            raise ValueError('lists inside lists')
        return numbers
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Mult)):
        left, right = _evaluate(node.left), _evaluate(node.right)
        if isinstance(node.op, ast.Add):
            return operator.add(left, right)
        if isinstance(left, list) and isinstance(right, list):
            raise ValueError('a list times a list')
        for numbers, times in ((left, right), (right, left)):
            if isinstance(numbers, list) and len(numbers) * times > MAX_LENGTH:
                raise ValueError(f'more than {MAX_LENGTH} numbers')
        return operator.mul(left, right)
    raise ValueError(f'unexpected {type(node).__name__}')


def expand_sparsity(units: UnitSet, ratios: Sequence[float],
                    layouts: Sequence[str] | None = None) -> dict[str, float]:
    """Return the pruning ratio of each unit for a list of ratios.

    Layouts:

    * ``units``: one ratio a unit, in order; the last unit may be left out and stays. A network with
      residual stages is read so only where this layout alone is asked for;
    * ``chip``: the stem; the outputs of all residual stages but the last, which stays; one ratio a
      block for its inner convolutions;
    * ``dcff``: the stem; the first convolutions of all blocks, then all second ones (bottlenecks);
      the outputs of all stages;
    * ``blocks``: the stem; then for each block its inner convolutions and its output. The blocks of
      a stage share the output, whose ratio must agree.

    A stem of several convolutions has as many ratios, one in ``chip``. Where stem and first stage
    are one unit (CIFAR ResNets) the stage's ratio holds: a ``chip`` list still begins with a ratio
    of the stem, a ``dcff`` list has none, and ``blocks`` does not apply.

    Args:
        units: The model's units.
        ratios: The list.
        layouts: Names of the layouts that it may have; all of them by default.

    Raises:
        TargetError: If no layout has that many ratios, or if several have and give other ratios.
    """
    found = _Structure.of(units)
    names = list(layouts or LAYOUTS)
    if len(names) > 1:
        names = [name for name in names if (name == 'units') != bool(found.stages)]
    fitting = [name for name in names if len(ratios) in LAYOUTS[name].lengths(found)]
    if not fitting:
        raise TargetError(_wrong_length(found, len(ratios), names))
    readings: dict[str, dict[str, float]] = {}
    refused: list[TargetError] = []
    for name in fitting:
        try:
            readings[name] = LAYOUTS[name].read(found, ratios)
        except TargetError as error:
            refused.append(error)
    if not readings:
        raise refused[0]
    first, *others = readings.values()
    if any(other.get(n, 0.0) != first.get(n, 0.0) for other in others for n in found.names):
        raise TargetError(
            f'{len(ratios)} ratios can be read in {len(readings)} ways for this network '
            f'({", ".join(readings)}); write the layout before the list, as in '
            f'"{next(iter(readings))}: [0.1]+[0.2]*3"')
    return first


def _wrong_length(found: _Structure, length: int, names: Sequence[str]) -> str:
    if not found.stages and 'units' in names:
        return (f'{length} ratios for {len(found.names)} channel units: give one a unit (the last '
                'may be left out)')
    expected = [f'{LAYOUTS[name].lengths(found)[0]} ({name}: {LAYOUTS[name].words})'
                for name in names if LAYOUTS[name].lengths(found)]
    return (f'{length} ratios do not fit this network of {len(found.stages)} stages and '
            f'{len(found.blocks)} blocks: '
            + (f'expected {" or ".join(expected)}' if expected
               else f'the layout {" or ".join(names)} does not apply to it'))


@dataclass(frozen=True)
class _Structure:
    """A network as the layouts see it.

    Attributes:
        names: All prunable units, in order.
        stem: Those outside of blocks; empty where the stem is one unit with the first stage.
        stages: By unit that the blocks of a stage add to, the paths of these blocks.
        blocks: By path of a residual block, the units inside, in order.
    """

    names: list[str]
    stem: list[str]
    stages: dict[str, set[str]]
    blocks: dict[str, list[str]]

    @classmethod
    def of(cls, units: UnitSet) -> _Structure:
        names = list(units.require_prunable())
        stages: dict[str, set[str]] = {}
        for name, unit in units.prunable.items():
            modules = {member.module for member in unit.producers}
            if len(modules) > 1:
                stages[name] = {module.rpartition('.')[0] for module in modules}
        adding = set().union(*stages.values())
        blocks: dict[str, list[str]] = {}
        stem = []
        for name in names:
            block = name.rpartition('.')[0]
            if name in stages:
                continue
            if block in adding:
                blocks.setdefault(block, []).append(name)
            else:
                stem.append(name)
        return cls(names, stem, stages, blocks)


def _read_units(found: _Structure, ratios: Sequence[float]) -> dict[str, float]:
    return dict(zip(found.names, ratios))


def _chip_lengths(found: _Structure) -> tuple[int, ...]:
    return (len(found.stages) + len(found.blocks),) if found.stages else ()


def _read_chip(found: _Structure, ratios: Sequence[float]) -> dict[str, float]:
    read = dict.fromkeys(found.stem, ratios[0])
    outputs = list(found.stages)[:-1]
    read.update(zip(outputs, ratios[1:]))
    for inner, ratio in zip(found.blocks.values(), ratios[1 + len(outputs):]):
        read.update(dict.fromkeys(inner, ratio))
    return read


def _dcff_lengths(found: _Structure) -> tuple[int, ...]:
    return (len(found.names),) if found.stages else ()


def _read_dcff(found: _Structure, ratios: Sequence[float]) -> dict[str, float]:
    depth = max(map(len, found.blocks.values()), default=0)
    columns = [inner[place] for place in range(depth)
               for inner in found.blocks.values() if place < len(inner)]
    return dict(zip([*found.stem, *columns, *found.stages], ratios, strict=True))


def _blocks_lengths(found: _Structure) -> tuple[int, ...]:
    if not found.stages or not found.stem:
        return ()
    return (len(found.stem) + sum(len(inner) + 1 for inner in found.blocks.values()),)


def _read_blocks(found: _Structure, ratios: Sequence[float]) -> dict[str, float]:
    read = dict(zip(found.stem, ratios))
    rest = iter(ratios[len(found.stem):])
    for block, inner in found.blocks.items():
        for name in inner:
            read[name] = next(rest)
        output = next(stage for stage, adding in found.stages.items() if block in adding)
        ratio = next(rest)
        if read.setdefault(output, ratio) != ratio:
            raise TargetError(f'sparsity string: the blocks of unit "{output}" add to each other '
                              f'and need one ratio, but got {read[output]} and {ratio}')
    return read


@dataclass(frozen=True)
class _Layout:
    """How a list of ratios is spread over a network.

    Attributes:
        words: What the list consists of.
        lengths: The lengths that such a list may have; none where the layout does not apply.
        read: Gives the units their ratios; a unit that gets none stays whole.
    """

    words: str
    lengths: Callable[[_Structure], tuple[int, ...]]
    read: Callable[[_Structure, Sequence[float]], dict[str, float]]


LAYOUTS = {
    'units': _Layout('every unit in order; the last may be left out',
                     lambda found: (len(found.names), len(found.names) - 1), _read_units),
    'chip': _Layout('stem, outputs of all stages but the last, one a block', _chip_lengths,
                    _read_chip),
    'dcff': _Layout('stem, first convolutions of all blocks, then second ones, outputs of stages',
                    _dcff_lengths, _read_dcff),
    'blocks': _Layout('stem, then the inner convolutions and the output of each block',
                      _blocks_lengths, _read_blocks),
}
