"""Curves of units: what really pruning one unit gives, measured once, gone on from, and refused where unclear."""
from __future__ import annotations

import copy
import csv
import dataclasses
import json
import math
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS, DefaultScope
from mmengine.runner import Runner
from torch import nn

from mmprune_ext.compact.compact_model import build_architecture
from mmprune_ext.errors import ConfigError, PruningError
from mmprune_ext.evaluation.metering import Meter
from mmprune_ext.evaluation.validation import Validation
from mmprune_ext.targets import Sensitivity
from mmprune_ext.units import slim, trace_units
from mmprune_ext.units.demo_inputs import set_training
from mmprune_ext.workflows import sensitivity as workflow
from mmprune_ext.workflows.pruning import prune_model
from mmprune_ext.workflows.sensitivity import Measurement, measure_sensitivity
from tests.conftest import DATA
from tests.scenes import scenes_in

pytestmark = pytest.mark.usefixtures('mmpretrain_scope')


def values_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors and arrays of a data sample."""
    if isinstance(value, torch.Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in 'fiub'):
        yield torch.as_tensor(value)
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from values_in(item)


def weighted(values: torch.Tensor) -> float:
    """Return a sum in which each place counts otherwise: probabilities alone sum up to 1."""
    return float((values.double().flatten() * torch.arange(1, values.numel() + 1)).sum())


@METRICS.register_module()
class SumOfOutputs(BaseMetric):
    """A number that differs as soon as one value of one prediction does; and constants."""

    def __init__(self, constants: Mapping[str, float] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.constants = constants or {}

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        self.results += [sum(map(weighted, values_in(sample))) for sample in data_samples]

    def compute_metrics(self, results: list[float]) -> dict[str, Any]:
        return {'sum': math.fsum(results), 'text': '0.5_0.6', **self.constants}


def sums(**settings: Any) -> dict[str, Any]:
    """Return an evaluator in the place of the config's own, not merged with it."""
    return dict(_delete_=True, type='SumOfOutputs', **settings)


def wanted(**changes: Any) -> Measurement:
    return Measurement(**{'ratios': (0.25, 0.5, 0.75), 'input_size': (32, 32), **changes})


@pytest.fixture
def measure(tiny_config, dense_checkpoint, tmp_path):
    """Return a function that measures the tiny classifier, with settings of config and measurement changed."""
    def run(options: Mapping[str, Any] | None = None, folder: str = 'out', **changes: Any) -> Sensitivity:
        return measure_sensitivity(tiny_config(options), str(dense_checkpoint), tmp_path / folder, 'l1',
                                   wanted(**changes))
    return run


def points(found: Sensitivity) -> dict[str, list[tuple[float, int, float]]]:
    return {name: [(p.ratio, p.keep, p.metric) for p in curve.points] for name, curve in found.curves.items()}


def test_a_point_is_the_metric_of_the_pruned_model(measure, tiny_config, dense_checkpoint, tmp_path):
    """Of a unit of one convolution and of one with a shortcut, tested as an exported model by mmengine's Runner."""
    def options() -> dict[str, Any]:
        return {'val_evaluator': sums(), 'test_evaluator': sums()}
    found = measure(options(), rule='greater')
    assert found.complete and (found.metric, found.greater_is_better, found.samples) == ('sum', True, 60)
    for name, channels in {'backbone.conv1': 8, 'backbone.layer2.0.conv1': 16}.items():
        point = found.curves[name].points[1]
        assert (found.curves[name].channels, point.keep) == (channels, channels // 2)
        written = prune_model(tiny_config(options()), str(dense_checkpoint), tmp_path / name, 'l1', {}, {name: 0.5},
                              input_size=(32, 32), bn_batches=0)
        config = Config.fromfile(written.config)
        config.update(work_dir=str(tmp_path / 'work'), experiment_name=uuid.uuid4().hex)
        assert Runner.from_cfg(config).test()['sum'] == point.metric


@pytest.mark.parametrize('bn_batches', [0, 2])
def test_the_defaults(measure, bn_batches):
    found = measure(bn_batches=bn_batches)
    assert found.complete and (found.metric, found.greater_is_better, found.samples) == ('accuracy/top1', True, 60)
    assert (found.algorithm, found.bn_batches, list(found.curves)[0]) == ('l1', bn_batches, 'backbone.conv1')


def test_sharing_changes_nothing(measure):
    shared = measure({'val_evaluator': sums()}, 'shared', rule='greater', bn_batches=1)
    whole = measure({'val_evaluator': sums()}, 'whole', rule='greater', bn_batches=1, sharing=False)
    assert points(shared) == points(whole) and shared.dense == whole.dense
    assert shared.metric == 'sum' and len(set(sum(points(shared).values(), []))) == 3 * len(shared.curves)
    assert shared.settings == whole.settings  # so that either goes on from the other


def test_folded_batch_norm_changes_no_more_than_rounding(measure, monkeypatch):
    plain = measure({'val_evaluator': sums()}, 'plain', rule='greater')
    norms = []
    monkeypatch.setattr(Meter, 'measure', noting(norms, Meter.measure))
    folded = measure({'val_evaluator': sums()}, 'folded', rule='greater', fold=True)
    assert 0 in norms and folded.dense == plain.dense
    for name, curve in plain.curves.items():
        for point, other in zip(curve.points, folded.curves[name].points):
            assert (point.ratio, point.keep) == (other.ratio, other.keep)
            assert other.metric == pytest.approx(point.metric, rel=1e-5, abs=1e-5) and other.metric != plain.dense


def noting(norms: list[int], measure: Callable[..., Any]) -> Callable[..., Any]:
    def noted(meter: Meter, *args: Any) -> Any:
        norms.append(sum(isinstance(module, nn.BatchNorm2d) for module in meter.model.modules()))
        return measure(meter, *args)
    return noted


@pytest.mark.e2e
def test_several_processes_measure_the_same(measure, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as many as each of the processes has
    try:
        alone, together = measure(folder='alone', bn_batches=1), measure(folder='together', bn_batches=1, jobs=2)
    finally:
        torch.set_num_threads(threads)
    assert points(together) == points(alone)
    assert list(together.curves) == list(alone.curves) and together.complete
    for name in ('sensitivity.json', 'sensitivity.csv'):
        assert (tmp_path / 'together' / name).read_bytes() == (tmp_path / 'alone' / name).read_bytes()


def test_ratios_that_keep_as_many_are_measured_once(measure, monkeypatch):
    measured = []
    original = Meter.measure

    def count(self: Meter, forms: Sequence[Any], *args: Any) -> Any:
        measured.append(len(forms))
        return original(self, forms, *args)
    monkeypatch.setattr(Meter, 'measure', count)
    found = measure(ratios=(0.1, 0.2, 0.4, 0.5), mutator={'divisor': 8})
    first = found.curves['backbone.conv1']  # of 8 channels
    assert [point.keep for point in first.points] == [8] * 4
    assert {point.metric for point in first.points} == {found.dense}
    second = found.curves['backbone.layer2.0.conv1']  # of 16
    assert [point.keep for point in second.points] == [8] * 4 and len({point.metric for point in second.points}) == 1
    assert max(measured) < 4 and measured[0] == 1


@pytest.mark.parametrize(('constants', 'settings', 'dense', 'drops'), [
    ({'accuracy/top1': 0.0}, {}, 0.0, {0.0}),
    ({'loss': math.nan}, {'metric': 'loss'}, math.nan, {math.inf}),
    ({'loss': 2.5}, {'metric': 'loss'}, 2.5, {0.0}),
    ({'error': 1}, {'metric': 'error', 'rule': 'less'}, 1.0, {0.0}),
], ids=['zero', 'nan', 'loss', 'rule'])
def test_metrics_of_any_kind(measure, tmp_path, constants, settings, dense, drops):
    settings = {'metric': next(iter(constants)), **settings}
    found = measure({'val_evaluator': sums(constants=constants)}, **settings)
    assert found.dense == pytest.approx(dense, nan_ok=True)
    assert found.greater_is_better == ('accuracy/top1' in constants)
    assert {found.drop(point) for curve in found.curves.values() for point in curve.points} == drops
    rows = list(csv.DictReader((tmp_path / 'out' / 'sensitivity.csv').open()))
    assert len(rows) == 3 * len(found.curves)
    assert rows[0] == {'unit': 'backbone.conv1', 'channels': '8', 'ratio': '0.25', 'keep': '6',
                       found.metric: f'{dense:g}', 'drop': f'{min(drops):g}'}
    assert (tmp_path / 'out' / 'sensitivity.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(('options', 'settings', 'message'), [
    ({}, {'metric': 'accuracy/top'}, '--metric: .* no "accuracy/top"; did you mean accuracy/top1'),
    ({'val_evaluator': sums()}, {'metric': 'sums'}, 'did you mean sum'),
    ({'val_evaluator': sums()}, {'metric': 'text'}, 'no "text"'),
    ({'val_evaluator': sums()}, {}, 'whether more or less of "sum" is better; .*--rule'),
])
def test_a_metric_that_is_not_known(measure, tmp_path, options, settings, message):
    with pytest.raises(ConfigError, match=message):
        measure(options, **settings)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(('hook', 'expected'), [
    (dict(save_best='b', rule='less'), ('b', False)),
    (dict(save_best=['c', 'a'], rule=['less', 'greater']), ('a', True)),
    (dict(save_best=['c', 'b'], rule='less'), ('b', False)),
    (dict(save_best='loss_b', rule='greater'), ('loss_b', True)),
    (dict(save_best='auto', greater_keys=['a']), ('a', True)), (dict(save_best='none', less_keys=['a']), ('a', False)),
    (dict(save_best='loss_b'), ('loss_b', False)),
])
def test_what_the_checkpoint_hook_says_counts(hook, expected):
    config = Config(dict(default_hooks=dict(checkpoint=dict(type='CheckpointHook', **hook))))
    metric = workflow._metric(config, {'a': 1.0, 'b': 2.0, 'loss_b': 3.0}, None)
    assert (metric, workflow._greater_is_better(config, metric, None)) == expected
    opposite = 'less' if expected[1] else 'greater'
    assert workflow._greater_is_better(config, metric, opposite) != expected[1]


class Killed(BaseException):
    """The process is gone."""


@pytest.fixture
def killed(measure, monkeypatch):
    """Kill a measurement in its third unit, and return the measured units of later ones."""
    original, seen = workflow._Bench.curve, []

    def curve(self: Any, name: str, *args: Any) -> Any:
        if len(seen) == 2:
            seen.append(None)
            raise Killed
        seen.append(name)
        return original(self, name, *args)
    monkeypatch.setattr(workflow._Bench, 'curve', curve)
    with pytest.raises(Killed):
        measure()
    seen[:] = [None] * 3
    return seen


def test_a_killed_run_goes_on(measure, killed, tmp_path):
    stopped = Sensitivity.load(tmp_path / 'out' / 'sensitivity.json')
    assert not stopped.complete and len(stopped.curves) == 2
    resumed = measure()
    assert killed[3:] == list(resumed.curves)[2:]
    whole = measure(folder='whole')
    assert points(resumed) == points(whole) and resumed.complete
    first, second = (json.loads((tmp_path / name / 'sensitivity.json').read_text()) for name in ('out', 'whole'))
    assert first == second
    killed.clear()
    assert points(measure()) == points(whole) and killed == []


@pytest.mark.parametrize(('changes', 'message'), [
    ({'ratios': (0.25, 0.5)}, '--ratios: 0.25, 0.5, 0.75 there, 0.25, 0.5 here'),
    ({'samples': 30}, '--samples: 2000 there, 30 here'), ({'bn_batches': 1}, '--bn-batches'),
    ({'metric': 'accuracy/top1'}, '--metric: None there, accuracy/top1 here'), ({'rule': 'greater'}, '--rule'),
    ({'mutator': {'exclude': ['backbone.conv1']}}, '--scope, --exclude'), ({'mutator': {'divisor': 2}}, '--divisor'),
    ({'options': {'val_dataloader.dataset.indices': [0, 90, 180, 270]}}, 'the data or the evaluator'),
    ({'options': {'model.backbone.depth': 14}}, 'does not fit'),
])
def test_other_settings_in_the_same_folder_are_refused(measure, killed, changes, message):
    with pytest.raises(PruningError, match=message):
        measure(changes.pop('options', None), **changes)


def test_other_weights_in_the_same_folder_are_refused(measure, killed, tiny_config, dense_checkpoint, tmp_path):
    content = torch.load(dense_checkpoint, weights_only=False)
    content['state_dict']['head.fc.bias'] += 1
    torch.save(content, tmp_path / 'other.pth')
    with pytest.raises(PruningError, match='CHECKPOINT.*delete the file'):
        measure_sensitivity(tiny_config(), str(tmp_path / 'other.pth'), tmp_path / 'out', 'l1', wanted())


def forms_of(model: nn.Module, meter: Meter, unit: str) -> list[Any]:
    units = trace_units(model, (128, 96))
    made = []
    for keep in (6, 3, 1):
        chosen = units.copy()
        chosen[unit].choose(range(keep))
        made.append(meter.forms.make(lambda m, chosen=chosen: slim(m, chosen)))
    return made


@pytest.mark.parametrize(('task', 'scope', 'unit'), [
    ('detection', 'mmdet', 'backbone.layer3.1.conv1'), ('detection', 'mmdet', 'backbone.layer1.0.conv1'),
    ('segmentation', 'mmseg', 'backbone.layer2.0.conv1'), ('pose', 'mmpose', 'backbone.layer4.1.conv1')])
def test_models_of_other_tasks(tmp_path, task, scope, unit):
    """Every prediction of every form is that of the slimmed model, to the last bit."""
    with scenes_in(tmp_path, train=5, val=5), DefaultScope.overwrite_default_scope(scope):
        config = Config.fromfile(DATA / f'scenes_{task}.py')
        config.val_evaluator = dict(type='SumOfOutputs')
        torch.manual_seed(0)
        model = build_architecture(config.model.to_dict(), config.get('data_preprocessor'))
        set_training(model, False)
        found = []
        for sharing in (True, False):
            meter = Meter(model, Validation(config, 2), sharing)
            found.append(meter.measure(forms_of(model, meter, unit)))
            assert meter.sharing == sharing
        for keep, measured in zip((6, 3, 1), found[0]):
            units = trace_units(model, (128, 96))
            units[unit].choose(range(keep))
            alone = Meter(slim(copy.deepcopy(model), units), Validation(config, 2))
            assert alone.measure([alone.forms.make(lambda m: None)]) == [measured]
    assert found[0] == found[1] and len({measured['sum'] for measured in found[0]}) == 3


def test_a_model_that_does_not_run_the_same_way_twice_is_run_whole(tiny_config, dense_checkpoint):
    config = tiny_config({'val_evaluator': sums(), 'val_dataloader.batch_size': 10})
    model = build_architecture(config.model.to_dict(), config.data_preprocessor)
    set_training(model, False)
    units = trace_units(model, (32, 32))
    stem = model.backbone.conv1.forward
    calls = []

    def forward(x: torch.Tensor) -> torch.Tensor:
        calls.append(None)
        return stem(x) * len(calls)
    model.backbone.conv1.forward = forward
    meter = Meter(model, Validation(config, 20))
    made = []
    for keep in (8, 4):
        chosen = units.copy()
        chosen['backbone.layer2.0.conv1'].choose(range(keep))
        made.append(meter.forms.make(lambda m, chosen=chosen: slim(m, chosen)))
    calls.clear()
    meter.measure(made)
    assert not meter.sharing
    assert len(calls) == 4  # each of two forms on each of two batches; the answered one was run after all


def test_settings_of_a_measurement_have_an_argument():
    names = {field.name for field in dataclasses.fields(Measurement)} - {'mutator', 'input_size', 'sharing', 'jobs'}
    assert names <= set(workflow._ARGUMENTS)
