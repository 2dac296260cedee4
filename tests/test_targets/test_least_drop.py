"""The least predicted drop within a limit: against every combination, on networks of all kinds of products."""
from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmprune_ext.analysis import CostModel, complexity
from mmprune_ext.errors import TargetError
from mmprune_ext.targets import least_drop as module
from mmprune_ext.targets.least_drop import Option, least_drop
from mmprune_ext.units import UnitSet, slim, trace_units

KINDS = ('macs', 'params', 'channels', 'volume')


class Sums(nn.Module):
    """A layer that reads and writes one unit (a square), one that reads two units side by side, a depthwise one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.inner, self.outer = nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.square = nn.Conv2d(6, 6, 3, padding=1)
        self.branch = nn.Conv2d(6, 5, 1)
        self.depthwise = nn.Conv2d(11, 11, 3, padding=1, groups=11)
        self.joined = nn.Conv2d(11, 7, 3)
        self.head = nn.Linear(7 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.outer(self.inner(x).relu())
        x = (x + self.square(x)).relu()
        x = self.depthwise(torch.cat([x, self.branch(x).relu()], 1))
        return self.head(self.joined(x).relu().flatten(1))


class Groups(nn.Module):
    """A grouped convolution, whose cost is divided."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.last = nn.Conv2d(12, 5, 3, padding=1)
        self.head = nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.grouped(self.stem(x).relu()).relu()).relu())


def traced(net: type[nn.Module]) -> tuple[nn.Module, UnitSet, CostModel]:
    torch.manual_seed(0)
    model = net()
    units = trace_units(model, (8, 8), scope='all')
    counted = complexity(model, (8, 8), flops=False)
    return model, units, CostModel(units, counted.per_layer, model, '', counted.per_layer_outputs)


def drawn(units: UnitSet, seed: int) -> dict[str, list[Option]]:
    """Return the whole unit and three random widths of each, with drops that may be alike, negative or infinite."""
    rng = np.random.default_rng(seed)
    options = {}
    for name, unit in units.prunable.items():
        keeps = rng.choice(np.arange(1, unit.num_channels), min(3, unit.num_channels - 1), replace=False)
        drops = np.round(rng.normal(3, 4, len(keeps)) * 2) / 2
        drops[rng.random(len(keeps)) < 0.1] = np.inf
        options[name] = [Option(unit.num_channels, 0.0), *map(Option, keeps.tolist(), drops.tolist())]
    return options


def drop_of(options: dict[str, list[Option]], keeps: dict[str, int]) -> float:
    return sum(max(point.drop, 0) for name, points in options.items() for point in points if point.keep == keeps[name])


def every(options: dict[str, Sequence[Option]]) -> list[dict[str, int]]:
    return [dict(zip(options, (point.keep for point in points))) for points in itertools.product(*options.values())]


@pytest.mark.parametrize('largest', [12000, 0], ids=['tight', 'loose'])
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(('net', 'names'), [
    (Sums, ['stem', 'inner', 'branch', 'joined']), (Groups, ['stem', 'grouped', 'last'])])
def test_against_every_combination(monkeypatch, net, names, kind, largest):
    def forbidden(*_: Any) -> None:
        raise AssertionError('the program allowed what is beyond the limit')
    monkeypatch.setattr(module, 'MAX_PAIRS', largest)
    monkeypatch.setattr(module._Program, 'forbid', forbidden)
    _, units, costs = traced(net)
    assert list(units.prunable) == names
    for seed in range(3):
        options = drawn(units, seed)
        known = [(costs.terms(kind).cost(costs.vector(keeps)), drop_of(options, keeps)) for keeps in every(options)]
        allowed = sorted(cost for cost, drop in known if drop < np.inf)
        for place in (0, len(allowed) // 10, len(allowed) // 3, len(allowed) - 1):
            for limit in (allowed[place], allowed[place] + 0.5):
                found = least_drop(options, costs, kind, limit)
                assert costs.terms(kind).cost(costs.vector(found)) <= limit
                assert drop_of(options, found) == min(drop for cost, drop in known if cost <= limit)


@pytest.mark.parametrize('net', [Sums, Groups])
@pytest.mark.parametrize('kind', KINDS)
def test_costs_in_two_variables_at_most(net, kind):
    """The polynomial that the program holds is the cost, at any kept numbers."""
    _, units, costs = traced(net)
    names = list(units.prunable)[1:]  # the first stays whole
    constant, own, products = module._quadratic(costs, kind, names)
    rng = np.random.default_rng(0)
    for _ in range(20):
        keeps = np.array([rng.integers(1, units[name].num_channels + 1) for name in names])
        expected = costs.terms(kind).cost(costs.vector(dict(zip(names, keeps.tolist()))))
        assert constant + own @ keeps + keeps @ products @ keeps == pytest.approx(expected, abs=1e-6)
    assert (np.tril(products, -1) == 0).all()


def test_what_was_forbidden_is_not_given_again():
    _, _, costs = traced(Sums)
    options = {'inner': [Option(1, 2.0), Option(4, 0.0)], 'branch': [Option(2, 1.0), Option(5, 0.0)]}
    program = module._Program(options, costs, 'channels', 20)
    given = []
    for _ in range(2):
        given.append(program.solve())
        program.forbid(given[-1])
    assert given == [{'inner': 4, 'branch': 2}, {'inner': 1, 'branch': 5}]  # 6 + 7 channels stay beside them
    program.forbid({'inner': 1, 'branch': 2})
    with pytest.raises(TargetError, match='no choice of measured widths'):
        program.solve()


def test_what_is_left_of_the_limit_goes_to_the_units_that_are_pruned_most():
    """By hand: 4 + 7 channels; all narrower points cost nothing, so that the largest choice that fits is wanted."""
    _, units, costs = traced(Sums)
    options = {'inner': [Option(4, 0.0), Option(3, 0.0), Option(1, -2.0)],
               'joined': [Option(7, 0.0), Option(4, -1.0), Option(2, 0.0)]}
    whole = {name: unit.num_channels for name, unit in units.prunable.items()}

    def found(removed: int) -> list[int]:
        keeps = least_drop(options, costs, 'channels', sum(whole.values()) - removed)
        return [keeps['inner'], keeps['joined']]
    assert found(0) == [4, 7]
    # From 1 of 4 and 2 of 7: inner to 3 (3 of 4), joined to 4 (4 of 7), joined to 7 where it fits, inner to 4.
    assert found(1) == [3, 7]
    assert found(3) == [4, 4]
    assert found(4) == [3, 4]
    assert found(6) == [3, 2]
    assert found(8) == [1, 2]


def test_a_limit_below_the_smallest_widths():
    _, _, costs = traced(Sums)
    with pytest.raises(TargetError, match='no choice of measured widths was found within the budget'):
        least_drop({'inner': [Option(4, 0.0), Option(2, 1.0)]}, costs, 'channels', 3)


def test_cost_is_that_of_the_slimmed_model():
    """The limit holds for the model itself, not only for the formula that the program was made of."""
    model, units, costs = traced(Sums)
    limit = 0.4 * complexity(model, (8, 8)).macs
    for name, keep in least_drop(drawn(units, 1), costs, 'macs', limit).items():
        units[name].choose(range(keep))
    assert complexity(slim(model, units), (8, 8)).macs <= limit


def test_without_scipy(monkeypatch):
    _, units, costs = traced(Groups)
    monkeypatch.setitem(sys.modules, 'scipy', None)
    with pytest.raises(TargetError, match='found by scipy, which is not installed: pip install scipy'):
        least_drop(drawn(units, 0), costs, 'params', 1e9)


def test_another_budget_is_quick(classifier):
    """ResNet-56: 30 units of 10 points, drops that grow as measured ones do, in steps of one of 2,000 samples."""
    model = classifier(dict(type='mmprune_ext.CifarResNet', depth=56), 64)
    units = trace_units(model, (32, 32))
    counted = complexity(model, (32, 32), flops=False)
    costs = CostModel(units, counted.per_layer, model)
    rng = np.random.default_rng(0)
    options = {}
    for name, unit in units.prunable.items():
        coupled = len(unit.producers) > 1
        most, power = rng.uniform(40, 80) if coupled else rng.uniform(1, 40), rng.uniform(1.5, 4)
        options[name] = [Option(unit.num_channels, 0.0), *(
            Option(unit.kept_number(tenth / 10), round(20 * (most * (tenth / 10) ** power + rng.normal(0, 0.15))) / 20)
            for tenth in range(1, 10))]
    assert len(options) == 30
    took = []
    for share in (0.7, 0.5, 0.4):
        started = time.process_time()
        keeps = least_drop(options, costs, 'macs', share * counted.macs)
        took.append(time.process_time() - started)
        assert 0.98 * share < costs.macs(keeps) / counted.macs <= share
    assert min(took) < 1
    assert max(took) < 5
