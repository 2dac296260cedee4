"""Find the channel units of a model."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mmprune_ext.draws import preserved_random_state
from mmprune_ext.errors import PruningError, TraceError
from mmprune_ext.units import demo_inputs as demo
from mmprune_ext.units.cache.store import Entry
from mmprune_ext.units.checking.silencing import excite
from mmprune_ext.units.checking.verify import compare, run_in_training, verify
from mmprune_ext.units.kinds.coverage import coverage_of
from mmprune_ext.units.kinds.own_weights import settle
from mmprune_ext.units.labels import tensors_in
from mmprune_ext.units.parameters.computed import refusal
from mmprune_ext.units.parameters.copies import copied, not_copied
from mmprune_ext.units.reasons import Reason
from mmprune_ext.units.spec import fingerprint
from mmprune_ext.units.tracing.effort import Watch, present_effort
from mmprune_ext.units.tracing.grouping import group
from mmprune_ext.units.tracing.reach import without_name
from mmprune_ext.units.tracing.tracer import Tracer
from mmprune_ext.units.unit_set import UnitSet


def trace_units(model: nn.Module, demo_inputs: demo.DemoInputs = None,
                scope: str | Sequence[str] = 'backbone', whole_heads: bool = False) -> UnitSet:
    """Return the channel units of a model.

    A copy of the model is executed once with channel labels beside its values, and every unit
    reported as prunable has survived a slimmed run of that copy. The model itself, and the random
    number generators, stay as they were.

    Args:
        model: The dense model: a detector, a classifier, a bare backbone, any ``nn.Module``.
        demo_inputs: What to run it on: a tensor ``(N, C, H, W)``, a size ``(H, W)`` or
            ``(C, H, W)``, keyword arguments, or a function that takes a model and runs it. By
            default one image of the size that the backbone states, else 224 x 224.
        scope: Submodules whose producers may be pruned: one name, several, or ``'all'``. A model
            without a ``backbone`` is pruned whole by default.
        whole_heads: Whether a channel of attention is one of its heads. By default it is one place in each of them.

    Returns:
        The units in execution order. ``costs`` holds the layers' multiply-accumulates.

    Raises:
        TraceError: If the model does not run on the demo inputs, or a command gives it too little time.
        PruningError: If the scope names no submodule.
    """
    prefixes = scope_prefixes(model, scope)
    effort = present_effort()
    entry = Entry.of(effort.cache, model, demo_inputs, prefixes, whole_heads)
    units = entry.load(model)
    if units is None:
        watch = Watch(type(model).__name__, effort)
        with watch.running():
            units = _trace(model, demo_inputs, prefixes, whole_heads, watch)
        entry.store(units)
    return units


def _trace(model: nn.Module, demo_inputs: demo.DemoInputs, prefixes: list[str], whole_heads: bool,
           watch: Watch) -> UnitSet:
    with preserved_random_state():
        torch.manual_seed(0)
        work = _working_copy(model)
        forward = demo.eval_pass(work, demo_inputs)
        handles = excite(work)
        try:
            tracer, output = _run(work, prefixes, forward, whole_heads)
        except Exception as error:  # the traced model's code may fail in any way
            if _is_our_own(error):
                raise
            raise TraceError(
                f'{type(model).__name__} does not run on its demo inputs: '
                f'{demo.failure_of(work, error)}. Give demo_inputs that it accepts: a tensor, a '
                'size, keyword arguments or a function that runs the model, dict(type=...) in a '
                'config') from error
        finally:
            for handle in handles:
                handle.remove()
        if not any(tensor.numel() for tensor in tensors_in(output)):
            raise TraceError(
                f'{type(model).__name__} returned no tensor on its demo inputs, so that a slimmed '
                'model cannot be compared with it. Give demo_inputs that make it return tensors')
        _trace_training(tracer, work, demo_inputs)
        settle(tracer)
        _freeze_shared(tracer)
        _freeze_computed(tracer)
        units = UnitSet(group(tracer), fingerprint(model), tracer.costs, functional=tracer.functional)
        _apply_scope(units, prefixes)
        verify(work, units, watch.counted(partial(compare, passes=[forward])))
        for training_pass in demo.training_passes(work, demo_inputs)[-1:]:
            verify(work, units, watch.counted(partial(run_in_training, forward=training_pass)))
        units.coverage = coverage_of(tracer, units.values())
    return units


def _run(work: nn.Module, prefixes: list[str], forward: demo.Forward, whole_heads: bool) -> tuple[Tracer, Any]:
    """Return a tracer that has followed a pass, and what the model returned.

    A view that makes several dimensions of channels does not say along which they lie. Where its rows turn out to be
    places in space, it is taken the other way in a second pass.
    """
    tracer = Tracer(work, prefixes, whole_heads)
    output = tracer.run(forward)
    maps = tracer.space.splits_frozen_for(Reason.SPACE)
    if not maps:
        return tracer, output
    again = Tracer(work, prefixes, whole_heads)
    again.space.as_maps = maps
    other = again.run(forward)
    return (again, other) if _free_channels(again) > _free_channels(tracer) else (tracer, output)


def _free_channels(tracer: Tracer) -> int:
    """Return how many channels of producers nothing holds back."""
    own = [labels for (_, role, _), labels in tracer.records.items() if role == 'producer']
    roots = np.unique(tracer.space.roots(np.concatenate([*own, np.zeros(1, dtype=np.int64)])))
    return len(np.setdiff1d(roots, [0, *tracer.space.frozen()]))


def _is_our_own(error: Exception) -> bool:
    """Whether an error arose in the tracing itself: a defect here, not in the model."""
    origin = traceback.extract_tb(error.__traceback__)[-1].filename
    return Path(__file__).resolve().parents[1] in Path(origin).resolve().parents


def scope_prefixes(model: nn.Module, scope: str | Sequence[str]) -> list[str]:
    """Return the paths of the submodules that a scope names; none means the whole model.

    Raises:
        PruningError: If a name is no submodule.
    """
    names = [scope] if isinstance(scope, str) else list(scope)
    children = dict(model.named_modules())
    if names == ['all'] or (names == ['backbone'] and 'backbone' not in children):
        return []
    for name in names:
        if name not in children or not name:
            options = [key for key, _ in model.named_children()]
            raise PruningError(f'scope: {type(model).__name__} has no submodule "{name}"; choose '
                               f'from {", ".join(["all", *options])}')
    return names


def in_scope(path: str, prefixes: Sequence[str]) -> bool:
    """Whether a path lies in one of some submodules (:func:`scope_prefixes`)."""
    return not prefixes or any(path == prefix or path.startswith(f'{prefix}.') for prefix in prefixes)


def _working_copy(model: nn.Module) -> nn.Module:
    try:
        work = copied(model)
    except Exception as error:  # copying runs code of the model's own
        raise TraceError(f'{type(model).__name__} cannot be copied for tracing: '
                         f'{not_copied(model) or f"{type(error).__name__}: {error}"}') from error
    with contextlib.suppress(Exception):  # the model's own code
        work.train(False)  # LeViT makes what it needs for inference then
    demo.set_training(work, False)
    return work.cpu().float()


@contextlib.contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Put all parameters and buffers back after the block, as objects and as values.

    Not by ``load_state_dict``: models leave out or rename what they load.
    """
    stores = [store for module in model.modules() for store in (module._parameters, module._buffers)]
    before = [dict(store) for store in stores]
    values = {id(t): (t, t.detach().clone()) for held in before for t in held.values() if t is not None}
    try:
        yield
    finally:
        for store, held in zip(stores, before):
            store.clear()
            store.update(held)
        for tensor, value in values.values():
            tensor.data = value


def _trace_training(tracer: Tracer, work: nn.Module, inputs: demo.DemoInputs) -> None:
    """Reach layers that only training uses; give up what a layer out of reach may read."""
    tracer.counting = False
    error_text = ''
    if not tracer.unreached():
        return
    with _restored(work):
        demo.set_training(work, True)
        for forward in demo.training_passes(work, inputs):
            if not tracer.unreached():
                break
            try:
                tracer.run(forward)
            except Exception as error:  # the traced model's code may fail in any way
                error_text = f'; {type(error).__name__}: {error}'
        demo.set_training(work, False)
    missing = tracer.unreached()
    dead = without_name(work, missing)
    missing = [path for path in missing if path not in dead]
    if missing:
        detail = f'{missing[0]}{f" and {len(missing) - 1} more" if len(missing) > 1 else ""}'
        why = (Reason.NOT_REACHED, (detail + error_text)[:200])
        # A layer inside the scope does not read what leaves it.
        crossing = [] if all(in_scope(path, tracer.boundary) for path in missing) else tracer.crossing
        for labels in [*crossing, *tracer.readable_by(missing)]:
            tracer.space.freeze(labels, why)


def _freeze_shared(tracer: Tracer) -> None:
    """Freeze what meets a parameter of several modules: slimming one would part them."""
    owners: dict[int, list[str]] = {}
    for path, module in tracer.model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(f'{path}.{name}' if path else name)
    for names in owners.values():
        paths = {*names, *(name.rpartition('.')[0] for name in names)}
        for (path, _, _), labels in tracer.records.items():
            if len(names) > 1 and path in paths:
                tracer.space.freeze(labels, (Reason.LAYER, f'one weight for {", ".join(names)}'))


def _freeze_computed(tracer: Tracer) -> None:
    """Freeze what meets a weight that is computed from all of itself."""
    modules = dict(tracer.model.named_modules())
    for (path, _, dim), labels in tracer.records.items():
        why = '' if dim is not None else refusal(modules[path], path)
        if why:
            tracer.space.freeze(labels, (Reason.WEIGHT, why))


def _apply_scope(units: UnitSet, prefixes: list[str]) -> None:
    for unit in units.values():
        outside = [m.module for m in unit.producers if not in_scope(m.module, prefixes)]
        if outside:
            unit.forbid(Reason.OUT_OF_SCOPE, outside[0])
