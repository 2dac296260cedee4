"""Where gates act: closed ones leave what the slimmed network computes, open ones the dense network."""
from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmprune_ext.mutators import CHIPMutator, ChipNetMutator, FisherMutator, L1Mutator, StripeMutator
from mmprune_ext.mutators.base import between_weights
from mmprune_ext.ops import ChannelGate
from mmprune_ext.units import Reason, UnitSet, slim, trace_units
from mmprune_ext.units.kinds.attention import is_of_attention
from mmprune_ext.units.tracing.gate_sites import find_gate_sites, weights_that_hear
from tests.test_units.reference import assert_close, choose, outputs_of
from tests.test_units.toy_nets import TOYS


def gated(model: nn.Module, units: UnitSet, inputs: Tensor) -> nn.Module:
    """Return a copy of a model in which the gates of the units' choices are open, all others closed."""
    work = copy.deepcopy(model)
    gates = {}
    for name, unit in units.prunable.items():
        gates[name] = ChannelGate(unit.num_channels)
        kept = range(unit.num_channels) if unit.indices is None else unit.indices
        gates[name].mask = torch.zeros(unit.num_channels, dtype=torch.bool).index_fill(0, torch.tensor(kept), True)
    for site in find_gate_sites(model, units, inputs):
        site.attach(work, gates)
    return work


def run(net: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(5)
        return outputs_of(net(x))


@pytest.mark.parametrize('name', sorted(TOYS))
def test_closed_gates_are_channels_that_are_gone(name):
    """In eval and in train mode, where batch statistics see what is left."""
    net = TOYS[name].build()
    units = trace_units(net, TOYS[name].example(1))
    for unit in units.prunable.values():
        if between_weights(unit, units.functional) or any(
                member.dim is not None and (member in unit.producers or is_of_attention(net, member.module))
                for member in unit.members):
            unit.forbid(Reason.LAYER, 'weights that code takes, which a mutator that gates layers forbids too')
    for heard, weight in weights_that_hear(net, units, TOYS[name].example(1)).items():
        units[heard].forbid(Reason.WEIGHT, f'{weight}, for which such a mutator forbids it too')
    state = copy.deepcopy(net.state_dict())
    if not units.prunable:
        assert find_gate_sites(net, units, TOYS[name].example(1)) == []
        return
    dense = gated(net, units, TOYS[name].example(1))
    choose(units, 1)
    closed = gated(net, units, TOYS[name].example(1))
    for key, value in net.state_dict().items():
        assert torch.equal(value, state[key]), f'{key} was changed'
    slimmed = slim(copy.deepcopy(net), units)
    for training in (False, True):
        x = TOYS[name].example(3, 2)
        for model in (net, dense, closed, slimmed):
            for module in model.modules():
                module.training = training
        assert_close(run(closed, x), run(slimmed, x), 1e-4)
        assert_close(run(dense, x), run(net, x), 1e-6)


class Block(nn.Module):
    """A residual block whose sum is normalised by those who read it (pre-activation)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, 6, 3, padding=1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(6), nn.Conv2d(6, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(self.norm1(x).relu())
        return x + self.conv2(self.norm2(out).relu())


class PreActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), Block(4), Block(4), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x).relu().mean((2, 3)))


class Embedding(nn.Module):
    """Something is added to a channel on its way from the last layer to the one that reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 1)
        self.position = nn.Parameter(torch.randn(1, 4, 8, 8))
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x) + self.position).mean((2, 3))


class Attention(nn.Module):
    """Channels that no layer reads: products of two activations."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(5, 6) for _ in range(3))
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.query(x) @ self.key(x).transpose(1, 2)).softmax(-1)
        return self.out(weights @ self.value(x))


def sites_of(model: nn.Module, inputs: Tensor, scope: str = 'backbone') -> set[tuple[str, str]]:
    units = trace_units(model, inputs, scope)
    assert units.prunable
    return {(site.path, site.side) for site in find_gate_sites(model, units, inputs)}


def test_after_the_last_normalisation():
    """Of a residual sum each reader's own, not also the convolutions before."""
    assert sites_of(PreActivation(), torch.randn(1, 3, 8, 8)) == {
        ('backbone.1.norm1', 'out'), ('backbone.1.norm2', 'out'), ('backbone.2.norm1', 'out'),
        ('backbone.2.norm2', 'out'), ('backbone.3', 'out')}


def test_on_the_convolution_without_normalisation():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.PReLU(5), nn.MaxPool2d(2),
                          nn.Flatten(), nn.Linear(20, 2))
    assert sites_of(model, torch.randn(1, 3, 8, 8), 'all') == {('0', 'out'), ('2', 'out')}


def test_where_a_channel_is_read_if_no_gate_before_silences_it():
    assert sites_of(Embedding(), torch.randn(1, 3, 8, 8)) == {('backbone', 'out'), ('head', 'in')}


class Repeated(nn.Module):
    """One activation with a slope a channel, called twice: it stands before itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.slope = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.PReLU(6)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.slope(self.first(x))
        return self.head(self.slope(self.second(x) + x)).mean((2, 3))


def test_a_layer_that_is_called_twice():
    assert sites_of(Repeated(), torch.randn(1, 3, 8, 8), 'all') == {('first', 'out'), ('second', 'out')}


def test_where_no_layer_reads():
    sites = sites_of(Attention(), torch.randn(1, 4, 5), 'all')
    assert {('query', 'out'), ('key', 'out'), ('value', 'out')} == sites


def test_frozen_and_checkpointed_blocks():
    """Autograd does not see these by itself."""
    from mmpretrain.models import ResNet
    plain = ResNet(18, frozen_stages=2)
    checkpointed = ResNet(18, frozen_stages=2, with_cp=True)
    inputs = torch.randn(1, 3, 32, 32)
    found = [sites_of(nn.ModuleDict({'backbone': backbone})['backbone'], inputs, 'all')
             for backbone in (plain, checkpointed)]
    assert found[0] == found[1]
    assert ('layer1.0.bn1', 'out') in found[0]
    assert {path.split('.')[-1] for path, _ in found[0]} == {'bn1', 'bn2', '1'}
    assert all(block.with_cp for stage in checkpointed.res_layers for block in getattr(checkpointed, stage))


class OwnWeight(nn.Module):
    """A layer of one's own on 6 channels; what it makes of its weight is given."""

    def __init__(self, computed: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.weight = nn.Conv2d(3, 6, 1), nn.Parameter(torch.randn(5, 6, 1, 1))
        self.head, self.computed = nn.Conv2d(5, 2, 1), computed

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.conv2d(F.relu(self.stem(x)), self.computed(self.weight)).relu())


@pytest.mark.parametrize(('computed', 'hears'), [
    (lambda weight: F.normalize(weight, dim=1), True),
    (lambda weight: weight / weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1), True),
    (lambda weight: weight / (weight.square().sum() + 1).sqrt(), True),
    (lambda weight: 0.1 * weight, False),
    (lambda weight: weight / (weight.norm(dim=(2, 3), keepdim=True) + 1), False)])
def test_a_weight_that_hears_of_silent_channels(computed, hears):
    """It is divided by a norm over the channels that it reads, whatever these are."""
    model, inputs = OwnWeight(computed), torch.randn(1, 3, 4, 4)
    assert weights_that_hear(model, trace_units(model, inputs), inputs) == ({'stem': 'weight'} if hears else {})
    for mutator in (ChipNetMutator, StripeMutator):
        found = mutator(scope='all', demo_inputs=inputs).trace(model)['stem']
        assert found.prunable is not hears
        if hears:
            assert found.reason is Reason.WEIGHT
            assert 'code computes weight from all that it reads' in found.why()
    for mutator in (L1Mutator, CHIPMutator, FisherMutator):
        assert mutator(scope='all', demo_inputs=inputs).trace(model)['stem'].prunable
