"""The papers' sparsity strings: one list of pruning ratios for a whole network.

``[0.]+[0.1]*3+[0.35]*16`` is a sum of lists, each repeated a number of times. Which unit a number
belongs to follows from the network's structure (CHIP, DCFF and L1 use the same few layouts).
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Sequence
from typing import Any

from mmprune_ext.errors import TargetError
from mmprune_ext.units import ChannelUnit, UnitSet

# No network has as many units; a longer list is a slip of the pen that would fill the memory.
MAX_LENGTH = 10000


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


def expand_sparsity(units: UnitSet, ratios: Sequence[float]) -> dict[str, float]:
    """Return the pruning ratio of each unit for a list of ratios.

    Layouts, told apart by the length of the list and the structure of the network:

    * plain networks (VGG): one ratio a unit, in order; the last unit may be left out and stays;
    * residual networks, CHIP: the stem; the outputs of all stages but the last, which stays; one
      ratio a block for its inner convolutions. Where stem and first stage are one unit, the
      stage's ratio holds;
    * residual networks, one triple a block (DCFF's models of the task libraries): the stem, then
      for each block its inner convolutions and its output; blocks of a stage share the output's
      ratio, which must agree.

    Raises:
        TargetError: If no layout has that many ratios.
    """
    names = list(units.require_prunable())
    stages = [unit for unit in units.prunable.values() if _is_stage_output(unit)]
    if not stages:
        if len(ratios) in (len(names), len(names) - 1):
            return dict(zip(names, ratios))
        raise TargetError(f'{len(ratios)} ratios for {len(names)} channel units: give one a unit '
                          '(the last may be left out)')
    blocks = _blocks(units, stages)
    stem = [n for n in names if n not in {s.name for s in stages}
            and not any(n in inner for inner in blocks.values())]
    joined = not stem
    if len(ratios) == 1 + (len(stages) - 1) + len(blocks):
        return _chip_layout(stem, stages, blocks, ratios)
    stems = max(len(stem), 1)
    per_block = sum(len(inner) + 1 for inner in blocks.values())
    if len(ratios) == stems + per_block and not joined:
        return _triple_layout(stem, stages, blocks, ratios)
    raise TargetError(
        f'{len(ratios)} ratios do not fit this network of {len(stages)} stages and {len(blocks)} '
        f'blocks: expected {len(stages) + len(blocks)} (stem, outputs of all stages but the last, '
        f'one a block) or {stems + per_block} (stem, then every inner convolution and the output '
        'of each block)')


def _is_stage_output(unit: ChannelUnit) -> bool:
    """Whether a unit is what blocks add to: a sum of several producers."""
    return len({member.module for member in unit.producers}) > 1


def _blocks(units: UnitSet, stages: list[ChannelUnit]) -> dict[str, list[str]]:
    """Return, by block path, the names of the units inside each residual block, in order."""
    inside: dict[str, list[str]] = {}
    outputs = {m.module.rpartition('.')[0] for stage in stages for m in stage.producers}
    for name in units.prunable:
        block = name.rpartition('.')[0]
        if block in outputs and not any(name == stage.name for stage in stages):
            inside.setdefault(block, []).append(name)
    return inside


def _chip_layout(stem: list[str], stages: list[ChannelUnit], blocks: dict[str, list[str]],
                 ratios: Sequence[float]) -> dict[str, float]:
    found = dict.fromkeys(stem, ratios[0])
    found.update(zip([stage.name for stage in stages[:-1]], ratios[1:]))
    for inner, ratio in zip(blocks.values(), ratios[len(stages):]):
        found.update(dict.fromkeys(inner, ratio))
    return found


def _triple_layout(stem: list[str], stages: list[ChannelUnit], blocks: dict[str, list[str]],
                   ratios: Sequence[float]) -> dict[str, float]:
    found = dict(zip(stem, ratios))
    rest = iter(ratios[len(stem):])
    for block, inner in blocks.items():
        for name in inner:
            found[name] = next(rest)
        output = next(s.name for s in stages
                      if any(m.module.rpartition('.')[0] == block for m in s.producers))
        ratio = next(rest)
        if found.setdefault(output, ratio) != ratio:
            raise TargetError(f'sparsity string: the blocks of unit "{output}" add to each other '
                              f'and need one ratio, but got {found[output]} and {ratio}')
    return found
