"""The file of sensitivities: what it says, and what it refuses."""
from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mmengine.logging import MMLogger
from torch import nn

from mmprune_ext.errors import UnitFileError
from mmprune_ext.targets import Curve, Point, Sensitivity
from mmprune_ext.units import UnitSet, trace_units
from mmprune_ext.units.parameters.fingerprint import weights_digest
from tests.test_targets.two_units import Two

NAMES = ['backbone.0', 'backbone.2']


@pytest.fixture
def model() -> nn.Module:
    return Two()


@pytest.fixture
def units(model) -> UnitSet:
    return trace_units(model, (12, 12))


@pytest.fixture
def measured(model, units) -> Sensitivity:
    curves = {'backbone.0': Curve(8, (Point(0.25, 6, 90.5), Point(0.5, 4, 93.25))),
              'backbone.2': Curve(6, (Point(0.25, 4, math.nan), Point(0.5, 3, -math.inf)))}
    return Sensitivity('l1', units.architecture, weights_digest(model), 'accuracy/top1', True, 93.0, 200, 0, True,
                       curves, {'config': 'tiny.py'})


@pytest.mark.parametrize(('greater', 'drops'), [(True, [2.5, -0.25]), (False, [-2.5, 0.25])])
def test_a_drop_is_how_much_worse(measured, greater, drops):
    measured = Sensitivity(**{**vars(measured), 'greater_is_better': greater})
    assert [measured.drop(point) for point in measured.curves['backbone.0'].points] == drops
    # Whatever is no number is as bad as can be, whichever way the metric goes.
    assert [measured.drop(point) for point in measured.curves['backbone.2'].points] == [math.inf, math.inf]


def test_a_dense_metric_of_zero_or_none_is_no_division(measured):
    point = Point(0.5, 4, -1.0)
    assert Sensitivity(**{**vars(measured), 'dense': 0.0}).drop(point) == 1.0
    assert Sensitivity(**{**vars(measured), 'dense': math.nan}).drop(point) == math.inf


def test_a_file_gives_back_what_was_written(measured, tmp_path):
    measured.save(tmp_path / 's.json')
    read = Sensitivity.load(tmp_path / 's.json')
    assert read.curves['backbone.0'] == measured.curves['backbone.0']
    assert [(p.ratio, p.keep) for p in read.curves['backbone.2'].points] == [(0.25, 4), (0.5, 3)]
    assert all(math.isnan(point.metric) for point in read.curves['backbone.2'].points)
    rest = {key: value for key, value in vars(measured).items() if key not in ('curves', 'source')}
    assert {key: getattr(read, key) for key in rest} == rest
    assert read.source == str(tmp_path / 's.json')


def test_the_file_is_strict_json(measured, tmp_path):
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    measured.save(tmp_path / 's.json')
    json.loads((tmp_path / 's.json').read_text(), parse_constant=refuse)


@pytest.mark.parametrize(('spoil', 'message'), [
    (lambda c: c.update(schema=2), 'not a file of sensitivities of schema 1'),
    (lambda c: c.pop('dense'), 'not a file of sensitivities'),
    (lambda c: c.update(units=[]), 'not a file of sensitivities'),
    (lambda c: c.update(complete='yes'), '"complete" should be of type bool, got \'yes\''),
    (lambda c: c.update(dense='93'), '"dense": should be a number or null, got \'93\''),
    (lambda c: c['units'].update({'backbone.0': 4}), 'unit "backbone.0": expected'),
    (lambda c: c['units']['backbone.0']['points'].reverse(), 'unit "backbone.0": the ratios .* rising order'),
    (lambda c: c['units']['backbone.0']['points'][0].update(keep=9), '"keep" should be an integer from 1 to 8, got 9'),
    (lambda c: c['units']['backbone.0']['points'][0].update(ratio=1), '"ratio" should be above 0 and below 1, got 1'),
    (lambda c: c['units']['backbone.0']['points'][0].update(metric=True), '"metric": should be a number or null'),
], ids=lambda value: value if isinstance(value, str) else '')
def test_a_malformed_file_names_the_place(measured, tmp_path, spoil: Callable[[Any], Any], message):
    path = tmp_path / 's.json'
    measured.save(path)
    content = json.loads(path.read_text())
    spoil(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UnitFileError, match=f'{path.name}.*{message}'):
        Sensitivity.load(path)


def test_other_files_are_refused(units, tmp_path):
    units.save(tmp_path / 'units.json')
    for name, message in (('units.json', 'not a file of sensitivities.*tools/sensitivity.py'),
                          ('none.json', 'no such file')):
        with pytest.raises(UnitFileError, match=message):
            Sensitivity.load(tmp_path / name)
    (tmp_path / 'text.json').write_text('{')
    with pytest.raises(UnitFileError, match='not valid JSON.*tools/sensitivity.py'):
        Sensitivity.load(tmp_path / 'text.json')


def test_checked_gives_the_curves_of_prunable_units(measured, model, units):
    assert list(measured.checked(model, units, 'l1')) == NAMES
    units.exclude('backbone.0')
    assert measured.checked(model, units, 'l1') == {'backbone.2': measured.curves['backbone.2']}


@pytest.mark.parametrize(('changes', 'message'), [
    ({'algorithm': 'chip'}, 'of method "chip", not of "l1"'),
    ({'complete': False}, 'is not complete.*goes on'),
    ({'curves': {'backbone.1': Curve(8, ())}}, 'unknown channel unit "backbone.1"; did you mean backbone'),
    ({'curves': {'backbone.0': Curve(9, ())}}, 'unit "backbone.0" has 9 channels, in the model it has 8'),
    ({'curves': {'backbone.0': Curve(8, ())}}, 'lacks unit "backbone.2"'),
    ({'architecture': '0' * 16}, 'written for another model'),
], ids=lambda value: next(iter(value)) if isinstance(value, dict) else '')
def test_what_belongs_to_another_model_is_refused(measured, model, units, changes, message):
    with pytest.raises(UnitFileError, match=message):
        Sensitivity(**{**vars(measured), **changes}).checked(model, units, 'l1')


def test_other_weights_are_a_warning(measured, model, units, caplog: pytest.LogCaptureFixture, tmp_path: Path):
    logger = MMLogger.get_instance('sensitivity_test')
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.WARNING):
        measured.checked(model, units, 'l1')
        assert 'other weights' not in caplog.text
        model.head.weight.data += 1
        measured.checked(model, units, 'l1')
    assert 'other weights' in caplog.text
