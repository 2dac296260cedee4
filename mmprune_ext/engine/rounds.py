"""The section ``rounds`` of a config: how often a model is pruned and trained by turns, and to what each time."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmprune_ext import registry
from mmprune_ext.algorithms import OneShotAlgorithm
from mmprune_ext.compact.compact_model import build_architecture
from mmprune_ext.errors import ConfigError, PruningError
from mmprune_ext.model_config import DISTILLATION, is_compact, is_pruning
from mmprune_ext.nearest import nearest
from mmprune_ext.registry import MODELS
from mmprune_ext.settings.completion import prepare_pruning
from mmprune_ext.targets.sparsity import is_sparsity, parse_sparsity, split_layout
from mmprune_ext.targets.target import Budget
from mmprune_ext.units.demo_inputs import counting_inputs
from mmprune_ext.units.spec import load_json

ROUNDS = 'rounds'
RUNNER = 'mmprune_ext.RoundsRunner'
KEYS = ('target_pruning_ratio', 'budget')
# What a round is pruned to: one of KEYS with its value.
Target = dict[str, Any]


def set_rounds(config: Config, number: int | None = None) -> None:
    """Check the rounds of a config, or make a pruning config one of several rounds.

    Args:
        config: The config; without ``number``, and without a section ``rounds``, it is left alone.
        number: How many rounds.

    Raises:
        ConfigError: As of :func:`targets_of`, or if another runner reads the config.
    """
    if number is None and config.get(ROUNDS) is None and _kind(config.get('runner_type')) != _kind(RUNNER):
        return
    if number is not None:
        section = config.get(ROUNDS)
        config[ROUNDS] = {**section, 'num': number} if isinstance(section, Mapping) else number
        config.runner_type = config.get('runner_type') or RUNNER
    if _kind(config.get('runner_type')) != _kind(RUNNER):
        found = config.get('runner_type')
        raise ConfigError(f"rounds: only runner_type='{RUNNER}' reads them, but the config's is {found!r}; "
                          + ('take one of the two out' if found else 'set it, or take rounds out'))
    targets_of(config)


def targets_of(config: Mapping[str, Any]) -> list[Target]:
    """Return what each round of a config is pruned to.

    ``rounds=5`` prunes by the model's own target in each round. A ratio is taken of what the round before has left. A
    budget is what remains of the dense model in the end; the rounds on the way go down to it by equal factors:
    ``share ** (r / 5)`` after round ``r``. ``rounds=dict(targets=[...])`` says it round by round, in place of the
    model's own target; budgets are shares of the dense model there too.

    Raises:
        ConfigError: If the section is malformed, or the model has nothing to prune in rounds.
    """
    model = config['model']
    if DISTILLATION in config:
        raise ConfigError('rounds: the config has teachers, and rounds train without; take one of the two out, and '
                          "give the teachers to a training of the last round's compact config")
    _check_model(model)
    number, targets = _read(config.get(ROUNDS))
    if targets is None:
        targets = _spread(model, number)
    for place, target in enumerate(targets):
        _check_target(target, f'{ROUNDS}.targets[{place}]', len(targets))
    _check_falling(targets)
    if len(targets) > 1 and any('budget' in t and Budget.from_config(t['budget']).sensitivity for t in targets):
        raise ConfigError(f'budget: a sensitivity file is of the dense weights, but rounds 2 to {len(targets)} prune '
                          "weights that were trained in between; choose spread='uniform', 'global' or 'isomorphic'")
    if len(targets) > 1 and model.get('scores') is not None:
        raise ConfigError(f'model.scores are of the dense weights, but rounds 2 to {len(targets)} prune weights that '
                          'were trained in between; take scores out')
    return targets


def check_later_targets(config: Config, targets: Sequence[Target]) -> None:
    """Check that the targets of later rounds can be met, before the first round takes its time.

    They are tried on the dense model, whose units have the names of those of all rounds.

    Raises:
        PruningError: Naming the round.
    """
    if all(target == targets[0] for target in targets):
        return  # the first round itself tells
    completed = copy.deepcopy(config)
    init_default_scope(completed.get('default_scope') or 'mmengine')
    prepare_pruning(completed)
    model = completed.model
    settings = {key: value for key, value in (model.get('mutator') or {}).items() if key != 'calibration'}
    dense = build_architecture(model.architecture, config.get('data_preprocessor'))
    mutator = MODELS.build({'type': MODELS.get(model.type).mutator_type, **settings})
    mutator.prepare(dense)
    for number, target in enumerate(targets[1:], 2):
        budget = target.get('budget')
        if budget is not None:  # whatever the scores: how far it goes down is the same
            budget = {'input_size': counting_inputs(config), **budget, 'spread': 'uniform'}
        try:
            mutator.kept_numbers(dense, target.get('target_pruning_ratio'), budget)
        except PruningError as error:
            raise ConfigError(f'round {number}: {error}') from error


def without_pruning(targets: Sequence[Target]) -> list[int]:
    """Return the numbers of the rounds whose ratios are all 0: they train, and remove nothing."""
    return [number for number, target in enumerate(targets, 1)
            if 'target_pruning_ratio' in target and _is_zero(target['target_pruning_ratio'])]


def _is_zero(ratio: Any) -> bool:
    if isinstance(ratio, (str, Path)):
        if not is_sparsity(str(ratio)):
            return False
        ratio = parse_sparsity(split_layout(str(ratio))[1])
    values = ratio.values() if isinstance(ratio, Mapping) else ratio if isinstance(ratio, list) else [ratio]
    return all(value == 0 for value in values)


def _kind(runner: Any) -> str:
    return getattr(runner, '__name__', str(runner)).rpartition('.')[2]


def _check_model(model: Mapping[str, Any]) -> None:
    if not is_pruning(model):
        raise ConfigError(f'rounds prune and train by turns, but the config\'s model is a {model.get("type")}, which '
                          "prunes nothing; give a pruning config, with model=dict(type='mmprune_ext.L1Norm', "
                          'architecture=...)')
    kind = MODELS.get(model['type']) if isinstance(model['type'], str) else model['type']
    if isinstance(kind, type) and not issubclass(kind, OneShotAlgorithm):
        known = sorted(name for name, other in registry.MODELS.module_dict.items()
                       if isinstance(other, type) and issubclass(other, OneShotAlgorithm))
        raise ConfigError(f'rounds: {kind.__name__} finds its channels while it trains, in one run; rounds are of '
                          f'methods that prune before they train: {", ".join(known)}')
    if isinstance(model['architecture'], Mapping) and is_compact(model['architecture']):
        raise ConfigError('rounds: model.architecture is a compact model, but choices are told in channels of the '
                          'dense one; give the dense architecture, and compact.pth as model.checkpoint')
    if model.get('units') is not None:
        raise ConfigError(f'rounds choose channels, but model.units ({model["units"]!r:.100}) says which stay; take '
                          'units or rounds out, and begin with the weights of a dense model')


def _read(section: Any) -> tuple[int, list[Target] | None]:
    """Return the number of rounds and their targets, ``None`` for the model's own."""
    if section is None:
        raise ConfigError('runner_type is RoundsRunner, but the config does not say how many rounds; set rounds=5')
    if not isinstance(section, Mapping):
        return _whole(section, ROUNDS), None
    for key in section:
        if key not in ('num', 'targets'):
            near = nearest(key, ('num', 'targets'), 1)
            raise ConfigError(f'rounds: unknown key "{key}"; ' + (f'did you mean {near[0]}?' if near else
                                                                  'it may have num and targets'))
    targets, number = section.get('targets'), section.get('num')
    if targets is None:
        return _whole(number, 'rounds.num'), None
    if not isinstance(targets, Sequence) or isinstance(targets, str) or not targets:
        raise ConfigError('rounds.targets should be a list with what each round is pruned to, such as '
                          f'[dict(budget=dict(flops=0.8)), dict(budget=dict(flops=0.6))], but got {targets!r:.100}')
    if number is not None and _whole(number, 'rounds.num') != len(targets):
        raise ConfigError(f'rounds: num is {number}, but targets has {len(targets)} entries, one a round; make them '
                          'agree, or leave num out')
    return len(targets), [dict(target) if isinstance(target, Mapping) else target for target in targets]


def _whole(value: Any, where: str) -> int:
    if type(value) is not int or value < 1:
        raise ConfigError(f'{where} is the number of rounds, at least 1, but got {value!r:.100}')
    return value


def _spread(model: Mapping[str, Any], number: int) -> list[Target]:
    """Return the model's own target for each of a number of rounds."""
    given = {key: model[key] for key in KEYS if model.get(key) is not None}
    if len(given) != 1:
        raise ConfigError('rounds: the model should have target_pruning_ratio or budget (one of them), or '
                          f'rounds.targets what each round is pruned to, but got {given!r:.200}')
    if 'budget' not in given:
        return [copy.deepcopy(given) for _ in range(number)]
    budget = _budget(given['budget'], 'model')
    return [{'budget': {**given['budget'], budget.resource: budget.share ** (step / number)}}
            for step in range(1, number + 1)]


def _budget(value: Any, where: str) -> Budget:
    if not isinstance(value, Mapping):
        raise ConfigError(f'{where}: budget should say what remains, such as dict(flops=0.5), but got {value!r:.100}')
    try:
        return Budget.from_config(value)
    except PruningError as error:
        raise ConfigError(f'{where}: {error}') from error


def _check_target(target: Any, where: str, number: int) -> None:
    if not isinstance(target, Mapping) or len(target) != 1 or set(target) - set(KEYS):
        raise ConfigError(f'{where} should be dict(target_pruning_ratio=...) or dict(budget=...), but got '
                          f'{target!r:.200}')
    if 'budget' in target:
        _budget(target['budget'], where)
        return
    ratio = target['target_pruning_ratio']
    if isinstance(ratio, (str, Path)) and not is_sparsity(str(ratio)):
        content = load_json(ratio)
        if number > 1 and isinstance(content, dict) and any(isinstance(value, Mapping) for value in content.values()):
            raise ConfigError(f'target_pruning_ratio: {ratio} is a channel-unit file, whose numbers are of the dense '
                              f'model, and cannot be taken off {number} times; give ratios')
    values = list(ratio.values()) if isinstance(ratio, Mapping) else [ratio]
    for value in values:
        if isinstance(value, (int, float)) and not 0 <= value < 1:
            raise ConfigError(f'{where}: a pruning ratio is the share of channels removed, at least 0 and below 1, '
                              f'but got {value!r}')


def _check_falling(targets: Sequence[Target]) -> None:
    """Check that budgets of one resource fall from round to round."""
    before: dict[tuple[str, str], float] = {}
    for number, target in enumerate(targets, 1):
        if 'budget' not in target:
            continue
        budget = Budget.from_config(target['budget'])
        key = budget.resource, budget.scope
        if budget.share >= before.get(key, 2.0):
            raise ConfigError(f'rounds: round {number} is to leave {budget.share:.4g} of the {budget.resource}, and an '
                              f'earlier one leaves {before[key]:.4g}; shares are of the dense model, and must fall '
                              'from round to round')
        before[key] = budget.share
