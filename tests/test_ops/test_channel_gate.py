"""Gates of channels: their values, what they do to layers, and that nothing else of a layer changes."""
from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.wrappers import Conv2d as WrappedConv2d
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmprune_ext.ops import ChannelGate, ChannelGates, ZeroPadShortcut
from mmprune_ext.ops.gated_layer import gate_layer, is_gated, remove_gates
from mmprune_ext.registry import MODELS
from mmprune_ext.scores.heaviside import GateSchedule, heaviside, logistic


class StandardisedConv2d(nn.Conv2d):
    """A convolution whose outputs do not follow its weights' scale."""

    def forward(self, x):
        weight = self.weight / self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x):
        return F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias,
                            self.eps).permute(0, 3, 1, 2)


def gate(size, seed=0, beta=1.3, gamma=5.0):
    made = ChannelGate(size).double()
    with torch.no_grad():
        made.psi.copy_(torch.randn(size, generator=torch.Generator().manual_seed(seed)))
    made.beta, made.gamma = beta, gamma
    return made


def values(made):
    return heaviside(logistic(made.psi, made.beta), made.gamma)


def test_gate_multiplies_channels():
    made, x = gate(4), torch.randn(2, 4, 3, 5, dtype=torch.float64)
    want = torch.stack([x[:, c] * values(made)[c] for c in range(4)], 1)
    torch.testing.assert_close(made(x), want)
    torch.testing.assert_close(made(x.movedim(1, -1), dim=-1), want.movedim(1, -1))
    made.mask = torch.tensor([True, False, False, True])
    assert torch.equal(made(x), x * made.mask.view(1, 4, 1, 1))


def test_gate_starts_as_published():
    torch.manual_seed(0)
    made = MODELS.build(dict(type='mmprune_ext.ChannelGate', num_channels=1000))
    assert 0 <= float(made.psi.min()) < float(made.psi.max()) < 0.01
    with pytest.raises(ValueError, match='at least 1, and least 0 to num_channels, got 0 and 0'):
        ChannelGate(0)


def test_the_largest_gates_stay_open():
    """And learn nothing while they are the largest."""
    made = ChannelGate(4, least=2).double()
    with torch.no_grad():
        made.psi.copy_(torch.tensor([-3.0, 1.0, -9.0, -2.0]))
    made.beta, made.gamma = 1.3, 5.0
    formula = values(made)
    torch.testing.assert_close(made.values(), torch.stack([formula[0], formula[1] * 0 + 1, formula[2],
                                                           formula[3] * 0 + 1]))
    made.values().sum().backward()
    assert [bool(gradient) for gradient in made.psi.grad] == [True, False, True, False]
    layer = nn.BatchNorm1d(4).double().eval()
    gate_layer(layer, [made], torch.arange(4))
    x = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(layer(x), nn.BatchNorm1d(4).double().eval()(x) * made.values())
    with pytest.raises(ValueError, match='got 4 and 5'):
        ChannelGate(4, least=5)


LAYERS = {
    'conv': (lambda: nn.Conv2d(3, 6, 3), (2, 3, 5, 5), 1),
    'conv without bias': (lambda: nn.Conv2d(3, 6, 3, bias=False), (2, 3, 5, 5), 1),
    'mmcv conv': (lambda: WrappedConv2d(3, 6, 3), (2, 3, 5, 5), 1),
    'grouped': (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 5), 1),
    'conv1d': (lambda: nn.Conv1d(3, 6, 3), (2, 3, 5), 1),
    'transposed': (lambda: nn.ConvTranspose2d(3, 6, 2, stride=2), (2, 3, 5, 5), 1),
    'grouped transposed': (lambda: nn.ConvTranspose2d(4, 6, 2, groups=2), (2, 4, 5, 5), 1),
    'standardised': (lambda: StandardisedConv2d(3, 6, 3), (2, 3, 5, 5), 1),
    'batch norm': (lambda: nn.BatchNorm2d(6), (4, 6, 3, 3), 1),
    'batch norm without scale': (lambda: nn.BatchNorm2d(6, affine=False), (4, 6, 3, 3), 1),
    'instance norm': (lambda: nn.InstanceNorm2d(6, affine=True), (4, 6, 3, 3), 1),
    'linear': (lambda: nn.Linear(5, 6), (2, 7, 5), 2),
    'prelu': (lambda: nn.PReLU(6), (2, 6, 4, 4), 1),
    'shortcut': (lambda: ZeroPadShortcut(4, 6, 2), (2, 4, 4, 4), 1),
}


@pytest.mark.parametrize('name', LAYERS)
@pytest.mark.parametrize('training', [True, False])
def test_gated_layer_is_the_layer_times_the_gates(name, training):
    build, shape, dim = LAYERS[name]
    torch.manual_seed(1)
    layer = build().double().train(training)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    plain, made = copy.deepcopy(layer), gate(6)
    gate_layer(layer, [made], torch.arange(6))
    x = torch.randn(shape, dtype=torch.float64)
    want = plain(x) * values(made).view([-1 if d == dim else 1 for d in range(len(shape))])
    torch.testing.assert_close(layer(x), want)
    assert list(layer.state_dict()) == list(plain.state_dict())
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[key], value)
    upstream = torch.randn_like(want)
    got = torch.autograd.grad((layer(x) * upstream).sum(), [*layer.parameters(), made.psi])
    want = torch.autograd.grad((plain(x) * values(made).view(
        [-1 if d == dim else 1 for d in range(len(shape))]) * upstream).sum(), [*plain.parameters(), made.psi])
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b)
    assert is_gated(layer, 'out') and not is_gated(layer, 'in')
    remove_gates(layer)
    torch.testing.assert_close(layer(x), plain(x))
    assert 'forward' not in vars(layer)


def test_channels_of_several_units_and_of_none():
    """A layer whose channels are those of two units, out of order and repeated, beside some of no unit."""
    first, second = gate(2, 0), gate(3, 1)
    layer = nn.Conv2d(2, 8, 1).double()
    plain, none = copy.deepcopy(layer), 5
    gate_layer(layer, [first, second], torch.tensor([3, none, 0, 0, 1, 4, none, 2]))
    a, b = values(first), values(second)
    one = torch.ones((), dtype=torch.float64)
    want = torch.stack([b[1], one, a[0], a[0], a[1], b[2], one, b[0]])
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(layer(x), plain(x) * want.view(1, 8, 1, 1))
    first.mask, second.mask = torch.tensor([True, False]), torch.tensor([False, True, True])
    assert torch.equal(layer(x), plain(x) * torch.tensor([1., 1, 1, 1, 0, 1, 1, 0]).double().view(1, 8, 1, 1))


def test_inputs_are_gated():
    made, layer = gate(5), nn.Linear(5, 3).double()
    plain = copy.deepcopy(layer)
    gate_layer(layer, [made], torch.arange(5), side='in')
    x = torch.randn(2, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(x), plain(x * values(made)))
    other = gate(3, 2)
    gate_layer(layer, [other], torch.arange(3), side='out')
    torch.testing.assert_close(layer(x), plain(x * values(made)) * values(other))
    with pytest.raises(ValueError, match='gated already'):
        gate_layer(layer, [other], torch.arange(3), side='out')


NORMS = {
    'layer norm': (lambda n: nn.LayerNorm(n), (2, 7, 6), 2),
    'layer norm over channels of a map': (lambda n: LayerNorm2d(n), (2, 6, 3, 4), 1),
    'rms norm': (lambda n: nn.RMSNorm(n, eps=1e-6), (2, 7, 6), 2),
    'group norm': (lambda n: nn.GroupNorm(1, n), (2, 6, 3, 4), 1),
    'instance norm by groups': (lambda n: nn.GroupNorm(n, n), (2, 6, 3, 4), 1),
}


@pytest.mark.parametrize('name', NORMS)
def test_norm_of_closed_gates_is_that_of_the_channels_that_stay(name):
    build, shape, dim = NORMS[name]
    torch.manual_seed(2)
    layer, small = build(6).double(), build(4).double()
    keep = torch.tensor([0, 2, 3, 5])
    for parameter, other in zip(layer.parameters(), small.parameters()):
        nn.init.normal_(parameter)
        other.data.copy_(parameter.data[keep])
    made, x = gate(6), torch.randn(shape, dtype=torch.float64)
    plain = layer(x)
    gate_layer(layer, [made], torch.arange(6))
    made.mask = torch.ones(6, dtype=torch.bool)
    torch.testing.assert_close(layer(x), plain)
    made.mask = torch.zeros(6, dtype=torch.bool).index_fill(0, keep, True)
    found = layer(x)
    torch.testing.assert_close(found.index_select(dim, keep), small(x.index_select(dim, keep)))
    assert not found.index_select(dim, torch.tensor([1, 4])).any()


def test_norm_that_only_leaves_channels_out_of_its_statistics():
    layer, small = nn.LayerNorm(3).double(), nn.LayerNorm(2).double()
    made = gate(3)
    gate_layer(layer, [made], torch.arange(3), scale=False)
    made.mask = torch.tensor([True, False, True])
    x = torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(layer(x)[:, [0, 2]], small(x[:, [0, 2]]))
    assert bool(layer(x)[:, 1].any())


def test_norm_with_soft_gates_weighs_its_statistics():
    made, layer = gate(3), nn.LayerNorm(3, eps=0, elementwise_affine=False).double()
    gate_layer(layer, [made], torch.arange(3))
    x, z = torch.randn(3, dtype=torch.float64), values(made)
    mean = sum(z[c] * x[c] for c in range(3)) / z.sum()
    variance = sum(z[c] * (x[c] - mean) ** 2 for c in range(3)) / z.sum()
    want = torch.stack([z[c] * (x[c] - mean) / variance ** 0.5 for c in range(3)])
    torch.testing.assert_close(layer(x[None])[0], want)


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_have_gates_of_their_own(copied):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    model.gates = ChannelGate(4)
    gate_layer(model[1], [model.gates], torch.arange(4))
    other = copied(model)
    x = torch.randn(1, 3, 2, 2)
    torch.testing.assert_close(other(x), model(x))
    with torch.no_grad():
        other.gates.psi.fill_(-1e4)
    assert not other(x).any()
    assert bool(model(x).any())


@pytest.mark.parametrize('reentrant', [True, False])
def test_gradient_checkpointing(reentrant):
    """Layers that share a gate, each run again in the backward pass."""
    torch.manual_seed(0)
    layers, made = [nn.Conv2d(4, 4, 3, padding=1).double() for _ in range(2)], gate(4)
    for layer in layers:
        gate_layer(layer, [made], torch.arange(4))
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    layers[1](layers[0](x)).square().sum().backward()
    want, made.psi.grad = made.psi.grad, None
    y = checkpoint(layers[0], x, use_reentrant=reentrant)
    checkpoint(layers[1], y, use_reentrant=reentrant).square().sum().backward()
    torch.testing.assert_close(made.psi.grad, want)


def test_failing_layer_keeps_its_weights():
    layer, made = nn.Conv2d(3, 4, 1), ChannelGate(4)
    weight = layer.weight
    gate_layer(layer, [made], torch.arange(4))
    with pytest.raises(RuntimeError):
        layer(torch.randn(1, 5, 2, 2))
    assert layer.weight is weight


def test_mixed_precision_trains_gates_in_full():
    layer, made = nn.Sequential(nn.Conv2d(3, 4, 1), nn.LayerNorm(2)), ChannelGate(4)
    gate_layer(layer[0], [made], torch.arange(4))
    with torch.autocast('cpu', torch.bfloat16):
        out = layer[0](torch.randn(1, 3, 2, 2))
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert made.psi.grad.dtype == torch.float32 and bool(made.psi.grad.any())


def test_gates_of_a_model():
    sizes = {'backbone.conv1': (3, 1), 'backbone.layer1.0.conv1': (2, 0)}
    gates = ChannelGates(sizes, GateSchedule())
    assert list(gates.state_dict()) == [
        'step', 'decided', *(f'gates.backbone/{unit}.{key}' for unit in ('conv1', 'layer1/0/conv1')
                             for key in ('psi', 'chosen'))]
    assert [name for name, _ in gates.items()] == ['backbone.conv1', 'backbone.layer1.0.conv1']
    assert gates.per_unit(torch.tensor([1., 2, 3, 4, 5])).tolist() == [6, 9]
    assert gates.psi().tolist() == [*gates['backbone.conv1'].psi, *gates['backbone.layer1.0.conv1'].psi]
    gates.set_step(4)
    assert (gates['backbone.conv1'].beta, gates['backbone.conv1'].gamma, gates.steepness) == pytest.approx(
        (1.08, 8.0, 30.0))
    gates.decide({'backbone.conv1': torch.tensor([True, False, True]),
                  'backbone.layer1.0.conv1': torch.tensor([False, True])})
    other = ChannelGates(sizes, GateSchedule())
    other.load_state_dict(gates.state_dict())
    assert (other.beta, other.gamma, other.steepness) == (gates.beta, gates.gamma, gates.steepness)
    soft = other.relaxed_and_soft()[1]
    torch.testing.assert_close(soft, torch.cat([g.values() for _, g in gates.items()]))
    assert bool(other.decided)
    chosen = torch.tensor([1.0, 0, 1, 0, 1])
    for settled in (0.25, 1.0):
        other.set_settled(settled)
        want = torch.stack([(1 - settled) * z + settled * c for z, c in zip(soft, chosen)])
        torch.testing.assert_close(other.acting(), want)
        torch.testing.assert_close(torch.cat([g.values() for _, g in other.items()]), want)
    other.harden({name: torch.zeros(size, dtype=torch.bool) for name, (size, _) in sizes.items()})
    torch.testing.assert_close(other.acting(), want)
    assert not torch.cat([g.values() for _, g in other.items()]).any()


def test_layers_settle():
    first, second, layer = gate(2, 0), gate(3, 1), nn.BatchNorm1d(6).double().eval()
    gate_layer(layer, [first, second], torch.tensor([4, 5, 0, 1, 2, 3]))
    first.chosen.copy_(torch.tensor([False, True]))
    second.chosen.copy_(torch.tensor([True, False, False]))
    x, one = torch.randn(3, 6, dtype=torch.float64), torch.ones((), dtype=torch.float64)
    plain = nn.BatchNorm1d(6).double().eval()(x)
    for settled in (0.0, 0.4, 1.0):
        first.settled = second.settled = settled
        z = [(1 - settled) * v + settled * c for g in (first, second) for v, c in zip(values(g), g.chosen.double())]
        torch.testing.assert_close(layer(x), plain * torch.stack([z[4], one, *z[:4]]))
