"""The search for the widest choice within a limit, for a resource and an order in which channels go."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from torch import Tensor, nn

from mmprune_ext.analysis import CostModel, complexity
from mmprune_ext.errors import TargetError
from mmprune_ext.units import ChannelUnit, Reason, UnitSet
from mmprune_ext.units.demo_inputs import DemoInputs

Keeps = dict[str, int]
Measure = Callable[[Keeps], float]
# A way from everything, at 0.0, to the smallest choice, at 1.0; a larger share never keeps more of a unit.
KeepsPath = Callable[[float], Keeps]
RESOURCES = ('flops', 'params', 'channels', 'volume')


def cost_model_of(units: UnitSet, resource: str, model: nn.Module, scope: str = '',
                  input_size: DemoInputs = None) -> tuple[CostModel, str]:
    """Return the cost model that knows a resource, and which of its costs the resource is.

    Args:
        units: The dense model's units.
        resource: ``flops`` (multiply-accumulates of convolution and linear layers), ``params``,
            ``channels`` (of the prunable units, whatever the scope) or ``volume`` (output values of
            convolution and linear layers).
        model: The dense model.
        scope: Path of the submodule whose resource is measured; empty for the model.
        input_size: What ``flops`` and ``volume`` are counted on, as of
            :func:`mmprune_ext.analysis.complexity`. Without it ``flops`` are the ``costs`` of the units.

    Raises:
        TargetError: For an unknown resource, or if there is nothing to count it on.
        PruningError: If the model has no submodule ``scope``, or does not run on ``input_size``.
    """
    if resource not in RESOURCES:
        raise TargetError(f'budget: the resource should be one of {", ".join(RESOURCES)}, but got {resource!r}')
    if resource in ('channels', 'params'):
        return CostModel(units, {}, model, scope if resource == 'params' else ''), resource
    if input_size is not None:
        counted = complexity(model, input_size, flops=False)
        cost = CostModel(units, counted.per_layer, model, scope, counted.per_layer_outputs)
        return cost, 'macs' if resource == 'flops' else resource
    if resource == 'volume':
        raise TargetError('budget: volume needs an input_size to count on')
    if not units.costs:
        raise TargetError('budget: flops needs units traced on this model, not read from a file, or an input_size')
    return CostModel(units, units.costs, model, scope), 'macs'


def measure_of(units: UnitSet, resource: str, model: nn.Module, scope: str = '',
               input_size: DemoInputs = None) -> Measure:
    """Return the function that says how much of a resource is left for given kept numbers.

    Units that are not named keep all. For arguments and errors see :func:`cost_model_of`.
    """
    costs, kind = cost_model_of(units, resource, model, scope, input_size)
    return lambda keeps: costs.terms(kind).cost(costs.vector(keeps))


def scope_hint(units: UnitSet, resource: str, model: nn.Module, scope: str = '', input_size: DemoInputs = None) -> str:
    """Return what to do where a budget is out of reach because little of the model may be pruned.

    For arguments see :func:`cost_model_of`.

    Returns:
        The end of a message; empty where the budget is of a part of the model, or all of it may be pruned.
    """
    outside = _parts(unit for unit in units.values() if unit.reason is Reason.OUT_OF_SCOPE)
    inside = _parts(unit for unit in units.values() if unit.prunable)
    outside = [part for part in outside if part not in inside]
    if scope or not outside or not inside or resource == 'channels':
        return ''
    whole = measure_of(units, resource, model, '', input_size)({})
    own = sum(measure_of(units, resource, model, part, input_size)({}) for part in inside)
    words = ' '.join(inside)
    parts = [f'; {words}, which may be pruned, has {own / whole:.1%} of the {resource} of the model: prune more of it '
             f'(--scope all, --scope {words} {outside[0]}; scope of the mutator in a config)']
    if len(inside) == 1:
        parts.append(f"let the share be one of {words} alone (--budget-scope {words}; budget=dict(scope='{words}'))")
    return ', or '.join(parts)


def _parts(units: Iterable[ChannelUnit]) -> list[str]:
    """Return the parts of a model (``backbone``, ``neck``) that units are of."""
    return list(dict.fromkeys(unit.name.partition('.')[0] for unit in units))


def fit(units: UnitSet, path: KeepsPath, measure: Measure, limit: float) -> Keeps:
    """Return the kept numbers that come nearest to a limit from below along a path.

    A bisection finds the place on the path; then single units are widened towards the choice just
    before it, as long as the limit allows.

    Args:
        units: The dense model's units.
        path: From ``0.0`` (everything) to ``1.0`` (the smallest choice), never wider on the way.
        measure: What a choice uses.
        limit: What it may use.

    Returns:
        The kept number of each unit on the path; those of ``path(1.0)`` where even they exceed the limit.
    """
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if measure(path(middle)) <= limit else (middle, high)
    return _fill(units, path(high), path(low), measure, limit)


def uniform_path(units: UnitSet) -> KeepsPath:
    """Return the path on which all prunable units lose the same share."""
    return lambda ratio: {name: unit.round_keep(int(unit.num_channels * (1 - ratio)))
                          for name, unit in units.prunable.items()}


def rank_path(units: UnitSet, ranked_scores: Mapping[str, Tensor]) -> KeepsPath:
    """Return the path on which the channels of lowest score go first, whatever their unit.

    Channels of equal score go together; :func:`fit` then keeps as many of them as the limit allows.

    Args:
        units: The dense model's units.
        ranked_scores: Scores ``(num_channels,)`` of each prunable unit, or of the units that the path is of,
            comparable between units.
    """
    names = [name for name in units.prunable if name in ranked_scores]
    ranked = [np.sort(ranked_scores[name].detach().cpu().double().numpy()) for name in names]
    everything = np.sort(np.concatenate(ranked))

    def path(share: float) -> Keeps:
        count = int(share * len(everything))
        threshold = everything[count] if count < len(everything) else np.inf
        return {n: units[n].round_keep(int(len(v) - np.searchsorted(v, threshold)))
                for n, v in zip(names, ranked)}
    return path


def _fill(units: UnitSet, under: Keeps, over: Keeps, measure: Measure, limit: float) -> Keeps:
    """Widen single units of a choice within the limit towards one beyond it, while it stays within."""
    keeps = dict(under)
    for name in sorted(keeps, key=lambda n: over[n] - under[n], reverse=True):
        unit = units[name]
        while keeps[name] < over[name]:
            wider = _next_width(unit, keeps[name])
            if measure({**keeps, name: wider}) > limit:
                break
            keeps[name] = wider
    return keeps


def fill_by_rank(units: UnitSet, keeps: Keeps, ranked_scores: Mapping[str, Tensor], measure: Measure,
                 limit: float) -> Keeps:
    """Return a choice on :func:`rank_path`, filled up with the next channels that the limit still allows.

    The next channel by score may be one that costs much; behind it are some that fit. What is left of the limit is
    in the end less than what any unit's next channel costs.

    Args:
        units: The dense model's units.
        keeps: A choice within the limit.
        ranked_scores: As of :func:`rank_path`.
        measure: What a choice uses.
        limit: What it may use.
    """
    keeps = dict(keeps)
    ordered = {name: ranked_scores[name].detach().cpu().double().sort(descending=True).values.tolist()
               for name in units.prunable}
    waiting = [(-scores[keeps[name]], name) for name, scores in ordered.items() if keeps[name] < len(scores)]
    heapq.heapify(waiting)
    while waiting:
        name = heapq.heappop(waiting)[1]
        wider = {**keeps, name: _next_width(units[name], keeps[name])}
        if measure(wider) > limit:
            continue  # nor will it fit when others are wider
        keeps = wider
        if keeps[name] < len(ordered[name]):
            heapq.heappush(waiting, (-ordered[name][keeps[name]], name))
    return keeps


def _next_width(unit: ChannelUnit, keep: int) -> int:
    return min(keep + unit.init_args.divisor, unit.num_channels)
