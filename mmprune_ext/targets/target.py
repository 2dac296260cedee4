"""Pruning targets: how many channels of each unit stay.

Per unit: a pruning ratio (the share REMOVED) for all units, by name or pattern, from a file, or as a
paper's sparsity string. Global: a budget (the share that REMAINS) of multiply-accumulates,
parameters, channels or output values, spread evenly over the units, by a ranking of all their scores, or by
what was measured of each unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.logging import MMLogger
from torch import Tensor, nn

from mmprune_ext.errors import TargetError
from mmprune_ext.targets.budget import (
    RESOURCES,
    Keeps,
    KeepsPath,
    fit,
    measure_of,
    rank_path,
    scope_hint,
    uniform_path,
)
from mmprune_ext.targets.isomorphic import isomorphic_path
from mmprune_ext.targets.sensitivity import Sensitivity
from mmprune_ext.targets.sensitivity_choice import SensitivityChoice, keeps_from_sensitivity
from mmprune_ext.targets.sparsity import expand_sparsity, is_sparsity, parse_sparsity, split_layout
from mmprune_ext.units import ChannelUnit, UnitSet
from mmprune_ext.units.demo_inputs import DemoInputs
from mmprune_ext.units.spec import load_json, mmrazor_records

SPREADS = ('uniform', 'global', 'isomorphic', 'sensitivity')
RatioTarget = float | str | Mapping[str, float] | Sequence[float]


# ---------------------------------------------------------------- per unit


def keeps_from_ratios(units: UnitSet, target: RatioTarget,
                      layouts: Sequence[str] | None = None) -> Keeps:
    """Return the kept number of every prunable unit for a per-unit target.

    Args:
        units: The model's units.
        target: One ratio for all; ``{unit name or pattern: ratio}`` (what matches nothing in it
            stays whole; an exact name wins over a pattern, a later pattern over an earlier); the
            path of a JSON file with such a mapping or of a channel-unit file; or a sparsity string
            such as ``'[0.]+[0.1]*3+[0.35]*16'`` or ``'chip: [0.]+[0.1]*3+[0.35]*16'``.
        layouts: The layouts that a sparsity string without a name may have; see
            :func:`mmprune_ext.targets.sparsity.expand_sparsity`.

    Raises:
        TargetError: For a malformed target, an unknown unit, or a ratio outside [0, 1).
    """
    source = 'target_pruning_ratio'
    if isinstance(target, (str, Path)) and is_sparsity(str(target)):
        named, text = split_layout(str(target))
        layouts = layouts if named is None else [named]
        target = parse_sparsity(text)
    elif isinstance(target, (str, Path)):
        source = str(target)
        content = load_json(target)
        if isinstance(content, dict) and (not _is_ratios(content) or mmrazor_records(content, source) is not None):
            return _keeps_from_file(units, UnitSet.from_dict(content, source), source)
        target = content
    if _is_number(target):
        ratio = _check_ratio(target, source)
        return {name: unit.kept_number(ratio) for name, unit in units.prunable.items()}
    if isinstance(target, Mapping):
        ratios = _match_ratios(units, target, source)
    elif isinstance(target, Sequence) and not isinstance(target, str):
        ratios = expand_sparsity(units, [_check_ratio(r, source) for r in target], layouts)
    else:
        raise TargetError(f'{source} should be a ratio, a dict, a JSON file or a sparsity string, '
                          f'but got {target!r}')
    return {name: unit.kept_number(ratios.get(name, 0.0)) for name, unit in units.prunable.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_ratios(content: Mapping[str, Any]) -> bool:
    return bool(content) and 'schema' not in content and all(map(_is_number, content.values()))


def _check_ratio(value: Any, where: str) -> float:
    if not _is_number(value) or not math.isfinite(value) or not 0 <= value < 1:
        raise TargetError(f'{where}: a pruning ratio is the share of channels removed, at least 0 '
                          f'and below 1, but got {value!r}{_as_share(value)}')
    return float(value)


def _as_share(value: Any) -> str:
    return f'; did you mean {value / 100:g}?' if _is_number(value) and 1 < value < 100 else ''


def _match_ratios(units: UnitSet, target: Mapping[str, float], source: str) -> dict[str, float]:
    ratios: dict[str, float] = {}
    for key, value in sorted(target.items(), key=lambda item: item[0] in units):
        ratio = _check_ratio(value, f'{source}["{key}"]')
        names = [key] if key in units else units.match(key)
        if not names:
            raise units.unknown(key, source)
        free = [name for name in names if units[name].prunable]
        if not free and ratio > 0:
            raise TargetError(f'{source}: unit "{names[0]}" cannot be pruned: '
                              f'{units[names[0]].why()}')
        ratios.update(dict.fromkeys(free, ratio))
    return ratios


def _keeps_from_file(units: UnitSet, chosen: UnitSet, source: str) -> Keeps:
    keeps = {name: unit.num_channels for name, unit in units.prunable.items()}
    named = {_name_in(units, unit) or unit.name: unit for unit in chosen.values()}
    left = [name for name in keeps if name not in named]
    if left:
        MMLogger.get_current_instance().warning(f'{source}: names {len(keeps) - len(left)} of {len(keeps)} prunable '
                                                f'units; these stay whole: {", ".join(left)}')
    for name, unit in named.items():
        if name not in units:
            raise units.unknown(name, source)
        if unit.num_channels != units[name].num_channels:
            raise TargetError(f'{source}: unit "{name}" has {unit.num_channels} channels, in the '
                              f'model it has {units[name].num_channels}')
        if unit.keep < unit.num_channels:
            if not units[name].prunable:
                raise TargetError(f'{source}: unit "{name}" cannot be pruned: {units[name].why()}')
            keep = unit.keep if chosen.architecture else _rounded_by_mmrazor(unit)
            keeps[name] = units[name].round_keep(keep)
    return keeps


def _rounded_by_mmrazor(unit: ChannelUnit) -> int:
    """Return the multiple of its divisor that is nearest to a kept number, and at least 0.9 of it, as mmrazor does."""
    divisor = unit.init_args.divisor
    keep = max(int(unit.keep + divisor / 2) // divisor * divisor, 1)
    return min(keep if keep >= 0.9 * unit.keep else keep + divisor, unit.num_channels)


def _name_in(units: UnitSet, chosen: ChannelUnit) -> str | None:
    """Return the name of a file's unit in the model: it may bear the name of another one of its layers there."""
    found = [name for name, unit in units.items() if unit.num_channels == chosen.num_channels
             and chosen.name in {member.module for member in unit.producers}]
    return chosen.name if chosen.name in units else found[0] if len(found) == 1 else None


# ---------------------------------------------------------------- budgets


@dataclass(frozen=True)
class Budget:
    """A share of a resource that remains.

    Attributes:
        resource: ``flops`` (multiply-accumulates of convolution and linear layers), ``params``,
            ``channels`` (of the prunable units) or ``volume`` (output values of convolution and linear
            layers).
        share: The share that remains, above 0 and at most 1.
        spread: ``uniform``: one pruning ratio for all units; ``global``: the channels of lowest
            score go first, whatever their unit, scores being divided by their unit's mean where those of
            different units do not compare; ``isomorphic``: the same, in each group of units of like structure
            an equal share, the scores as they are (:mod:`mmprune_ext.targets.isomorphic`);
            ``sensitivity``: the widths of least predicted drop among those that were measured
            (:class:`mmprune_ext.targets.sensitivity_choice.SensitivityChoice`).
        scope: Path of the submodule whose resource is measured (``backbone``); empty for the model.
        input_size: What ``flops`` and ``volume`` are counted on
            (:func:`mmprune_ext.analysis.complexity`), which may be larger than what the model was
            traced on.
        sensitivity: What was measured, for the spread of that name.
    """

    resource: str
    share: float
    spread: str = 'uniform'
    scope: str = ''
    input_size: DemoInputs = None
    sensitivity: Sensitivity | None = None

    @property
    def by_rank(self) -> bool:
        """Whether the scores decide how many channels stay of a unit."""
        return self.spread in ('global', 'isomorphic')

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Budget:
        """Read ``dict(flops=0.5, spread='global', scope='backbone', input_size=(800, 1344))``.

        With ``spread='sensitivity'`` the key ``sensitivity`` gives what was measured, or the path of its file.

        Raises:
            TargetError: For an unknown key or value.
            UnitFileError: If the file is missing or malformed.
        """
        extra = set(config) - {*RESOURCES, 'spread', 'scope', 'input_size', 'sensitivity'}
        given = [key for key in RESOURCES if key in config]
        if extra or len(given) != 1:
            raise TargetError(f'budget should have exactly one of {", ".join(RESOURCES)}, and '
                              f'optionally spread, sensitivity, scope and input_size, but got {dict(config)!r:.300}')
        share, spread = config[given[0]], config.get('spread', 'uniform')
        if not _is_number(share) or not 0 < share <= 1:
            raise TargetError(f'budget: {given[0]} is the share that remains, above 0 and at most 1, '
                              f'but got {share!r}{_as_share(share)}')
        if spread not in SPREADS:
            raise TargetError(f"budget: spread should be one of {', '.join(SPREADS)}, got {spread!r}")
        return cls(given[0], float(share), spread, config.get('scope', ''), config.get('input_size'),
                   _read_sensitivity(spread, config.get('sensitivity')))


def _read_sensitivity(spread: str, given: Any) -> Sensitivity | None:
    if (spread == 'sensitivity') != (given is not None):
        raise TargetError("budget: spread='sensitivity' and sensitivity=FILE, which tools/sensitivity.py writes, go "
                          f'together, but got spread={spread!r}, sensitivity={given!r:.100}')
    if given is None or isinstance(given, Sensitivity):
        return given
    if not isinstance(given, (str, Path)):
        raise TargetError(f'budget: sensitivity should be the path of a file, but got {given!r:.100}')
    return Sensitivity.load(given)


def keeps_from_budget(units: UnitSet, budget: Budget, model: nn.Module,
                      scores: Mapping[str, Tensor], whole: float | None = None,
                      comparable: bool = False) -> Keeps:
    """Return kept numbers that use at most the budget; but by sensitivity to within one step of one unit.

    Args:
        units: The dense model's traced units. Their ``costs`` are what ``flops`` counts where the
            budget names no ``input_size``.
        budget: What remains.
        model: The dense model.
        scores: Per unit, a score ``(num_channels,)`` of each channel, larger is more important.
        whole: What the budget is a share of: the resource of ``model``, or of a larger one that it is left of.
        comparable: Whether the spread ``global`` ranks the scores as they are.

    Raises:
        TargetError: If the budget cannot be met even at the smallest widths, or there is nothing to
            count it on.
        UnitFileError: If a sensitivity file does not fit the model.
    """
    if budget.sensitivity is not None:
        choice = SensitivityChoice(budget.sensitivity, units, budget.resource, model, budget.scope, budget.input_size)
        return keeps_from_sensitivity(choice, budget.share * (1 if whole is None else whole / choice.dense))
    measure = measure_of(units, budget.resource, model, budget.scope, budget.input_size)
    whole = measure({}) if whole is None else whole
    limit = budget.share * whole
    path = _path_of(budget.spread, units, model, scores, comparable)
    least = measure(path(1.0))
    if least > limit * (1 + 1e-9):
        raise TargetError(
            f'budget: {budget.resource} cannot be reduced to {budget.share:.1%}; the smallest '
            f'widths that min_channels and the units that cannot be pruned allow leave '
            f'{least / whole:.1%}' + scope_hint(units, budget.resource, model, budget.scope, budget.input_size))
    return fit(units, path, measure, limit)


def _path_of(spread: str, units: UnitSet, model: nn.Module, scores: Mapping[str, Tensor],
             comparable: bool) -> KeepsPath:
    if spread == 'uniform':
        return uniform_path(units)
    if spread == 'isomorphic':
        return isomorphic_path(units, model, scores)
    return rank_path(units, scores) if comparable else _relative_path(units, scores)


def _relative_path(units: UnitSet, scores: Mapping[str, Tensor]) -> KeepsPath:
    return rank_path(units, {name: scores[name].double() / max(float(scores[name].double().mean()), 1e-300)
                             for name in units.prunable})
