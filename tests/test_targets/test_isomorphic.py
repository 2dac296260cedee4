"""Ranking among units of like structure, by hand-written scores."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmprune_ext.errors import TargetError
from mmprune_ext.mutators import L1Mutator
from mmprune_ext.targets.isomorphic import isomorphic_groups, isomorphic_path
from mmprune_ext.targets.target import Budget, keeps_from_budget
from mmprune_ext.units import UnitSet, trace_units


def chain() -> nn.Sequential:
    """Return layers of which 1 and 2 are alike: made by four-to-four convolutions, and read by such."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3),
                         nn.Conv2d(4, 8, 1), nn.Conv2d(8, 2, 1))


def scores() -> dict[str, Tensor]:
    return {'0': torch.tensor([900.0, 700, 800, 600]), '1': torch.tensor([4.0, 1, 3, 2]),
            '2': torch.tensor([10.0, 2.5, 30, 40]), '3': torch.tensor([0.1, 0.2, 0.3, 0.4]), '4': torch.arange(8.0)}


def traced(model: nn.Module) -> UnitSet:
    return trace_units(model, (20, 20), 'all')


def test_groups():
    model = chain()
    assert isomorphic_groups(traced(model), model) == [['0'], ['1', '2'], ['3'], ['4']]


@pytest.mark.parametrize(('share', 'expected'), [
    (0.0, {'0': 4, '1': 4, '2': 4, '3': 4, '4': 8}),
    # Two of the eight scores 1 2 2.5 3 4 10 30 40, one of four, two of eight.
    (0.25, {'0': 3, '1': 2, '2': 4, '3': 3, '4': 6}),
    (0.5, {'0': 2, '1': 1, '2': 3, '3': 2, '4': 4}),
    # Six of eight would take all four of unit 1, which keeps one.
    (0.75, {'0': 1, '1': 1, '2': 2, '3': 1, '4': 2}),
    (1.0, {'0': 1, '1': 1, '2': 1, '3': 1, '4': 1})])
def test_each_group_loses_the_same_share(share, expected):
    model = chain()
    assert isomorphic_path(traced(model), model, scores())(share) == expected


def test_a_budget():
    """Of 24 channels 18 are the choice at a quarter; one more would exceed the budget."""
    model = chain()
    units = traced(model)
    keeps = keeps_from_budget(units, Budget('channels', 0.75, 'isomorphic'), model, scores())
    assert keeps == {'0': 3, '1': 2, '2': 4, '3': 3, '4': 6}


def test_global_ranks_by_the_scores_as_they_are_where_they_compare():
    model = chain()
    units = traced(model)
    budget = Budget('channels', 0.5, 'global')
    # Up to 4 all go: 0 to 0.4, 1 1 2 2 2.5 3 3 4 4; units 1 and 3 keep one each.
    assert keeps_from_budget(units, budget, model, scores(), comparable=True) == {
        '0': 4, '1': 1, '2': 3, '3': 1, '4': 3}
    # Divided by the means 750, 2.5, 20.625, 0.25 and 3.5 the twelve lowest are 0 0.12 0.29 0.4 0.4 0.48 0.57 0.8 0.8
    # 0.8 0.86 0.93, of units 4 2 4 1 3 2 4 0 1 3 4 0.
    assert keeps_from_budget(units, budget, model, scores()) == {'0': 2, '1': 2, '2': 2, '3': 2, '4': 4}


def two(first: Callable[[], nn.Module], second: Callable[[], nn.Module]) -> nn.Module:
    """Return a chain in which two inner units of eight channels pass through other layers."""
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), first(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3),
                         second(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1))


@pytest.mark.parametrize(('first', 'second', 'alike'), [
    (nn.ReLU, nn.SiLU, True),
    (lambda: nn.BatchNorm2d(8), lambda: nn.BatchNorm2d(8), True),
    (nn.ReLU, lambda: nn.BatchNorm2d(8), False),
    (lambda: nn.PReLU(8), lambda: nn.BatchNorm2d(8), False),
    (lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8), lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8), True),
    (lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8), lambda: nn.Conv2d(8, 8, 1, groups=8), False)],
    ids=['activations', 'norms', 'norm or none', 'prelu or norm', 'depthwise', 'kernels'])
def test_what_a_structure_is_made_of(first, second, alike):
    model = two(first, second)
    groups = isomorphic_groups(traced(model), model)
    assert any({'1', '4'} <= set(group) for group in groups) == alike


@pytest.mark.parametrize(('changed', 'alike'), [
    (dict(stride=2, padding=1), True), (dict(bias=False), True), (dict(groups=2), False),
    (dict(dilation=2), True), (dict(kernel_size=1), False)])
def test_what_of_a_convolution_matters(changed: dict[str, Any], alike: bool):
    model = two(nn.ReLU, nn.ReLU)
    model[4] = nn.Conv2d(8, 8, **{'kernel_size': 3, **changed})
    groups = isomorphic_groups(traced(model), model)
    assert any({'1', '4'} <= set(group) for group in groups) == alike


def test_positions_of_a_channel():
    """A linear layer that reads four places of each channel is another one than one that reads one."""
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
            self.after_a, self.after_b = nn.Linear(16, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            pool = nn.functional.adaptive_avg_pool2d
            return self.after_a(pool(self.a(x), 2).flatten(1)) + self.after_b(pool(self.b(x), 1).flatten(1))
    model = Two()
    assert isomorphic_groups(traced(model), model) == [['a'], ['b']]


def test_residual_network(classifier):
    """Inner convolutions of a stage are alike, but for the first of a stage, which reads a narrower map."""
    model = classifier(dict(type='mmprune_ext.CifarResNet', depth=20), 64)
    groups = isomorphic_groups(trace_units(model, (32, 32)), model)
    inner = [f'backbone.layer{stage}.{block}.conv1' for stage in (1, 2, 3) for block in range(3)]
    assert sorted(map(sorted, groups)) == sorted([
        ['backbone.conv1'], ['backbone.layer2.0.conv2'], ['backbone.layer3.0.conv2'],
        inner[:3], inner[3:4], inner[4:6], inner[6:7], inner[7:9]])


def test_a_budget_that_cannot_be_met_is_told_before_anything_is_scored(classifier, monkeypatch):
    def scored(*_: Any) -> None:
        raise AssertionError('scored')
    monkeypatch.setattr(L1Mutator, 'scores', scored)
    model = classifier(dict(type='mmprune_ext.CifarResNet', depth=8), 64)
    mutator = L1Mutator(demo_inputs=(32, 32))
    mutator.prepare(model)
    with pytest.raises(TargetError, match=r'flops cannot be reduced to 0\.1%'):
        mutator.choose(model, budget=dict(flops=0.001, spread='isomorphic'))
    with pytest.raises(TargetError, match=r"spread should be one of uniform, global, isomorphic, sensitivity, got 'x'"):
        mutator.choose(model, budget=dict(flops=0.5, spread='x'))
