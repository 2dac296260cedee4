"""Stripes and shortcuts in channel-unit files: written, read, refused, applied."""
from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmprune_ext.errors import UnitFileError
from mmprune_ext.ops import ShortcutBlock, StripeConv2d
from mmprune_ext.units import UnitSet, slim, trace_units
from mmprune_ext.units.slimming import smaller_kernel
from mmprune_ext.units.stripes import LayerStripes, Shortcut


class Net(nn.Module):
    def __init__(self, kernel: int = 3) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, kernel, padding=kernel // 2)
        self.second = nn.Conv2d(8, 4, kernel, padding=kernel // 2, bias=False)
        self.wide = nn.Conv2d(4, 4, (1, 5), padding=(0, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(torch.relu(self.second(torch.relu(self.first(x)))))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def units(net) -> UnitSet:
    found = trace_units(net, (3, 8, 8), 'all')
    generator = np.random.default_rng(0)
    found.stripes = {'first': LayerStripes(generator.random((8, 3, 3)) < 0.5, 'stripes'),
                     'wide': LayerStripes(generator.random((4, 1, 5)) < 0.5)}
    return found


def test_written_and_read(units, tmp_path):
    units.shortcuts = {'second': Shortcut('a', 'relu')}
    units.save(tmp_path / 'units.json')
    read = UnitSet.load(tmp_path / 'units.json')
    assert read.stripes.keys() == units.stripes.keys()
    for path, layer in units.stripes.items():
        assert np.array_equal(read.stripes[path].keep, layer.keep) and read.stripes[path].form == layer.form
    assert read.shortcuts == units.shortcuts
    assert read.has_choices and not trace_units(Net(), (3, 8, 8), 'all').has_choices


def test_bits_by_hand():
    """Bit row * kW + column."""
    keep = np.zeros((2, 2, 3), dtype=bool)
    keep[0, 0, 1] = keep[0, 1, 2] = keep[1, 1, 0] = True
    record = LayerStripes(keep, 'dense').to_dict()
    assert record == {'kernel_size': [2, 3], 'keep': [2 ** 1 + 2 ** 5, 2 ** 3], 'form': 'dense'}
    assert np.array_equal(LayerStripes.from_dict(record, '').keep, keep)


def test_a_file_without_stripes_has_no_such_section(net):
    assert set(trace_units(net, (3, 8, 8), 'all').to_json()) == {'schema', 'architecture', 'units'}


def test_slim_zeroes_what_is_gone(net, units):
    """Beside channels that leave: rows of `keep` are filters of the dense model."""
    units['first'].choose([0, 2, 3, 7])
    units.stripes['second'] = LayerStripes(np.ones((4, 3, 3), dtype=bool))
    masked = copy.deepcopy(net)
    for path in ('first', 'wide'):
        layer = masked.get_submodule(path)
        layer.weight.data[~torch.from_numpy(units.stripes[path].keep)[:, None].expand_as(layer.weight)] = 0
    masked.first.weight.data[[1, 4, 5, 6]] = 0
    masked.first.bias.data[[1, 4, 5, 6]] = 0
    x = torch.randn(2, 3, 8, 8)
    slimmed = slim(copy.deepcopy(net), units)
    torch.testing.assert_close(slimmed(x), masked(x))
    assert isinstance(slimmed.first, StripeConv2d) and slimmed.first.form == 'stripes'
    assert slimmed.first.num_stripes == units.stripes['first'].keep[[0, 2, 3, 7]].sum()
    assert type(slimmed.second) is nn.Conv2d, 'it has lost nothing'
    assert slimmed.wide.form == 'dense'


@pytest.mark.parametrize(('change', 'message'), [
    (dict(kernel_size=[5, 5]), 'stripes of "first": its kernel is 5x5 there, 3x3 in the model'),
    (dict(keep=[1] * 7), 'it has 7 filters there, 8 in the model'),
    (dict(form='fast'), 'form should be one of dense, stripes, got \'fast\''),
    (dict(keep=[512] * 8), 'keep should hold an integer of 9 bits for each filter'),
    (dict(keep=[0.5] * 8), 'keep should hold an integer of 9 bits'),
    (dict(keep=[]), 'keep should hold an integer of 9 bits'),
    (dict(keep=None), 'is malformed|keep should hold'),
    (dict(kernel_size=3), 'is malformed: TypeError'),
])
def test_stripes_of_another_model(net, units, change, message):
    content = json.loads(json.dumps(units.to_json()))
    content['stripes']['first'].update(change)
    with pytest.raises(UnitFileError, match=message) as error:
        slim(net, UnitSet.from_dict(content, 'units.json'))
    assert 'first' in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(('sections', 'message'), [
    (dict(stripes={'third': dict(kernel_size=[3, 3], keep=[1])}), 'stripes of "third": the model has no such layer'),
    (dict(stripes=[1]), 'stripes should be an object, got list'),
    (dict(shortcuts={'first': dict(layer='skip')}), 'shortcut of block "first": the model has no "first.skip"'),
    (dict(shortcuts={'block': {}}), 'shortcut of block "block": the model has no "block"'),
    (dict(shortcuts={'first': 'identity'}), 'expected the names of a layer and an activation'),
    (dict(shortcuts={'first': dict(skip='a')}), 'expected the names of a layer and an activation'),
])
def test_malformed_sections(net, units, sections, message):
    with pytest.raises(UnitFileError, match=message):
        slim(net, UnitSet.from_dict({**units.to_json(), **sections}, 'units.json'))


def test_stripes_of_a_layer_that_is_no_plain_convolution(units):
    other = nn.Sequential()
    other.add_module('first', nn.Linear(3, 8))
    from mmprune_ext.units.stripes import check_records
    with pytest.raises(UnitFileError, match='it is a Linear in the model, a convolution is needed'):
        check_records(units.stripes, {}, other, 'units.json')


@pytest.mark.parametrize('dilation', [1, 2])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize(('rows', 'columns', 'plain'), [
    ((1, 2), (0, 3), True), ((0, 3), (1, 2), True), ((1, 2), (1, 2), True), ((0, 2), (0, 3), False),
    ((1, 3), (1, 2), False)])
def test_smaller_kernel(rows, columns, plain, stride, dilation):
    """The box of positions that are left; where zeros on one side only would be needed, there is no plain one."""
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, stride, padding=dilation, dilation=dilation)
    keep = torch.zeros(6, 3, 3, dtype=torch.bool)
    keep[:, slice(*rows), slice(*columns)] = True
    masked = copy.deepcopy(conv)
    masked.weight.data[~keep[:, None].expand_as(conv.weight)] = 0
    smaller = smaller_kernel(conv, keep)
    assert (smaller is not None) == plain
    if plain:
        assert smaller.kernel_size == (rows[1] - rows[0], columns[1] - columns[0])
        x = torch.randn(2, 4, 9, 7)
        torch.testing.assert_close(smaller(x), masked(x))


@pytest.mark.parametrize('change', [dict(padding_mode='reflect'), dict(padding=0)])
def test_no_smaller_kernel(change):
    """Other values than zeros are padded, or less than the kernel loses."""
    conv = nn.Conv2d(4, 6, 3, **{'padding': 1, **change})
    keep = torch.zeros(6, 3, 3, dtype=torch.bool)
    keep[:, 1, 1] = True
    assert smaller_kernel(conv, keep) is None


def test_no_stripe_at_all():
    assert smaller_kernel(nn.Conv2d(4, 6, 3, padding=1), torch.zeros(6, 3, 3, dtype=torch.bool)) is None


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(4, 4, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv(x) + self.shortcut(x))


def test_a_block_that_is_its_shortcut():
    """It keeps the names of its weights, and leaves its input as it is."""
    block = Block()
    block.conv.weight.data.zero_()
    short = ShortcutBlock(block, 'shortcut', 'relu')
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(short(x), block(x.clone()))
    assert set(short.state_dict()) == {'shortcut.weight', 'shortcut.bias'}
    identity, before = ShortcutBlock(block, '', 'relu'), x.clone()
    torch.testing.assert_close(identity(x), before.relu())
    assert torch.equal(x, before)
    assert ShortcutBlock(block)(x) is x


@pytest.mark.parametrize('names', [('downsample', ''), ('', 'gelu')])
def test_a_layer_that_the_block_has_not(names):
    with pytest.raises(ValueError, match=f'Block has no layer "{names[0] or names[1]}"; it has conv, shortcut, relu'):
        ShortcutBlock(Block(), *names)


def test_choices_are_taken_over_with_their_stripes(net, units):
    units['first'].choose([0, 2])
    own = trace_units(Net(), (3, 8, 8), 'all')
    own.take_choices(units, 'units.json')
    assert own['first'].indices == [0, 2] and own.stripes.keys() == units.stripes.keys()


def test_copies_are_independent(units: Any):
    other = units.copy()
    del other.stripes['first']
    assert 'first' in units.stripes
