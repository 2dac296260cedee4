"""Which units are given up when a slimmed model fails, and how many attempts that takes."""
import numpy as np
import pytest
import torch
from torch import nn

from mmprune_ext.units import ChannelUnit, Member, Reason, UnitSet, trace_units
from mmprune_ext.units.checking.verify import Mismatch, compare, verify
from mmprune_ext.units.slimming import random_choice
from tests.test_units.toy_nets import TOYS


def blocks(count, *names):
    """Return a model of blocks with layers of these names, and one unit a layer, named after it."""
    model = nn.ModuleList(nn.ModuleDict({name: nn.Conv2d(1, 4, 1) for name in names}) for _ in range(count))
    return model, UnitSet([ChannelUnit(f'{i}.{name}', 4, [Member(f'{i}.{name}', 0, 4)])
                           for i in range(count) for name in names])


class Judge:
    """Fails where all units of a group lose channels; counts how often it is asked.

    Args:
        groups: Names of units.
        places: Whether it tells the block of the first of them.
    """

    def __init__(self, *groups, places=True):
        self.groups, self.places, self.asked = groups, places, 0

    def __call__(self, model, units):
        self.asked += 1
        for group in self.groups:
            if all(units[name].keep < units[name].num_channels for name in group):
                raise Mismatch(Reason.FIXED_SIZE, group[0], group[0].partition('.')[0] if self.places else '')


def given_up(model, units, judge):
    verify(model, units, judge)
    return {unit.name for unit in units.values() if not unit.prunable}


@pytest.mark.parametrize('places', [True, False])
@pytest.mark.parametrize('bad', ['0.a', '5.a', '11.b'])
def test_a_single_unit(bad, places):
    model, units = blocks(12, 'a', 'b')
    judge = Judge([bad], places=places)
    assert given_up(model, units, judge) == {bad}
    assert units[bad].why() == f'{Reason.FIXED_SIZE.value} ({bad})'
    assert judge.asked <= 20


@pytest.mark.parametrize('places', [True, False])
def test_several_of_a_kind_of_which_others_pass(places):
    model, units = blocks(12, 'a', 'b')
    assert given_up(model, units, Judge(['3.a'], ['7.a'], ['8.a'], places=places)) == {'3.a', '7.a', '8.a'}


@pytest.mark.parametrize('places', [True, False])
def test_a_whole_kind_takes_few_attempts(places):
    model, units = blocks(12, 'a', 'b')
    judge = Judge(*([f'{i}.a'] for i in range(12)), places=places)
    assert given_up(model, units, judge) == {f'{i}.a' for i in range(12)}
    assert judge.asked <= 8


def test_kinds_that_failed_are_not_told_apart_block_by_block():
    """Where each block fails at a place of its own."""
    model, units = blocks(24, 'a', 'b', 'c', 'd')
    judge = Judge(*([f'{i}.{name}'] for i in range(24) for name in 'abc'))
    assert given_up(model, units, judge) == {f'{i}.{name}' for i in range(24) for name in 'abc'}
    assert judge.asked <= 20


@pytest.mark.parametrize('places', [True, False])
def test_two_that_do_not_go_together(places):
    """Each may go alone: one of them stays prunable, and so do all others."""
    model, units = blocks(6, 'a', 'b')
    found = given_up(model, units, Judge(['1.a', '4.b'], places=places))
    assert len(found) == 1
    assert found <= {'1.a', '4.b'}


def test_layers_of_one_name_in_other_modules_are_of_other_kinds():
    """LeViT: each of its linear layers is called `linear`, in `qkv` as in `linear1`."""
    model = nn.ModuleList(nn.ModuleDict({part: nn.ModuleDict({'linear': nn.Linear(1, 4)})
                                         for part in ('qkv', 'linear1')}) for _ in range(4))
    units = UnitSet([ChannelUnit(name, 4, [Member(name, 0, 4)]) for name, layer in model.named_modules()
                     if isinstance(layer, nn.Linear)])
    bad = {f'{i}.qkv.linear' for i in range(4)}
    assert given_up(model, units, Judge(*([name] for name in bad), places=False)) == bad


def test_what_passed_has_passed_together():
    """The last attempt that passed is of just the units that are left."""
    model, units = blocks(8, 'a', 'b', 'c')
    passed = []

    def judge(model, trial):
        chosen = {name: unit.indices for name, unit in trial.items() if unit.keep < 4}
        if len(chosen) > 13:
            raise Mismatch(Reason.VALUES, 'too many')
        passed.append(chosen)
    verify(model, units, judge)
    assert passed[-1].keys() == units.prunable.keys()
    assert len(units.prunable) == 13


@pytest.mark.parametrize(('name', 'place'), [('HeadsAndAShortcut', 'attn'), ('BiasOfNumbers', '')])
def test_the_place_of_a_failure(name, place):
    net, x = TOYS[name].build(), TOYS[name].example(1)
    units = trace_units(net, x)
    broken = next(unit for unit in units.values() if unit.reason is Reason.FIXED_SIZE)
    broken.prunable = True
    broken.choose(range(2))
    with pytest.raises(Mismatch) as caught:
        compare(net, units, [lambda model: model(x)])
    assert caught.value.place == place


def test_the_place_is_that_of_a_layer():
    net, x = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv2d(4, 5, 1))), torch.randn(1, 3, 4, 4)
    units = trace_units(net, x)
    units['0'].consumers.clear()
    units['0'].choose(range(2))
    with pytest.raises(Mismatch) as caught:
        compare(net, units, [lambda model: model(x)])
    assert caught.value.place == '1.0'


class Pairs(nn.Module):
    """Two layers of one width behind each other, twice: code could take the half of what it finds for one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Conv2d(3, 8, 1) for _ in range(4))
        self.head = nn.Conv2d(32, 5, 1)

    def forward(self, x):
        return self.head(torch.cat([part(x) for part in self.parts], 1))


def test_units_that_meet_in_a_layer_lose_differently_many():
    """One try for all is then enough; of 8 channels 2 to 6 may stay."""
    units = trace_units(Pairs(), (4, 4))
    for seed in range(20):
        random_choice(list(units.prunable.values()), np.random.default_rng(seed))
        assert len({unit.keep for unit in units.prunable.values()}) == 4
    tried = []
    verify(Pairs(), units, lambda model, trial: tried.append(trial))
    assert len(tried) == 1


def test_where_widths_are_few_they_are_tried_apart():
    model = nn.Module()
    units = UnitSet([ChannelUnit(name, 4, [Member(name, 0, 4)], consumers=[Member('head', at, at + 4)])
                     for at, name in ((0, 'a'), (4, 'b'), (8, 'c'))])
    tried = []
    verify(model, units, lambda model, trial: tried.append(
        [name for name, unit in trial.items() if unit.keep < unit.num_channels]))
    assert tried[0] == ['a', 'b', 'c']  # of 4 channels 2 stay
    assert ['a'] in tried
