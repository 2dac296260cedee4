"""The choice of one model taken over by another: by name, by index, or not at all."""
from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from mmprune_ext.errors import UnitFileError
from mmprune_ext.units import ChannelUnit, Reason, UnitSet, trace_units
from tests.test_units.toy_nets import toy_layers


def set_of(**widths: int) -> UnitSet:
    return UnitSet([ChannelUnit(name, count) for name, count in widths.items()])


def chosen(**indices: Any) -> UnitSet:
    units = set_of(conv1=8, conv2=12)
    for name, kept in indices.items():
        units[name].choose(kept)
    return units


def choices(units: UnitSet) -> dict[str, Any]:
    return {name: unit.indices for name, unit in units.items()}


def test_the_very_channels_are_taken():
    own = set_of(conv1=8, conv2=12, conv3=4)
    own['conv3'].choose([0])
    own.take_choices(chosen(conv1=[7, 1, 4]), 'a.json')
    assert choices(own) == {'conv1': [1, 4, 7], 'conv2': None, 'conv3': None}


def test_units_that_are_whole_there_need_not_be_here():
    """Nor need they have the same width: outputs for another number of classes are whole in both."""
    other = UnitSet([*chosen(conv1=[2]).values(), ChannelUnit('head', 10), ChannelUnit('extra', 3)])
    own = set_of(conv1=8, head=7)
    own['head'].forbid(Reason.OUTPUT)
    own.take_choices(other, 'a.json')
    assert choices(own) == {'conv1': [2], 'head': None}


def test_later_choices_are_each_models_own():
    other, own = chosen(conv1=[1, 2]), set_of(conv1=8)
    own.take_choices(other, 'a.json')
    own['conv1'].indices.append(5)
    assert other['conv1'].indices == [1, 2]


@pytest.mark.parametrize(('own', 'message'), [
    (set_of(conv0=8, other=3), r'a\.json: unknown channel unit "conv1"; did you mean conv0\?'),
    (set_of(conv1=16), r'a\.json: unit "conv1" has 8 channels, in the model it has 16; was it written for another'),
], ids=['unknown', 'width'])
def test_units_of_another_network(own, message):
    with pytest.raises(UnitFileError, match=message):
        own.take_choices(chosen(conv1=[1, 2]), 'a.json')


@pytest.mark.parametrize(('reason', 'hint'), [(Reason.ATTENTION, ''), (Reason.OUT_OF_SCOPE, '; --scope, or scope of')])
def test_unit_that_cannot_be_pruned_here(reason, hint):
    own = set_of(conv1=8, conv2=12)
    own['conv1'].choose([3])
    own['conv2'].forbid(reason, 'attn')
    with pytest.raises(UnitFileError, match=rf'unit "conv2" cannot be pruned in this model: {reason.value} \(attn\)'
                                            rf'{hint}') as caught:
        own.take_choices(chosen(conv1=[1], conv2=[0]), 'a.json')
    assert ('--scope' in str(caught.value)) == bool(hint)
    assert choices(own) == {'conv1': [3], 'conv2': None}  # all of them or none


def test_a_choice_that_prunes_nothing():
    for other in (chosen(), chosen(conv1=range(8))):
        with pytest.raises(UnitFileError, match=r'a\.json: prunes nothing, each of its 2 units keeps all'):
            set_of(conv1=8, conv2=12).take_choices(other, 'a.json')


NUMBERS = {'own': {'schema': 1, 'units': {'conv1': {'num_channels': 8, 'keep': 3}}},
           'mmrazor': {'conv1_(0, 8)_8': {'choice': 3}}}


@pytest.mark.parametrize('form', NUMBERS)
def test_numbers_do_not_say_which(form):
    other = UnitSet.from_dict(NUMBERS[form], 'a.json')
    assert other['conv1'].by_number and other['conv1'].indices == [0, 1, 2]
    with pytest.raises(UnitFileError, match=r'a\.json: unit "conv1" keeps 3 of 8 channels, but no "indices" say which; '
                                            r'.* a target: tools/prune\.py --ratio'):
        set_of(conv1=8).take_choices(other, 'a.json')
    # What is written of them says no more than what was read, and reads as the same.
    content = other.to_json()
    assert content['units']['conv1']['keep'] == 3 and 'indices' not in content['units']['conv1']
    again = UnitSet.from_dict(content, 'b.json')
    assert again['conv1'] == other['conv1'] and other.copy()['conv1'].by_number
    again['conv1'].choose([0, 1, 2])
    assert not again['conv1'].by_number and again.to_json()['units']['conv1']['indices'] == [0, 1, 2]
    assert [unit.name for unit in again.require_choice('b.json')] == ['conv1']


def test_ratios_are_a_target():
    with pytest.raises(UnitFileError, match=r'a\.json: not a channel-unit file .*ratios are a target: .*--ratio'):
        UnitSet.from_dict({'conv1': 0.5}, 'a.json')


# ---------------------------------------------------------------- the very model


class Net(nn.Module):
    """The chain as a backbone, with a head that may have a layer more."""

    def __init__(self, deep: bool = False, backbone: type[nn.Module] = toy_layers.Chain) -> None:
        super().__init__()
        self.backbone = backbone()
        self.neck = nn.Conv2d(5, 5, 1) if deep else nn.Identity()

    def forward(self, images):
        return self.neck(self.backbone(images))


class Wider(toy_layers.Chain):
    """The chain with more outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 9)


def test_which_model_units_describe():
    net = Net()
    units = trace_units(net, toy_layers.Chain.example(1))
    assert units.describes(net) and units.describes(Net())
    # It fits, for a file may serve another head; but a layer there would read channels that are gone.
    deeper = Net(deep=True)
    units.check(deeper)
    assert not units.describes(deeper)
    assert not units.describes(Net(backbone=Wider))
    assert not UnitSet.from_dict(units.to_json(channels=False), 'a.json').describes(net)
