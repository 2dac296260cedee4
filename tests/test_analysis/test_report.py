"""Reports, tables and pictures."""
import copy
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from torch import nn

from mmprune_ext.analysis import (
    Complexity,
    Latency,
    LatencyComparison,
    Report,
    complexity,
    units_table,
)
from mmprune_ext.analysis.plots import widths_png
from mmprune_ext.analysis.report import Training
from mmprune_ext.errors import PruningError
from mmprune_ext.units import ChannelUnit, Reason, UnitSet, slim, trace_units
from mmprune_ext.units.unit import Member


def toy() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
                         nn.Conv2d(8, 4, 1))


@pytest.fixture
def report() -> Report:
    model = toy()
    units = trace_units(model, (4, 4))
    units['0'].choose([0, 2, 5])
    compact = slim(copy.deepcopy(model), units)
    times = [Latency(ms, ms - 1, ms + 1, 1, (3, 4, 4), 10, 2, 1, 'cpu') for ms in (8.0, 4.0)]
    return Report(complexity(model, (4, 4)), complexity(compact, (4, 4)), units,
                  LatencyComparison(*times, 2.0),
                  {'dense': {'accuracy/top1': 93.41}, 'compact': {'accuracy/top1': 92.7, 'x': 1}},
                  'Toy by hand')


def cells(text: str, start: str) -> list[str]:
    """Return the cells of the line that starts with these words."""
    line, = [line for line in text.splitlines() if line.strip().startswith(start)]
    return line.strip()[len(start):].split()


def test_text_has_every_number(report):
    text = report.text()
    assert text.startswith('Toy by hand\n===========\n')
    assert 'one sample of 3 x 4 x 4' in text
    # 8 x 27 + 8 + 16 + 8 x 4 + 4 parameters; 16 positions of 8 x 27 + 8 x 4.
    assert cells(text, 'parameters, whole model') == ['276', '106', '61.6%']
    assert cells(text, 'MACs, whole model') == ['3,968', '1,488', '62.5%']
    # 16 positions of 8 + 4 outputs, then of 3 + 4.
    assert cells(text, 'volume (output values), whole model') == ['192', '112', '41.7%']
    times = text.split('Latency')[1].split('Metrics')[0]
    assert cells(times, 'dense  ') == ['8.00', '7.00', '9.00']
    assert 'dense takes 2.00x as long' in text
    assert cells(text, 'accuracy/top1') == ['93.41', '92.7']
    table = text.split('Channel units')[1]
    assert cells(table, '0 ') == ['8', '3', '62.5%']
    assert cells(table, '3 ')[:3] == ['4', '4', '0.0%']
    assert Reason.OUTPUT.value in text
    assert cells(text, 'all units') == ['12', '7', '41.7%']
    for word in ('params:', 'macs:', 'flops:', 'backbone:'):
        assert word in text
    assert '\x1b' not in text and 'MACs of attention' not in text


def test_units_outside_the_scope_are_one_line(report):
    outside = [ChannelUnit(f'neck.{place}', 16, [Member(f'neck.{place}', 0, 16)]) for place in range(30)]
    for unit in outside:
        unit.forbid(Reason.OUT_OF_SCOPE, 'neck')
    text = replace(report, units=report.units.with_units([*report.units.values(), *outside])).text()
    assert 'neck.0' not in text
    assert cells(text, '30 units outside the scope') == ['480', '480', '0.0%']
    assert cells(text, 'all units') == ['492', '487', '1.0%']


def test_where_it_comes_from(report):
    source = {'command': 'prune.py a.py', 'digest': None, 'settings': {'flops': 0.5, 'scope': ['backbone']},
              'versions': {'torch': '2.11.0'}}
    told = replace(report, provenance=source)
    assert told.text().partition('Where it comes from\n')[2].splitlines()[:3] == [
        '  command: prune.py a.py', "  settings: flops=0.5, scope=['backbone']", '  versions: torch 2.11.0']
    assert json.loads(json.dumps(told.to_dict()))['provenance'] == source
    assert 'comes from' not in report.text() and report.to_dict()['provenance'] is None


def test_how_the_compact_config_trains(report):
    """Last in the text; a warning where the schedule was not written for a fine-tuning."""
    assert 'Fine-tuning' not in report.text() and report.to_dict()['training'] is None
    training = Training('SGD', 0.1, 0.001, 300, 'epochs', ('LinearLR', 'MultiStepLR'), 'the dense model', False)
    told = replace(report, training=training)
    assert told.text().splitlines()[-3:] == [
        'Fine-tuning',
        '  compact_config.py trains 300 epochs by SGD, learning rate 0.1 (0.001 in the first iteration), LinearLR, '
        'MultiStepLR',
        '  warning: this is the schedule of the dense model, which may undo a good start; --finetune EPOCHS writes one '
        'that fits']
    assert json.loads(json.dumps(told.to_dict()))['training'] == {
        'optimizer': 'SGD', 'learning_rate': 0.1, 'first_learning_rate': 0.001, 'length': 300, 'unit': 'epochs',
        'schedulers': ['LinearLR', 'MultiStepLR'], 'source': 'the dense model', 'fitted': False, 'notes': []}
    fitted = replace(report, training=replace(training, fitted=True, notes=('a: 3 -> 1', )))
    assert 'warning' not in fitted.text() and fitted.text().endswith('MultiStepLR\n  a: 3 -> 1\n')


def test_json_holds_the_same(report):
    data = json.loads(json.dumps(report.to_dict()))
    assert data['dense']['params'] == 276 and data['compact']['macs'] == 1488
    assert data['removed']['macs'] == pytest.approx(0.625)
    assert data['compact']['volume'] == 112 and data['compact']['per_layer_outputs'] == {'0': 48, '3': 64}
    assert data['removed']['volume'] == pytest.approx(80 / 192)
    assert data['units']['0'] == {'num_channels': 8, 'keep': 3, 'removed': 0.625,
                                  'prunable': True, 'reason': ''}
    assert data['units']['3']['reason'] == Reason.OUTPUT.value
    assert data['latency']['speedup'] == 2.0
    assert data['metrics']['compact'] == {'accuracy/top1': 92.7, 'x': 1}
    assert 'multiply-accumulates' in data['conventions']['macs']


def test_save_writes_three_files(report, tmp_path):
    paths = report.save(tmp_path / 'new' / 'folder')
    assert [path.name for path in paths] == ['report.txt', 'report.json', 'widths.png']
    assert sorted(p.name for p in paths[0].parent.iterdir()) == sorted(p.name for p in paths)
    assert paths[0].read_text() == report.text()
    assert json.loads(paths[1].read_text()) == json.loads(json.dumps(report.to_dict()))
    assert paths[2].read_bytes().startswith(b'\x89PNG')
    assert len({path.stat().st_mode for path in paths}) == 1


def test_folder_that_cannot_be_written(report, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(PruningError, match='cannot write .*file'):
        report.save(tmp_path / 'file')


def test_a_failing_picture_leaves_no_half_report(report, tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError('no fonts')
    monkeypatch.setattr('mmprune_ext.analysis.report.widths_png', fail)
    with pytest.raises(RuntimeError, match='no fonts'):
        report.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_report_of_different_inputs_is_refused(report):
    other = complexity(toy(), (8, 8), flops=False)
    with pytest.raises(PruningError, match='3 x 8 x 8, the compact one on one sample of 3 x 4 x 4'):
        Report(other, report.compact, report.units)


def test_parts_that_are_not_known_are_left_out(report):
    plain = Complexity(10, 20, 10, 20, {}, 0, None, None)
    text = Report(plain, plain, report.units).text()
    assert 'FLOPs by mmengine' not in text and 'Latency' not in text and 'Metrics' not in text
    assert 'the given demo pass' in text


# ---------------------------------------------------------------- tables and pictures


def many_units(count: int) -> UnitSet:
    units = []
    for i in range(count):
        name = f'backbone.stage{i // 20}.blocks.{i}.conv'
        unit = ChannelUnit(name, 16 * (1 + i % 7), [Member(name, 0, 16 * (1 + i % 7))])
        if i % 9 == 8:
            unit.forbid(Reason.FIXED_SIZE, 'RuntimeError: ' + 'a long story ' * 12 + 'THE END')
        else:
            unit.choose(range(unit.num_channels // 2))
        units.append(unit)
    return UnitSet(units)


def test_units_table():
    units = trace_units(toy(), (4, 4))
    text = units_table(units)
    assert text.startswith('2 channel units, 1 prunable (8 of 12 channels)\n')
    assert cells(text, '0 ') == ['8', 'yes', '1', '1', '1']
    assert cells(text, '3 ')[:5] == ['4', 'no', '1', '0', '0']
    assert Reason.OUTPUT.value in text


def test_long_reasons_are_wrapped_and_names_are_whole(monkeypatch):
    monkeypatch.setenv('COLUMNS', '40')
    units = many_units(30)
    text = units_table(units)
    assert all(name in text for name in units)
    assert 'END' in text
    assert max(map(len, text.splitlines())) < 170


def pixels(png: bytes) -> np.ndarray:
    from matplotlib.image import imread
    return imread(io.BytesIO(png), format='png')


@pytest.mark.parametrize(('count', 'columns'), [(1, 1), (50, 1), (51, 2), (150, 3)])
def test_picture_grows_with_the_model(count, columns):
    height, width, _ = pixels(widths_png(many_units(count), 'toy')).shape
    assert width == 750 * columns
    assert 20 * count / columns < height < 1200


def test_picture_shows_kept_removed_and_fixed():
    from matplotlib.colors import to_rgb

    def area(units: UnitSet, colour: str) -> int:
        picture = pixels(widths_png(units))[:-60, :, :3]  # without the legend
        return int((np.abs(picture - to_rgb(colour)).max(-1) < 0.01).sum())

    unit = ChannelUnit('conv', 100, [Member('conv', 0, 100)])
    unit.choose(range(25))
    kept, removed = area(UnitSet([unit]), '#2266aa'), area(UnitSet([unit]), '#d5dbe3')
    assert removed == pytest.approx(3 * kept, rel=0.05)
    unit.choose(None)
    unit.forbid(Reason.OUTPUT)
    assert area(UnitSet([unit]), '#2266aa') == 0
    assert area(UnitSet([unit]), '#9a9a9a') == pytest.approx(4 * kept, rel=0.05)
    unit.reason = Reason.OUT_OF_SCOPE
    assert area(UnitSet([unit]), '#9a9a9a') < kept / 100  # pixels of letters
    assert area(UnitSet([unit]), '#d9c7a8') == pytest.approx(4 * kept, rel=0.05)
