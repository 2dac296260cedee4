"""Check by execution that a model still computes the same after its channels are removed.

Labels see how channels flow, but not sizes that the code holds as numbers (head counts, fixed
split sizes, reshape constants). So a slimmed copy is run against a reference: the dense model in
which the removed channels are silenced, at their producers and at every follower. Units that break
the copy are marked not prunable, with the error as the reason.
"""

from __future__ import annotations

import copy
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd

from mmprune_ext.ops import StripeConv2d, ZeroPadShortcut
from mmprune_ext.units.demo_inputs import set_training
from mmprune_ext.units.kinds.own_weights import Silencing
from mmprune_ext.units.kinds.positions import SinePositionRule
from mmprune_ext.units.labels import tensors_in
from mmprune_ext.units.layers import replace_parameter, rule_for
from mmprune_ext.units.parameters.computed import make_plain
from mmprune_ext.units.reasons import Reason
from mmprune_ext.units.slimming import random_choice, removed_positions, slim_checked
from mmprune_ext.units.tracing.decisions import Decisions
from mmprune_ext.units.unit import ChannelUnit
from mmprune_ext.units.unit_set import UnitSet

Forward = Callable[[nn.Module], Any]
Judge = Callable[[nn.Module, UnitSet], None]
_TOLERANCE = 1e-3
_TURNED = 1e-2


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


# ---------------------------------------------------------------- the reference


def _branch(model: nn.Module) -> nn.Module:
    """Return a copy of a model that shares the values of its parameters until they are replaced."""
    return copy.deepcopy(model, {id(p): nn.Parameter(p.detach(), p.requires_grad)
                                 for p in model.parameters()})


def silence(model: nn.Module, units: UnitSet) -> nn.Module:
    """Zero the channels that the units' choices remove, leaving all shapes.

    Producers and followers give zero for such a channel. Layer and group normalisation, whose
    statistics run over the channels, are made to normalise over the kept ones alone.

    Args:
        model: The dense model, changed; its parameters are replaced and stay as they were.
        units: Its channel units with choices.
    """
    modules = dict(model.named_modules())
    for module in modules.values():
        make_plain(module)
    own = {member.module for unit in units.values() for member in unit.producers if member.dim is not None
           and not isinstance(modules[member.module.rpartition('.')[0]], nn.MultiheadAttention)}
    silent: dict[str, np.ndarray] = {}
    for (path, side, dim), places in removed_positions(units).items():
        index = torch.from_numpy(places)
        if path in own and any(member.dim == dim for unit in units.values() for member in unit.producers
                               if member.module == path):
            silent[path] = places
        elif dim is not None:
            owner, _, name = path.rpartition('.')
            _zero(modules[owner], name, dim, index)
        elif side == 'out':
            _silence_layer(modules[path], index)
    for owner in {path.rpartition('.')[0] for path in silent}:
        Silencing(model, silent).around(modules[owner])
    return model


def _silence_layer(module: nn.Module, removed: Tensor) -> None:
    if isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
        module.register_forward_hook(_kept_norm(removed))
        return
    if isinstance(module, (ZeroPadShortcut, StripeConv2d)) or isinstance(rule_for(module), SinePositionRule):
        module.register_forward_hook(
            lambda m, args, out: out.index_fill(1, removed.to(out.device), 0))
        return
    if isinstance(module, _ConvTransposeNd):
        weight = module.weight.detach().clone()
        per_group = module.out_channels // module.groups
        for place in removed.tolist():
            rows = slice((place // per_group) * (module.in_channels // module.groups),
                         (place // per_group + 1) * (module.in_channels // module.groups))
            weight[rows, place % per_group] = 0
        replace_parameter(module, 'weight', weight)
    else:
        _zero(module, 'weight', 0, removed)
    for name in ('bias', 'running_mean'):
        _zero(module, name, 0, removed)


def _zero(module: nn.Module, name: str, dim: int, removed: Tensor) -> None:
    tensor = getattr(module, name, None)
    if tensor is not None:
        replace_parameter(module, name, tensor.detach().index_fill(dim, removed, 0))


def _kept_norm(removed: Tensor) -> Callable[..., Tensor]:
    """Return a hook that replaces a norm layer's output by one over the kept channels."""
    def hook(module: nn.Module, args: tuple, out: Tensor) -> Tensor:
        x = args[0]
        grouped = isinstance(module, nn.GroupNorm)
        size = module.num_channels if grouped else module.normalized_shape[0]
        dim = 1 if grouped or (x.dim() > 1 and x.shape[1] == size) else x.dim() - 1
        if not grouped and x.shape[-1] == size:
            # Both may have this size; the layer's own output tells which it is.
            last = F.layer_norm(x, (size,), module.weight, module.bias, module.eps)
            dim = x.dim() - 1 if torch.allclose(last, out, rtol=1e-3, atol=1e-3) else dim
        keep = torch.from_numpy(np.setdiff1d(np.arange(size), removed.numpy()))
        weight, bias = (None if p is None else p[keep] for p in (module.weight, module.bias))
        kept = x.index_select(dim, keep)
        if grouped:
            groups = len(keep) if module.num_groups == size else module.num_groups
            kept = F.group_norm(kept, groups, weight, bias, module.eps)
        else:
            kept = F.layer_norm(kept.movedim(dim, -1), (len(keep),), weight, bias,
                                module.eps).movedim(-1, dim)
        return torch.zeros_like(x).index_copy(dim, keep, kept.to(x.dtype))
    return hook


def excite(model: nn.Module) -> list[Any]:
    """Make every layer's effect visible in the output, in place; return hook handles to remove.

    Initial values hide mistakes: a zero scale in the last normalisation of a block, a layer scale of
    1e-6, zero biases. They are replaced by values of order one, and batch statistics are taken from
    the first input, so that activations neither vanish nor explode.
    """
    generator = torch.Generator().manual_seed(0)
    layered: set[int] = set()
    handles = []
    for module in model.modules():
        if rule_for(module) is None:
            continue
        for name, parameter in module.named_parameters(recurse=False):
            layered.add(id(parameter))
            _excite_parameter(parameter, name == 'bias', parameter.dim() < 2, generator)
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            handles.append(module.register_forward_pre_hook(_take_statistics))
    for parameter in model.parameters():
        if id(parameter) not in layered:
            _excite_parameter(parameter, False, True, generator)
    return handles


def _excite_parameter(parameter: Tensor, bias: bool, scale: bool,
                      generator: torch.Generator) -> None:
    data = parameter.data
    if not data.is_floating_point() or not data.numel():
        return
    if not bias and not scale and bool(data.any()):
        return
    noise = torch.rand(data.shape, generator=generator).to(data)
    if bias:
        data.copy_(0.2 * noise - 0.1)
    elif scale:
        data.copy_(0.5 + noise)
    else:
        data.copy_((noise - 0.5) * (12 / max(data[0].numel(), 1)) ** 0.5)


def _take_statistics(module: nn.Module, args: tuple) -> None:
    x = args[0]
    dims = [d for d in range(x.dim()) if d != 1]
    if x.numel() // x.shape[1] >= 4:
        module.running_mean.copy_(x.mean(dims))
        module.running_var.copy_(x.var(dims).clamp_min(1e-2))


# ---------------------------------------------------------------- the comparison


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
    for want, got in zip(wanted, given):
        if [t.shape for t in want] != [t.shape for t in got]:
            raise Mismatch(Reason.FIXED_SIZE, 'the outputs have other shapes')
        for a, b in zip(want, got):
            if not a.is_floating_point():
                # Labels and indices: rounding may turn a few.
                if a.numel() and float((a != b).float().mean()) > _TURNED:
                    raise Mismatch(Reason.VALUES, 'integer outputs differ')
            elif a.numel():
                error = float((a - b).abs().max() / a.abs().max().clamp_min(1e-12))
                if not error <= _TOLERANCE:
                    raise Mismatch(Reason.VALUES, f'relative difference {error:.1e}')


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
