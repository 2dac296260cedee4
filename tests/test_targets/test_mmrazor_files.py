"""Structure files in the forms that mmrazor publishes: one number a unit, and records under ``channel_unit_cfg``."""
import json
import logging
from pathlib import Path

import pytest
from mmengine.logging import MMLogger
from mmpretrain import get_model
from torch import nn

from mmprune_ext.analysis import complexity
from mmprune_ext.errors import PruningError
from mmprune_ext.mutators.l1_mutator import L1Mutator
from mmprune_ext.targets import keeps_from_ratios
from mmprune_ext.units import slim, trace_units

PUBLISHED = json.loads((Path(__file__).parents[1] / 'data' / 'published_group_fisher.json').read_text())


@pytest.fixture
def units():
    """conv0 -> conv1 -> conv2 of 8, 12 and 16 channels, and a head."""
    model = nn.Sequential()
    for name, sizes in {'conv0': (3, 8), 'conv1': (8, 12), 'conv2': (12, 16), 'head': (16, 2)}.items():
        model.add_module(name, nn.Conv2d(*sizes, 1))
    return trace_units(model, (8, 8))


def file_of(content, tmp_path):
    path = tmp_path / 'mmrazor.json'
    path.write_text(json.dumps(content))
    return str(path)


def nested(choices, **default_args):
    records = {name: {'init_args': {'num_channels': int(name.rpartition('_')[2])}, 'choice': choice}
               for name, choice in choices.items()}
    return {'type': 'DCFFChannelMutator', 'parse_cfg': {'type': 'ChannelAnalyzer'},
            'channel_unit_cfg': {'type': 'DCFFChannelUnit', 'units': records, 'default_args': default_args}}


CHOICES = {'conv0_(0, 8)_8': 3, 'conv1_(0, 12)_12': 0.5, 'conv2_(0, 16)_16': 1.0}


@pytest.mark.parametrize('content', [
    CHOICES, nested(CHOICES), {name: {'choice': choice} for name, choice in CHOICES.items()}],
    ids=['numbers', 'nested', 'records'])
def test_forms(units, content, tmp_path):
    """Integers are kept numbers, fractions the share that stays; nothing else is read as a pruning ratio."""
    assert keeps_from_ratios(units, file_of(content, tmp_path)) == {'conv0': 3, 'conv1': 6, 'conv2': 16}


@pytest.mark.parametrize('keep, divisor, expected', [(3, 8, 8), (3, 2, 4), (4, 4, 4), (1, 4, 4), (7, 3, 8), (8, 5, 8)])
def test_rounded_up(units, keep, divisor, expected, tmp_path):
    """To the next multiple, at most to what the unit has; without rounding up to the one below."""
    path = file_of({'conv0_(0, 8)_8': keep}, tmp_path)
    units.set_init_args(divisor, 1, round_up=True)
    assert keeps_from_ratios(units, path)['conv0'] == expected
    assert {unit.kept_number(0.99) % divisor for unit in units.values() if unit.num_channels % divisor == 0} <= {0}
    units.set_init_args(divisor)
    assert keeps_from_ratios(units, path)['conv0'] == (keep if keep == 8 else max(keep // divisor * divisor, divisor))


@pytest.mark.parametrize('keep, expected', [(7, 8), (5, 8), (6, 8), (4, 4), (1, 1), (12, 12)])
def test_a_divisor_of_the_file(units, keep, expected, tmp_path):
    """mmrazor's own rounding: to the nearest multiple, 5 to 4, which is less than 0.9 of it and so to 8."""
    path = file_of(nested({'conv1_(0, 12)_12': keep}, divisor=4), tmp_path)
    assert keeps_from_ratios(units, path)['conv1'] == expected


def test_an_incomplete_file_says_what_stays_whole(units, tmp_path, caplog):
    MMLogger.get_instance('mmrazor_test').addHandler(caplog.handler)
    path = file_of(nested({'conv1_(0, 12)_12': 0.5}), tmp_path)
    with caplog.at_level(logging.WARNING):
        assert keeps_from_ratios(units, path) == {'conv0': 8, 'conv1': 6, 'conv2': 16}
    assert 'mmrazor.json: names 1 of 3 prunable units; these stay whole: conv0, conv2' in caplog.text
    caplog.clear()
    keeps_from_ratios(units, file_of(CHOICES, tmp_path))
    assert 'stay whole' not in caplog.text


def test_a_unit_under_the_name_of_another_of_its_layers(tmp_path):
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            x = self.stem(x)
            return self.head(x + self.conv(x).relu())

    units = trace_units(Residual(), (8, 8))
    assert keeps_from_ratios(units, file_of({'conv_(0, 8)_8': 5}, tmp_path)) == {'stem': 5}


@pytest.mark.parametrize('content, message', [
    ({'conv9_(0, 8)_8': 3}, 'unknown channel unit "conv9"'),
    ({'conv0_(0, 9)_9': 3}, 'unit "conv0" has 9 channels, in the model it has 8'),
    ({'conv0_(0, 8)_8': 9}, 'choice 9 is out of range'),
    ({'conv0_(0, 8)_8': [3]}, 'choice should be a number'),
    (nested({}), 'channel_unit_cfg names no units'),
    ({'channel_unit_cfg': 3}, 'channel_unit_cfg names no units'),
    ({'channel_unit_cfg': {'units': {'conv0': {'choice': 3}}}}, 'channel_unit_cfg names no units')])
def test_malformed(units, content, message, tmp_path):
    with pytest.raises(PruningError, match=message) as caught:
        keeps_from_ratios(units, file_of(content, tmp_path))
    assert 'mmrazor.json' in str(caught.value)


def test_of_a_mutator(units, tmp_path):
    mutator = L1Mutator('all', (8, 8), divisor=4, round_up=True)
    found = mutator.trace(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)))
    assert found['0'].kept_number(0.3) == 8  # of 5
    assert found.to_json()['units']['0']['init_args'] == {'divisor': 4, 'min_channels': 1, 'round_up': True}


def conv_params(keeps):
    """Return the parameters of a ResNet-50 of these widths, counted by hand: convolutions, norms, classifier."""
    total = keeps['conv1'] * (3 * 49 + 2)
    inputs = keeps['conv1']
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        out = keeps.get(f'layer{stage}.0.conv3', 2048)
        for block in range(blocks):
            first, second = (keeps[f'layer{stage}.{block}.conv{i}'] for i in (1, 2))
            total += first * (inputs + 2) + second * (9 * first + 2) + out * (second + 2)
            total += out * (inputs + 2) if block == 0 else 0
            inputs = out
    return total + 1000 * (inputs + 1)


@pytest.mark.e2e
def test_published_group_fisher_resnet50(tmp_path):
    """The published costs are those of the file's numbers as they are; a multiple of 8 is a little more."""
    model = get_model('resnet50_8xb32_in1k', pretrained=False)
    units = trace_units(model, (64, 64))
    path = file_of(PUBLISHED['units'], tmp_path)
    names = {key.rpartition('_(')[0]: keep for key, keep in PUBLISHED['units'].items()}
    rounded = units.copy()
    rounded.set_init_args(8, 1, round_up=True)
    for each, wanted in ((rounded, {name: -(-keep // 8) * 8 for name, keep in names.items()}), (units, names)):
        keeps = keeps_from_ratios(each, path)
        assert keeps == {**wanted, 'backbone.layer4.0.conv3': 2048}
    for name, keep in names.items():
        units[name].choose(range(keep))
    cost = complexity(slim(model, units), (3, 224, 224), flops=False)
    assert cost.params == conv_params({name.removeprefix('backbone.'): keep for name, keep in names.items()})
    assert f'{cost.params / 1e6:.1f}M' == PUBLISHED['printed']['params']
    assert f'{cost.flops_thop / 1e9:.2f}G' == PUBLISHED['printed']['flops']
