"""Check by execution that a model still computes the same after its channels are removed.

Labels see how channels flow, but not sizes that the code holds as numbers (head counts, fixed
split sizes, reshape constants). So a slimmed copy is run against a reference: the dense model in
which the removed channels are silenced, at their producers and at every follower. Units that break
the copy are marked not prunable, with the error as the reason.
"""

from __future__ import annotations

import copy
import traceback
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmprune_ext.units.checking.decisions import Decisions
from mmprune_ext.units.checking.silencing import silence
from mmprune_ext.units.demo_inputs import set_training
from mmprune_ext.units.labels import tensors_in
from mmprune_ext.units.reasons import Reason
from mmprune_ext.units.slimming import random_choice, slim_checked
from mmprune_ext.units.unit import ChannelUnit
from mmprune_ext.units.unit_set import UnitSet

Forward = Callable[[nn.Module], Any]
Judge = Callable[[nn.Module, UnitSet], None]
_TOLERANCE = 1e-3
_TURNED = 1e-2
# A smaller difference is rounding. So is a larger one, below the tolerance, where moving the weights by their last
# digits makes one of the same order.
_DOUBTFUL = 1e-5
_MARGIN = 30


class Mismatch(Exception):
    """The slimmed model does not do what the silenced dense model does.

    Attributes:
        reason: What is wrong.
        detail: The error behind it.
        place: Path of the innermost module whose code raised it; empty where none did.
    """

    def __init__(self, reason: Reason, detail: str, place: str = '') -> None:
        super().__init__(f'{reason.value}: {detail}')
        self.reason, self.detail, self.place = reason, detail, place


def _fixed_size(error: Exception, model: nn.Module, where: str = '') -> Mismatch:
    """Return what an error of a slimmed model tells."""
    paths = {id(module): path for path, module in model.named_modules()}
    runners = [frame.f_locals.get('self') for frame, _ in traceback.walk_tb(error.__traceback__)]
    place = next((paths[id(runner)] for runner in reversed(runners) if id(runner) in paths), '')
    text = ' '.join(str(error).split())
    return Mismatch(Reason.FIXED_SIZE, f'{where}{type(error).__name__}: {text[:160]}', place)


def _branch(model: nn.Module) -> nn.Module:
    """Return a copy of a model that shares the values of its parameters until they are replaced."""
    known: dict[int, Any] = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in model.parameters()}
    # A module has a dozen dicts of hooks, mostly empty: to copy these takes longer than all the rest.
    known.update((id(value), type(value)()) for module in model.modules() for value in vars(module).values()
                 if type(value) in (OrderedDict, dict, set, list) and not value)
    return copy.deepcopy(model, known)


def _run(forward: Forward, model: nn.Module) -> list[Tensor]:
    """Run a pass with the same random numbers each time."""
    torch.manual_seed(0)
    return tensors_in(forward(model))


def compare(model: nn.Module, units: UnitSet, passes: Sequence[Forward]) -> None:
    """Compare the slimmed copy with the silenced copy of a model in every pass.

    Raises:
        Mismatch: If the slimmed copy fails to run or gives other outputs.
    """
    with torch.no_grad():
        reference = silence(_branch(model), units)
        decisions = [Decisions() for _ in passes]
        wanted = []
        for forward, decided in zip(passes, decisions):
            with decided.recorded():
                wanted.append(_run(forward, reference))
        del reference
        slimmed = _branch(model)
        try:
            slim_checked(slimmed, units)
            given = []
            for forward, decided in zip(passes, decisions):
                with decided.replayed():
                    given.append(_run(forward, slimmed))
        except Exception as error:  # the traced model's code may fail in any way
            raise _fixed_size(error, slimmed) from error
    error = max(map(_difference, wanted, given))
    if error > _DOUBTFUL:
        # Few channels may change a number that the code takes from their count by little.
        rounding = _rounding(model, units, passes, decisions, wanted)
        if error > _MARGIN * rounding:
            raise Mismatch(Reason.VALUES, f'relative difference {error:.1e}, of which rounding explains {rounding:.1e}')


def _difference(wanted: list[Tensor], given: list[Tensor]) -> float:
    """Return the largest difference between two lists of outputs, relative to the largest value of each.

    Raises:
        Mismatch: If they have other shapes or integers, or differ by more than the tolerance.
    """
    if [t.shape for t in wanted] != [t.shape for t in given]:
        raise Mismatch(Reason.FIXED_SIZE, 'the outputs have other shapes')
    errors = [0.0]
    for a, b in zip(wanted, given):
        if not a.is_floating_point():
            # Labels and indices: rounding may turn a few.
            if a.numel() and float((a != b).float().mean()) > _TURNED:
                raise Mismatch(Reason.VALUES, 'integer outputs differ')
        elif a.numel():
            errors.append(float((a - b).abs().max() / a.abs().max().clamp_min(1e-12)))
            if not errors[-1] <= _TOLERANCE:
                raise Mismatch(Reason.VALUES, f'relative difference {errors[-1]:.1e}')
    return max(errors)


def _rounding(model: nn.Module, units: UnitSet, passes: Sequence[Forward], decisions: Sequence[Decisions],
              wanted: list[list[Tensor]]) -> float:
    """Return how much the silenced copy's outputs change with the last digits of its weights."""
    moved = silence(_branch(model), units)
    generator = torch.Generator().manual_seed(1)
    given = []
    with torch.no_grad():
        for parameter in filter(torch.is_floating_point, moved.parameters()):
            step = torch.finfo(parameter.dtype).eps * (2 * torch.rand(parameter.shape, generator=generator) - 1)
            parameter.data = parameter.data * (1 + step)
        for forward, decided in zip(passes, decisions):
            with decided.replayed():
                given.append(_run(forward, moved))
    try:
        return max(map(_difference, wanted, given))
    except Mismatch:
        return _TOLERANCE


def run_in_training(model: nn.Module, units: UnitSet, forward: Forward) -> None:
    """Run the slimmed copy of a model in train mode.

    Its values are not compared: dropout differs with the widths.

    Raises:
        Mismatch: If it fails where the dense model does not.
    """
    def attempt(trained: nn.Module) -> Mismatch | None:
        set_training(trained, True)
        try:
            with torch.no_grad():
                _run(forward, trained)
        except Exception as error:  # the traced model's code may fail in any way
            return _fixed_size(error, trained, 'in train mode: ')
        return None
    failure = attempt(slim_checked(_branch(model), units))
    if failure is not None and attempt(_branch(model)) is None:
        raise failure


def verify(model: nn.Module, units: UnitSet, judge: Judge, seed: int = 0) -> None:
    """Mark the units that do not survive slimming as not prunable.

    All prunable units are tried at once. When that fails, some are told apart, down to single units: at first those
    in the module whose code failed and their like (same roles of same-typed layers) from all others. What is left at
    the end has passed together.

    Args:
        model: An excited dense model (:func:`excite`) whose values may be lost.
        units: Its units; ``prunable``, ``reason`` and ``detail`` are updated.
        judge: Raises :class:`Mismatch` if the model, slimmed by given units, is wrong
            (:func:`compare`, :func:`run_in_training`).
        seed: Seed of the random choices.
    """
    _Search(model, units, judge, seed).add(list(units.prunable.values()))
    for part in _that_lost_as_many(units, seed):
        _Search(model, units, judge, seed).add(part)


def _that_lost_as_many(units: UnitSet, seed: int) -> tuple[list[ChannelUnit], list[ChannelUnit]]:
    """Return the units that by chance lost as many channels as another of their width in a layer: one, and the others.

    Code that takes the half of what it finds takes that of both then.
    """
    trial = units.copy()
    random_choice(list(trial.prunable.values()), np.random.default_rng(seed))
    alike: dict[tuple, dict[str, None]] = {}
    for name, unit in trial.prunable.items():
        for member in unit.members:
            alike.setdefault((member.module, unit.num_channels, unit.keep), {})[name] = None
    first = {name for names in alike.values() for name in list(names)[:1] if len(names) > 1}
    others = {name for names in alike.values() for name in list(names)[1:]} - first
    return [units[name] for name in sorted(first)], [units[name] for name in sorted(others)]


class _Search:
    """The search for units that survive slimming together.

    Attributes:
        passed: Names of those that did.
    """

    def __init__(self, model: nn.Module, units: UnitSet, judge: Judge, seed: int) -> None:
        self.model, self.units, self.judge, self.seed = model, units, judge, seed
        self.passed: set[str] = set()
        types = {path: type(module).__name__ for path, module in model.named_modules()}
        self._kinds = {name: _kind(unit, types) for name, unit in units.items()}
        self._failed: Counter[tuple] = Counter()  # single units by kind
        self._good: set[tuple] = set()  # kinds of units that passed
        self._failures: dict[frozenset[str], Mismatch | None] = {}

    def add(self, some: list[ChannelUnit]) -> None:
        """Let those of some units pass that do so together with those that passed before; forbid the others.

        A kind of which two units failed, one by one, and none has passed so far, is not told apart any more.
        """
        if not some:
            return
        kinds = {self._kinds[unit.name] for unit in some}
        failure = self._try(frozenset(self.passed | {unit.name for unit in some}))
        if failure is None:
            self.passed |= {unit.name for unit in some}
            self._good |= kinds
        elif len(some) == 1 or (len(kinds) == 1 and kinds <= self._given_up):
            for unit in some:
                unit.forbid(failure.reason, failure.detail)
            self._failed.update(kinds)
        else:
            for part in self._parts(some, failure.place):
                self.add(part)

    @property
    def _given_up(self) -> set[tuple]:
        return {kind for kind, count in self._failed.items() if count > 1} - self._good

    def _try(self, names: frozenset[str]) -> Mismatch | None:
        """Slim these units alone at random; return what went wrong."""
        if names not in self._failures:
            trial = self.units.copy()
            random_choice([unit for name, unit in trial.items() if name in names], np.random.default_rng(self.seed))
            self._failures[names] = None
            try:
                self.judge(self.model, trial)
            except Mismatch as mismatch:
                self._failures[names] = mismatch
        return self._failures[names]

    def _parts(self, some: list[ChannelUnit], place: str) -> list[list[ChannelUnit]]:
        """Split units that failed together at a place; those that most likely pass come first."""
        classes: dict[tuple, list[ChannelUnit]] = {}
        for unit in some:
            classes.setdefault(self._kinds[unit.name], []).append(unit)
        near = self._near(some, place)
        suspected = {self._kinds[unit.name] for unit in near}
        bad = classes.keys() & (self._failed.keys() - self._good)
        if len(classes) == 1:
            half = len(some) // 2 if classes.keys() <= self._good else 1
            return [some[:half], some[half:]]
        if bad:
            return [sum((classes[kind] for kind in classes if kind not in bad), []),
                    *(classes[kind] for kind in classes if kind in bad)]
        if 0 < len(suspected) < len(classes):
            return [sum((classes[kind] for kind in classes if kind not in suspected), []),
                    sum((classes[kind] for kind in classes if kind in suspected), [])]
        if 0 < len(near) < len(some):
            names = {unit.name for unit in near}
            return [near, [unit for unit in some if unit.name not in names]]
        members, half = list(classes.values()), len(classes) // 2
        return [sum(members[:half], []), sum(members[half:], [])]

    @staticmethod
    def _near(some: list[ChannelUnit], place: str) -> list[ChannelUnit]:
        """Return the units that lie in the innermost module around a place in which any does."""
        near: list[ChannelUnit] = []
        while place and not near:
            near = [unit for unit in some if any(f'{m.module}.'.startswith(f'{place}.') for m in unit.members)]
            place = place.rpartition('.')[0]
        return near


def _kind(unit: ChannelUnit, types: dict[str, str]) -> tuple:
    """Return what like units share: the last parts of the paths of their layers, and the types there."""
    def role_of(path: str) -> tuple[str, ...]:
        owner, _, name = path.rpartition('.')
        around = owner.rpartition('.')[2]
        return name, '*' if around.isdigit() else around, types.get(path, ''), types.get(owner, '')
    return tuple((role, tuple(sorted({role_of(member.module) for member in getattr(unit, role)})))
                 for role in ('producers', 'consumers'))
