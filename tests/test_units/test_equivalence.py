"""A slimmed model computes what the dense model computes with the removed channels silenced."""

import copy

import pytest
import torch

from mmprune_ext.units import slim, trace_units
from tests.test_units.reference import assert_close, choose, outputs_of, silenced, training_step
from tests.test_units.toy_nets import TOYS

SEEDS = (1, 2, 3)
TOLERANCE = 1e-4


@pytest.fixture(scope='module')
def traced():
    """Return a function that traces each toy net once."""
    known = {}

    def trace(name):
        if name not in known:
            net = TOYS[name].build()
            known[name] = net, trace_units(net, TOYS[name].example(1))
        net, units = known[name]
        return net, units.copy()
    return trace


def run(net, x):
    """Run a net with the same random numbers each time."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return outputs_of(net(x))


def set_mode(net, training):
    """Set the mode of all modules without the nets' own train()."""
    for module in net.modules():
        module.training = training


@pytest.mark.parametrize('seed', SEEDS)
@pytest.mark.parametrize('name', TOYS)
def test_slimmed_equals_silenced(traced, name, seed):
    """In eval mode, for any choice, also with other batch sizes and values than were traced."""
    net, units = traced(name)
    choose(units, seed)
    reference = silenced(net, units)
    slimmed = slim(copy.deepcopy(net), units)
    x = TOYS[name].example(2, seed)
    with torch.no_grad():
        assert_close(run(slimmed, x), run(reference, x), TOLERANCE)


@pytest.mark.parametrize('name', TOYS)
def test_same_in_train_mode(traced, name):
    """Batch statistics and branches of training included."""
    net, units = traced(name)
    choose(units, 4)
    reference = silenced(net, units)
    slimmed = slim(copy.deepcopy(net), units)
    x = TOYS[name].example(3, 4)
    for model in (reference, slimmed):
        set_mode(model, True)
    with torch.no_grad():
        assert_close(run(slimmed, x), run(reference, x), TOLERANCE)


@pytest.mark.parametrize('name', TOYS)
def test_training_step(traced, name):
    net, units = traced(name)
    choose(units, 5)
    slimmed = slim(copy.deepcopy(net), units)
    set_mode(slimmed, True)
    loss = sum(out.pow(2).mean() for out in run(slimmed, TOYS[name].example(3)))
    training_step(slimmed, loss)


@pytest.mark.parametrize('name', TOYS)
def test_slimmed_is_smaller(traced, name):
    """One channel of every unit goes, and with it exactly its places in all its layers."""
    net, units = traced(name)
    for unit in units.prunable.values():
        unit.choose(range(1, unit.num_channels))
    slimmed = slim(copy.deepcopy(net), units)
    layers = dict(net.named_modules())
    wanted = {}
    for unit in units.prunable.values():
        for member in unit.producers:
            if member.dim is None and hasattr(layers[member.module], 'weight'):
                wanted[member.module] = wanted.get(member.module, 0) + member.block
    for path, layer in layers.items():
        if not isinstance(layer, (torch.nn.Linear, torch.nn.modules.conv._ConvNd)):
            continue
        removed = out_width(layer) - out_width(slimmed.get_submodule(path))
        if not getattr(layer, 'groups', 1) == getattr(layer, 'in_channels', 0) > 1:
            assert removed == wanted.get(path, 0), path


def out_width(layer):
    """Return the number of output channels that a layer's weight really has."""
    if isinstance(layer, torch.nn.modules.conv._ConvTransposeNd):
        return layer.weight.shape[1] * layer.groups
    return layer.weight.shape[0]


def test_frozen_layers_stay_frozen(traced):
    net, units = traced('Frozen')
    choose(units, 1)
    slimmed = slim(copy.deepcopy(net), units)
    flags = {name: p.requires_grad for name, p in net.named_parameters()}
    assert {name: p.requires_grad for name, p in slimmed.named_parameters()} == flags
    assert not flags['stem.0.weight']
    assert flags['a.0.weight']


def test_state_dict_round_trip(traced):
    """A slimmed model's weights load into a model that was slimmed by the same units."""
    net, units = traced('DenseConcat')
    choose(units, 1)
    first, second = (slim(copy.deepcopy(net), units) for _ in range(2))
    x = TOYS['DenseConcat'].example()
    for parameter in first.parameters():
        torch.nn.init.normal_(parameter)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))
