"""Ratios from a sensitivity file, as a budget of a mutator and of an algorithm."""
from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from mmprune_ext.algorithms import CHIP, L1Norm
from mmprune_ext.analysis import complexity
from mmprune_ext.errors import TargetError, UnitFileError
from mmprune_ext.mutators import Budget, L1Mutator
from mmprune_ext.targets import Curve, Point, Sensitivity
from mmprune_ext.targets.sensitivity_choice import SensitivityChoice, predicted_drop
from mmprune_ext.units.parameters.fingerprint import weights_digest
from tests.test_targets.two_units import Two


@pytest.fixture
def model() -> nn.Module:
    return Two()


def prepared(model: nn.Module, **settings: Any) -> L1Mutator:
    mutator = L1Mutator(demo_inputs=(12, 12), **settings)
    mutator.prepare(model)
    return mutator


@pytest.fixture
def measured(model) -> Sensitivity:
    """Dense 90; the first unit loses 1, 8 and 30 points, the second gains 0.5 and loses 2, and 9."""
    curves = {'backbone.0': Curve(8, (Point(0.25, 6, 89.0), Point(0.5, 4, 82.0), Point(0.75, 2, 60.0))),
              'backbone.2': Curve(6, (Point(0.2, 5, 90.5), Point(0.5, 3, 88.0), Point(0.7, 2, 81.0)))}
    return Sensitivity('l1', prepared(model).units.architecture, weights_digest(model), 'accuracy/top1', True, 90.0,
                       200, 0, True, curves)


def budget_of(measured: Sensitivity | str, **share: float) -> dict[str, Any]:
    return dict(share, spread='sensitivity', sensitivity=measured)


@pytest.mark.parametrize(('left', 'keeps', 'drop'), [
    (14, [8, 6], 0), (13, [8, 5], 0), (11, [6, 5], 1), (10, [6, 3], 3), (9, [6, 3], 3), (7, [4, 3], 10),
    (4, [2, 2], 39)])
def test_by_hand(model, measured, left, keeps, drop):
    """Of 14 channels. At 10, 8 + 2 would cost 9 points; 6 + 3 cost 3, and leave one of the budget."""
    mutator = prepared(model)
    units = mutator.choose(model, budget=budget_of(measured, channels=left / 14))
    assert [units[name].keep for name in measured.curves] == keeps
    found = {name: unit.keep for name, unit in units.items()}
    assert predicted_drop(measured, found) == drop


def test_no_drop_is_predicted_of_what_was_not_measured(measured):
    with pytest.raises(TargetError, match='unit "backbone.0" was not measured at 7 channels'):
        predicted_drop(measured, {'backbone.0': 7})


def test_nothing_falls_below_0(model, measured):
    with pytest.raises(TargetError, match='of the dense model is 0, below which nothing can fall'):
        SensitivityChoice(dataclasses.replace(measured, dense=0.0), prepared(model).units, 'params', model)
    loss = dataclasses.replace(measured, dense=0.0, greater_is_better=False)
    assert SensitivityChoice(loss, prepared(model).units, 'params', model).drop({'backbone.0': 6}) == 89


def test_flops_and_scope(model, measured):
    dense = complexity(model, (12, 12))
    choice = SensitivityChoice(measured, prepared(model).units, 'flops', model, '', (12, 12))
    assert choice.dense == dense.macs
    # 100 positions of 3 x 8 x 9, 64 of 8 x 6 x 9 and of 6 x 2
    assert choice.dense == 100 * 216 + 64 * 432 + 64 * 12
    assert choice.share({'backbone.0': 4}) == pytest.approx((100 * 108 + 64 * 216 + 64 * 12) / choice.dense)
    part = SensitivityChoice(measured, prepared(model).units, 'flops', model, 'backbone', (12, 12))
    assert part.dense == 100 * 216 + 64 * 432


def test_from_a_file_by_every_resource(model, measured, tmp_path):
    measured.save(tmp_path / 's.json')
    for resource in ('flops', 'params', 'channels', 'volume'):
        choice = SensitivityChoice(measured, prepared(model).units, resource, model, '', (12, 12))
        mutator = prepared(model)
        units = mutator.choose(model, budget=budget_of(str(tmp_path / 's.json'), **{resource: 0.6}))
        keeps = {name: units[name].keep for name in measured.curves}
        assert choice.share(keeps) <= 0.6
        # Widths follow from the file alone: tools/get_flops.py counts the network before anything is scored.
        assert mutator.kept_numbers(model, budget=budget_of(measured, **{resource: 0.6})) == keeps


def test_rounding_leaves_points_out(model, measured):
    mutator = prepared(model, divisor=2, min_channels=4)
    choice = SensitivityChoice(measured, mutator.units, 'channels', model)
    assert {name: [point.keep for point in points] for name, points in choice.options.items()} == {
        'backbone.0': [8, 6, 4], 'backbone.2': [6]}


def test_points_without_a_metric_are_left_out(model, measured):
    curves = {**measured.curves, 'backbone.0': Curve(8, (Point(0.25, 6, math.nan), Point(0.5, 4, 82.0)))}
    choice = SensitivityChoice(dataclasses.replace(measured, curves=curves), prepared(model).units, 'channels', model)
    assert [point.keep for point in choice.options['backbone.0']] == [8, 4]
    with pytest.raises(TargetError, match='accuracy/top1 of the dense model is no number'):
        SensitivityChoice(dataclasses.replace(measured, dense=math.nan), prepared(model).units, 'channels', model)


def test_excluded_units_stay_whole(model, measured):
    mutator = prepared(model, exclude='backbone.0')
    units = mutator.choose(model, budget=budget_of(measured, channels=0.6))
    assert [units[name].keep for name in measured.curves] == [8, 3]  # 0.6 of the 6 that are left to prune


def test_a_metric_of_which_less_is_better(model, measured):
    curves = {name: Curve(curve.channels, tuple(dataclasses.replace(p, metric=-p.metric) for p in curve.points))
              for name, curve in measured.curves.items()}
    turned = dataclasses.replace(measured, greater_is_better=False, dense=-90.0, curves=curves)
    for left in (11, 9, 7):
        keeps = [SensitivityChoice(file, prepared(model).units, 'channels', model).keeps(left / 14)
                 for file in (measured, turned)]
        assert keeps[0] == keeps[1]


def test_unreachable_names_the_smallest(model, measured):
    measured = dataclasses.replace(measured, source='s.json')
    with pytest.raises(TargetError, match=r'channels cannot be reduced to 10\.0%; the smallest widths in s\.json that '
                       r'divisor and min_channels allow leave 28\.6%'):
        prepared(model).choose(model, budget=budget_of(measured, channels=0.1))
    units = prepared(model).choose(model, budget=budget_of(measured, channels=4 / 14))
    assert [units[name].keep for name in measured.curves] == [2, 2]


@pytest.mark.parametrize(('config', 'message'), [
    (dict(flops=0.5, spread='sensitivity'), 'go together'),
    (dict(flops=0.5, sensitivity='s.json'), 'go together'),
    (dict(flops=0.5, spread='global', sensitivity='s.json'), 'go together'),
    (dict(flops=0.5, spread='sensitivity', sensitivity=3), 'should be the path of a file, but got 3'),
    (dict(flops=0.5, spread='sensitivity', sensitivity='none.json'), 'none.json: no such file'),
], ids=lambda value: '' if isinstance(value, str) else repr(value))
def test_malformed_budget(config, message):
    with pytest.raises((TargetError, UnitFileError), match=message):
        Budget.from_config(config)


@pytest.mark.parametrize(('changes', 'message'), [
    (dict(complete=False), 'is not complete.*the same tools/sensitivity.py command goes on'),
    (dict(architecture='0' * 16), 'written for another model'),
    (dict(algorithm='chip'), 'sensitivities of method "chip", not of "l1"'),
])
def test_an_algorithm_refuses_what_does_not_fit(model, measured, tmp_path, changes, message):
    path = tmp_path / 's.json'
    dataclasses.replace(measured, **changes).save(path)
    with pytest.raises(UnitFileError, match=f'{path}.*{message}'):
        L1Norm(model, dict(demo_inputs=(12, 12)), budget=budget_of(str(path), channels=0.6))


def test_an_algorithm_prunes_by_it(model, measured, tmp_path):
    measured.save(tmp_path / 's.json')
    pruned = L1Norm(model, dict(demo_inputs=(12, 12)), budget=budget_of(str(tmp_path / 's.json'), channels=9 / 14))
    assert (pruned.backbone[0].out_channels, pruned.backbone[2].out_channels) == (6, 3)


def test_the_file_is_read_before_anything_else(model, tmp_path: Path):
    """A checkpoint that is not there either is not looked for."""
    with pytest.raises(UnitFileError, match='none.json: no such file'):
        CHIP(model, dict(demo_inputs=(12, 12)), budget=budget_of(str(tmp_path / 'none.json'), channels=0.6),
             checkpoint=str(tmp_path / 'none.pth'))
