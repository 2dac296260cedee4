"""Which unit each ratio of a paper's sparsity string belongs to."""
from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from mmprune_ext.analysis import complexity
from mmprune_ext.errors import TargetError
from mmprune_ext.mutators import L1Mutator
from mmprune_ext.targets.sparsity import LAYOUTS, expand_sparsity, is_sparsity, split_layout
from mmprune_ext.targets.target import keeps_from_ratios
from mmprune_ext.units import UnitSet, slim, trace_units

PUBLISHED = json.loads((Path(__file__).parents[1] / 'data' / 'published_dcff.json').read_text())
BACKBONES = {
    'resnet50': (dict(type='ResNet', depth=50), 2048, 1000),
    'resnet56': (dict(type='mmprune_ext.CifarResNet', depth=56), 64, 10),
    'vgg16': (dict(type='mmprune_ext.CifarVGG', depth=16, last_pool='max'), 512, 10),
    'googlenet': (dict(type='mmprune_ext.CifarGoogLeNet'), 1024, 10),
}


@pytest.fixture(scope='module')
def traced() -> Callable[..., tuple[nn.Module, UnitSet]]:
    """Return a function that gives a network and its units, traced once."""
    known: dict[str, tuple[nn.Module, UnitSet]] = {}

    def get(classifier: Callable[..., nn.Module], name: str) -> tuple[nn.Module, UnitSet]:
        if name not in known:
            model = classifier(*BACKBONES[name])
            known[name] = model, trace_units(model, (32, 32))
        model, units = known[name]
        return copy.deepcopy(model), units.copy()
    return get


@pytest.mark.parametrize('row', PUBLISHED, ids=lambda row: row['row'])
def test_published_strings_of_dcff(traced, classifier, row):
    """The strings as they are printed give the published widths, parameters and MACs, exactly."""
    model, units = traced(classifier, row['network'])
    keeps = keeps_from_ratios(units, row['target'], ('dcff', 'blocks', 'units'))
    assert keeps == row['kept']
    for name, keep in keeps.items():
        units[name].choose(range(keep))
    slim(model, units)
    counted = complexity(model, tuple(row['input']))
    assert (counted.params, counted.macs) == (row['params'], row['macs'])


@pytest.fixture
def tiny(classifier) -> UnitSet:
    """The units of ResNet-14: stem with stage 1, six first convolutions, two more stages."""
    return trace_units(classifier(dict(type='mmprune_ext.CifarResNet', depth=14), 64), (32, 32))


def stage(units: UnitSet, number: int) -> str:
    """Return the unit of a stage's output."""
    return next(name for name, unit in units.items() if f'backbone.layer{number}.0.conv2' in
                [member.module for member in unit.producers])


FIRST = [f'backbone.layer{s}.{b}.conv1' for s in (1, 2, 3) for b in (0, 1)]
NINE = [round(0.1 * n, 1) for n in range(1, 10)]


def test_the_same_list_in_two_layouts(tiny):
    chip = expand_sparsity(tiny, NINE, ['chip'])
    assert chip == {stage(tiny, 1): 0.2, stage(tiny, 2): 0.3, **dict(zip(FIRST, NINE[3:]))}
    dcff = expand_sparsity(tiny, NINE, ['dcff'])
    assert dcff == {**dict(zip(FIRST, NINE)), stage(tiny, 1): 0.7, stage(tiny, 2): 0.8, stage(tiny, 3): 0.9}
    assert expand_sparsity(tiny, NINE, ['units']) == dict(zip(tiny.prunable, NINE))


def test_two_readings_are_an_error_and_not_a_guess(tiny):
    with pytest.raises(TargetError, match=r'9 ratios can be read in 2 ways for this network \(chip, dcff\); '
                       'write the layout before the list, as in "chip: '):
        keeps_from_ratios(tiny, NINE)
    # Two readings that give every unit the same ratio are one.
    assert set(expand_sparsity(tiny, [0.0] * 9).values()) == {0.0}


def test_a_string_names_its_layout(tiny):
    text = '+'.join(f'[{ratio}]' for ratio in NINE)
    first, third = FIRST[0], stage(tiny, 3)
    # int(16 * 0.6) = 9 and int(16 * 0.9) = 14; int(64 * 0.1) = 6, in doubles 64 * (1 - 0.9) = 6.39...
    assert (keeps := keeps_from_ratios(tiny, f'chip: {text}'))[first] == 9
    assert keeps[third] == 64
    assert (keeps := keeps_from_ratios(tiny, f' dcff :{text}'))[first] == 14
    assert keeps[third] == 6
    # The name in the string wins over what the caller prefers.
    assert keeps_from_ratios(tiny, f'chip: {text}', ['dcff'])[third] == 64


def test_a_mutator_reads_the_strings_of_its_papers(tiny, classifier):
    class Dcff(L1Mutator):
        sparsity_layouts = ('dcff', 'blocks', 'units')

    model = classifier(dict(type='mmprune_ext.CifarResNet', depth=14), 64)
    mutator = Dcff(demo_inputs=(32, 32))
    mutator.prepare(model, tiny.copy())
    assert mutator.choose(model, NINE)[stage(tiny, 3)].keep == 6
    mutator = L1Mutator(demo_inputs=(32, 32))
    mutator.prepare(model, tiny.copy())
    with pytest.raises(TargetError, match='9 ratios can be read in 2 ways'):
        mutator.choose(model, NINE)


def test_bottlenecks_of_three_layouts(traced, classifier):
    _, units = traced(classifier, 'resnet50')
    dcff = expand_sparsity(units, [n / 100 for n in range(37)])
    assert dcff['backbone.conv1'] == 0.0
    assert (dcff['backbone.layer1.0.conv1'], dcff['backbone.layer4.2.conv1']) == (0.01, 0.16)
    assert (dcff['backbone.layer1.0.conv2'], dcff['backbone.layer4.2.conv2']) == (0.17, 0.32)
    assert [dcff[f'backbone.layer{n}.0.conv3'] for n in (1, 2, 3, 4)] == [0.33, 0.34, 0.35, 0.36]
    chip = expand_sparsity(units, [n / 100 for n in range(20)])
    assert chip['backbone.layer1.0.conv1'] == chip['backbone.layer1.0.conv2'] == 0.04
    assert 'backbone.layer4.0.conv3' not in chip
    blocks = expand_sparsity(units, [0.0] + [0.3, 0.2, 0.1] * 16)
    assert [blocks[f'backbone.layer3.5.conv{n}'] for n in (1, 2)] == [0.3, 0.2]
    assert blocks['backbone.layer3.0.conv3'] == 0.1
    with pytest.raises(TargetError, match=r'38 ratios do not fit this network of 4 stages and 16 blocks: expected '
                       r'20 \(chip: .*\) or 37 \(dcff: .*\) or 49 \(blocks: '):
        expand_sparsity(units, [0.1] * 38)


def test_a_stem_of_three_convolutions(classifier):
    units = trace_units(classifier(dict(type='ResNetV1c', depth=50), 2048), (32, 32))
    stem = list(units.prunable)[:3]
    assert all(name.startswith('backbone.stem.') for name in stem)
    blocks = expand_sparsity(units, [0.1, 0.2, 0.3] + [0.35, 0.4, 0.1] * 16)
    assert [blocks[name] for name in stem] == [0.1, 0.2, 0.3]
    dcff = expand_sparsity(units, [0.1, 0.2, 0.3] + [0.5] * 32 + [0.4] * 4)
    assert [dcff[name] for name in stem] == [0.1, 0.2, 0.3]
    chip = expand_sparsity(units, [0.1] + [0.2] * 3 + [0.3] * 16)
    assert [chip[name] for name in stem] == [0.1] * 3


@pytest.mark.parametrize('layout', ['chip', 'dcff', 'blocks'])
def test_layouts_of_stages_need_stages(traced, classifier, layout):
    _, units = traced(classifier, 'vgg16')
    with pytest.raises(TargetError, match=f'the layout {layout} does not apply to it'):
        keeps_from_ratios(units, f'{layout}: [0.5]*13')


def test_blocks_need_a_stem_of_its_own(tiny):
    with pytest.raises(TargetError, match='the layout blocks does not apply to it'):
        keeps_from_ratios(tiny, 'blocks: [0.5]*13')


def test_names_of_layouts():
    assert split_layout('chip: [0.1]') == ('chip', '[0.1]')
    assert split_layout('[0.1]') == (None, '[0.1]')
    with pytest.raises(TargetError, match=f'unknown layout "dccf"; choose from {", ".join(LAYOUTS)}'):
        split_layout('dccf: [0.1]')


@pytest.mark.parametrize(('text', 'expected'), [
    ('[0.1]', True), ('  dcff: [0.1]*3', True), ('ratios.json', False), ('runs: old/ratios.json', False),
    ('a:b[1].json', False),
])
def test_strings_and_paths(text, expected):
    assert is_sparsity(text) is expected
