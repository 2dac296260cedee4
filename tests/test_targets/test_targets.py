"""Per-unit targets: what each form of target_pruning_ratio keeps of each unit."""
from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from mmprune_ext.analysis import complexity
from mmprune_ext.errors import PruningError, TargetError, UnitFileError
from mmprune_ext.targets.sparsity import expand_sparsity, parse_sparsity
from mmprune_ext.targets.target import keeps_from_ratios
from mmprune_ext.units import UnitSet, slim, trace_units

PUBLISHED = json.loads((Path(__file__).parents[1] / 'data' / 'published_widths.json').read_text())


class Plain(nn.Module):
    """Three convolutions of 8, 12 and 10 channels and a classifier, in a backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential()
        for i, (ins, outs) in enumerate([(3, 8), (8, 12), (12, 10)]):
            self.backbone.add_module(f'conv{i}', nn.Conv2d(ins, outs, 3, padding=1))
            self.backbone.add_module(f'bn{i}', nn.BatchNorm2d(outs))
        self.backbone.add_module('pool', nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(10, 4)

    def forward(self, x: Any) -> Any:
        return self.head(self.backbone(x).flatten(1))


@pytest.fixture
def units() -> UnitSet:
    return trace_units(Plain(), (8, 8))


def kept(units: UnitSet, target: Any) -> list[int]:
    keeps = keeps_from_ratios(units, target)
    assert list(keeps) == list(units.prunable)
    return list(keeps.values())


# ---------------------------------------------------------------- forms of a target


@dataclass(frozen=True)
class Form:
    id: str
    target: Any
    kept: list[int]


FORMS = [
    Form('zero', 0, [8, 12, 10]),
    # int(8 * 0.65) = int(5.2), int(12 * 0.65) = int(7.8), int(10 * 0.65) = int(6.5)
    Form('number', 0.35, [5, 7, 6]),
    # In double precision 10 * (1 - 0.9) is 0.99..., and one channel always stays.
    Form('endpoint', 0.999, [1, 1, 1]),
    Form('dict', {'backbone.conv1': 0.5}, [8, 6, 10]),
    Form('pattern', {'backbone.conv[02]': 0.5}, [4, 12, 5]),
    Form('exact wins', {'backbone.conv1': 0.25, '*': 0.5}, [4, 9, 5]),
    Form('exact wins first', {'*': 0.5, 'backbone.conv1': 0.25}, [4, 9, 5]),
    Form('later pattern wins', {'*': 0.5, '*.conv2': 0.1}, [4, 6, 9]),
    Form('list', [0.5, 0.25, 0.1], [4, 9, 9]),
    Form('string', '[0.5]+[0.25]*2', [4, 9, 7]),
    Form('string, last left out', '[0.5]*2', [4, 6, 10]),
]


@pytest.mark.parametrize('form', FORMS, ids=lambda form: form.id)
def test_form(units, form):
    assert kept(units, form.target) == form.kept


def test_ratio_file(units, tmp_path):
    path = tmp_path / 'ratios.json'
    path.write_text(json.dumps({'backbone.conv0': 0.5, '*.conv2': 0.3}))
    assert kept(units, str(path)) == kept(units, path) == [4, 12, 7]


@pytest.mark.parametrize('channels', [True, False], ids=['with -c', 'plain'])
def test_unit_file(units, tmp_path, channels):
    chosen = units.copy()
    chosen['backbone.conv1'].choose([3, 5, 11])
    chosen.save(tmp_path / 'units.json', channels=channels)
    assert kept(units, tmp_path / 'units.json') == [8, 3, 10]


def test_mmrazor_file(units, tmp_path):
    """mmrazor's choice is the number, or the share, that STAYS."""
    record = {'init_args': {'num_channels': 8, 'divisor': 1}, 'channels': {'input_related': [
        {'name': 'backbone.conv1', 'start': 0, 'end': 8, 'expand_ratio': 1}], 'output_related': [
        {'name': 'backbone.conv0', 'start': 0, 'end': 8, 'expand_ratio': 1}]}, 'choice': 3}
    path = tmp_path / 'mmrazor.json'
    path.write_text(json.dumps({'backbone.conv0_(0, 8)_8': record,
                                'backbone.conv1_(0, 12)_12': {'choice': 0.25}}))
    assert kept(units, str(path)) == [3, 3, 10]


def test_divisor_and_min_channels(units):
    units.set_init_args(divisor=4, min_channels=3)
    # 8 -> int(0.8) = 0 -> 4; 12 -> int(10.8) -> 8; 10 -> int(6) -> 4
    assert kept(units, {'backbone.conv0': 0.9, 'backbone.conv1': 0.1, 'backbone.conv2': 0.4}) == [4, 8, 4]
    units.set_init_args(divisor=1, min_channels=3)
    assert kept(units, 0.9) == [3, 3, 3]


def test_excluded_units_stay(units):
    units.exclude('*.conv1')
    assert keeps_from_ratios(units, 0.5) == {'backbone.conv0': 4, 'backbone.conv2': 5}
    assert keeps_from_ratios(units, {'*': 0.5}) == {'backbone.conv0': 4, 'backbone.conv2': 5}
    with pytest.raises(TargetError, match='unit "backbone.conv1" cannot be pruned'):
        keeps_from_ratios(units, {'backbone.conv1': 0.5})


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize('ratio', [1, 1.0, -0.1, float('nan'), float('inf'), True, '0.5', None],
                         ids=repr)
def test_ratio_out_of_range(units, ratio):
    with pytest.raises(TargetError, match=r'target_pruning_ratio\["backbone.conv0"\]: a pruning ratio '
                       'is the share of channels removed, at least 0 and below 1'):
        keeps_from_ratios(units, {'backbone.conv0': ratio})


@pytest.mark.parametrize('target', [None, {1, 2}, True], ids=repr)
def test_no_target(units, target):
    with pytest.raises(TargetError, match='should be a ratio, a dict, a JSON file or a sparsity string'):
        keeps_from_ratios(units, target)


def test_unknown_unit_names_the_nearest(units):
    with pytest.raises(PruningError, match='unknown channel unit "backbone.conv9"; did you mean '
                       r'.*backbone\.conv'):
        keeps_from_ratios(units, {'backbone.conv9': 0.5})


@pytest.mark.parametrize(('content', 'message'), [
    ('{"backbone.conv9": 0.5}', 'unknown channel unit "backbone.conv9"'),
    ('{"backbone.conv0": 1.0}', r'\["backbone.conv0"\]: a pruning ratio'),
    ('{"backbone.conv0": 0.5', 'not valid JSON'),
    ('{"backbone.conv0": "half"}', 'schema'),
    ('"0.5"', 'should be a ratio'),
    ('{}', 'expected a JSON object'),
    ('{"schema": 1, "units": {"backbone.conv0": {"num_channels": 64, "keep": 3}}}',
     'unit "backbone.conv0" has 64 channels, in the model it has 8'),
    ('{"schema": 1, "units": {"layer9": {"num_channels": 64, "keep": 3}}}',
     'unknown channel unit "layer9"'),
    ('{"schema": 1, "units": {"head": {"num_channels": 4, "keep": 3}}}', '"head" cannot be pruned'),
    ('{"backbone.conv0_(0, 8)_8": {"choice": 9}}', 'choice 9 is out of range'),
], ids=lambda value: value[:34])
def test_bad_file(units, tmp_path, content, message):
    path = tmp_path / 'target.json'
    path.write_text(content)
    with pytest.raises((TargetError, UnitFileError), match=message) as caught:
        keeps_from_ratios(units, str(path))
    assert str(path) in str(caught.value)


def test_missing_file(units, tmp_path):
    with pytest.raises(UnitFileError, match=r'none\.json: no such file'):
        keeps_from_ratios(units, str(tmp_path / 'none.json'))


# ---------------------------------------------------------------- sparsity strings


@pytest.mark.parametrize(('text', 'numbers'), [
    ('[0.]', [0.0]),
    ('[0.]+[0.4]*2+[0.5]*3', [0.0, 0.4, 0.4, 0.5, 0.5, 0.5]),
    (' [0.1, 0.2] * 2 ', [0.1, 0.2, 0.1, 0.2]),
    ('2*[0.1]', [0.1, 0.1]),
    ('[0.0]+([0.7]*2+[0.45])*2', [0.0, 0.7, 0.7, 0.45, 0.7, 0.7, 0.45]),
])
def test_parse(text, numbers):
    assert parse_sparsity(text) == numbers


@pytest.mark.parametrize('text', [
    '[0.1', '[0.1]**2', '[0.1]-[0.2]', '[[0.1]]', '[0.1]*[2]', '[0.1]*1.5', '0.5', '[]', '[0.1]*0',
    '[True]', '["a"]', '[x]', '__import__("os").getcwd()', '[0.1]*100000', '100000*[0.1]', '[0.1]*10000*10000',
    '[1e999]*[1]', '',
], ids=repr)
def test_malformed_string(text):
    with pytest.raises(TargetError, match='sparsity string'):
        parse_sparsity(text)


def test_wrong_length_names_the_right_one(units):
    with pytest.raises(TargetError, match='5 ratios for 3 channel units'):
        keeps_from_ratios(units, '[0.1]*5')


BACKBONES = {
    'resnet50': (dict(type='ResNet', depth=50), 2048, 1000, None, 64),
    'resnet56': (dict(type='mmprune_ext.CifarResNet', depth=56), 64, 10, None, 32),
    'resnet110': (dict(type='mmprune_ext.CifarResNet', depth=110), 64, 10, None, 32),
    'vgg16': (dict(type='mmprune_ext.CifarVGG', depth=16), 512, 10,
              dict(type='LinearNeck', in_channels=512, out_channels=512, gap_dim=0,
                   norm_cfg=dict(type='BN1d'), act_cfg=dict(type='ReLU')), 32),
}


@pytest.mark.parametrize('row', PUBLISHED, ids=lambda row: row['row'])
def test_published_widths(classifier, row):
    """The papers' strings as they are give the published widths, parameters and MACs, exactly."""
    backbone, features, classes, neck, size = BACKBONES[row['network']]
    model = classifier(backbone, features, classes, neck)
    units = trace_units(model, (size, size))
    keeps = keeps_from_ratios(units, row['target'], ('chip', 'blocks', 'units'))
    assert keeps == row['kept']
    for name, keep in keeps.items():
        units[name].choose(range(keep))
    slim(model, units)
    full = 224 if row['network'] == 'resnet50' else 32
    counted = complexity(model, (full, full))
    assert (counted.params, counted.macs) == (row['params'], row['macs'])


def test_wrong_length_for_a_residual_network(classifier):
    model = classifier(dict(type='mmprune_ext.CifarResNet', depth=14), 64)
    units = trace_units(model, (32, 32))
    # Stem with stage 1, stage 2, (stage 3 stays), then 6 blocks.
    assert len(expand_sparsity(units, [0.0, 0.1, 0.2] + [0.3] * 6, ['chip'])) == 2 + 6
    with pytest.raises(TargetError, match='8 ratios do not fit this network of 3 stages and 6 blocks: '
                       r'expected 9 \(chip: .* or 9 \(dcff: '):
        expand_sparsity(units, [0.1] * 8)


@pytest.mark.parametrize('shortcut', ['A', 'B'])
def test_stages_of_one_block(classifier, shortcut):
    """A stage output is a sum also where a stage has one block."""
    model = classifier(dict(type='mmprune_ext.CifarResNet', depth=8, shortcut=shortcut), 64)
    units = trace_units(model, (32, 32))
    stage = next(name for name, unit in units.items() if 'backbone.layer2.0.conv2' in
                 [member.module for member in unit.producers])
    assert expand_sparsity(units, [0.9, 0.1, 0.2, 0.3, 0.4, 0.5], ['chip']) == {
        'backbone.conv1': 0.1, stage: 0.2, 'backbone.layer1.0.conv1': 0.3,
        'backbone.layer2.0.conv1': 0.4, 'backbone.layer3.0.conv1': 0.5}


def test_triples_of_a_stage_must_agree(classifier):
    model = classifier(dict(type='ResNet', depth=50), 2048)
    units = trace_units(model, (64, 64))
    ratios = [0.0] + [0.3, 0.3, 0.1] * 16
    ratios[6] = 0.2
    with pytest.raises(TargetError, match=r'the blocks of unit "backbone.layer1.0.conv3" add to each '
                       'other and need one ratio, but got 0.1 and 0.2'):
        expand_sparsity(units, ratios)
