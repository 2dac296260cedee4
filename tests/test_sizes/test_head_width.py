"""Heads of another width than the input divided by their number."""
import copy
import io
import pickle

import pytest
import torch

from mmprune_ext.sizes import HeadWidth, takes_width_of_input
from mmprune_ext.units import UnitSet, slim, trace_units
from tests.test_units.reference import outputs_of
from tests.test_units.toy_nets import TOYS
from tests.test_units.toy_sizes import Heads

TOY = TOYS['HeadsOfInputWidth']


def slimmed(inputs, head):
    """Return the toy with the given channels of its embedding and of each head."""
    net = TOY.build()
    units = trace_units(net, TOY.example(1))
    units['patch'].choose(inputs)
    units['attn.qkv'].choose(head)
    return slim(net, units)


def by_hand(attn, x):
    """Return what attention gives, head by head."""
    wide = attn.qkv.out_features // 3
    q, k, v = attn.qkv(x).split(wide, -1)
    outs = []
    for places in torch.arange(wide).chunk(attn.num_heads):
        weights = (attn.scale * q[..., places] @ k[..., places].transpose(1, 2) + 1).softmax(-1)
        outs.append(weights @ v[..., places])
    return attn.proj(torch.cat(outs, -1))


@pytest.mark.parametrize('inputs', [5, 6, 7, 11, 12])
@pytest.mark.parametrize('head', [1, 2, 3, 4])
def test_any_widths(inputs, head):
    attn = slimmed(range(inputs), range(head)).attn
    assert (attn.qkv.in_features, attn.qkv.out_features, attn.proj.in_features) == (inputs, 9 * head, 3 * head)
    x = torch.randn(2, 4, inputs)
    torch.testing.assert_close(attn(x, bias=torch.ones(1)), by_hand(attn, x))
    assert ('forward' in vars(attn)) == (inputs != 3 * head)


def test_hooks_see_what_the_layers_read():
    attn = slimmed(range(7), range(2)).attn
    seen = []
    attn.qkv.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    x = torch.randn(2, 4, 7)
    attn(x)
    assert len(seen) == 1
    assert seen[0] is x


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
                         ids=['deepcopy', 'pickle'])
def test_a_copy_is_of_its_own(copied):
    model = slimmed(range(7), range(2))
    other, x = copied(model), TOY.example()
    assert torch.equal(other(x), model(x))
    torch.nn.init.zeros_(other.attn.proj.weight)
    assert not torch.equal(other(x), model(x))


def test_it_learns_by_gradients():
    attn = slimmed(range(7), range(2)).attn.train()
    attn(torch.randn(2, 4, 7)).square().sum().backward()
    assert all(bool(parameter.grad.abs().sum() > 0) for parameter in (attn.qkv.weight, attn.proj.weight))


def test_it_is_exported():
    model, x = slimmed(range(7), range(2)), TOY.example()
    exported = torch.export.export(model, (x,))
    torch.testing.assert_close(exported.module()(x), model(x))
    torch.testing.assert_close(torch.jit.trace(model, (x,))(x), model(x))
    torch.onnx.export(model, (x,), io.BytesIO(), dynamo=False)


def test_it_is_pruned_again():
    """The channels that are left are units of their own, as in rounds of pruning."""
    model = slimmed(range(11), range(3))
    units = trace_units(model, TOY.example(1))
    assert {name: unit.num_channels for name, unit in units.prunable.items()} == {'patch': 11, 'attn.qkv': 3}
    units['patch'].choose(range(6))
    units['attn.qkv'].choose(range(1))
    slim(model, units)
    x = TOY.example()
    torch.testing.assert_close(model(x), slimmed(range(6), range(1))(x))


@pytest.mark.parametrize('name', ['HeadsOfInputWidth', 'SwinOutputs', 'KeysAndValues', 'WindowsByAFunction',
                                  'HeadsOfMaxViT', 'MultiheadAttention', 'WidthsOfTheirOwn', 'Encoder', 'Queries',
                                  'FusedHeads', 'Waves', 'LocalHeads', 'SubsampledHeads', 'ClassHeads'])
def test_from_a_file_without_tracing(tmp_path, name):
    """Architecture, unit file and weights are all that a compact network needs."""
    toy = TOYS[name]
    net, x = toy.build(), toy.example()
    units = trace_units(net, toy.example(1))
    for unit in units.prunable.values():
        unit.choose(range(unit.num_channels // 2 + unit.num_channels % 4 // 2))
    units.save(tmp_path / 'units.json')
    first = slim(net, units)
    second = slim(toy.build(seed=3), UnitSet.load(tmp_path / 'units.json'))
    second.load_state_dict(first.state_dict())
    for mine, other in zip(outputs_of(first(x)), outputs_of(second(x)), strict=True):
        assert torch.equal(mine, other)


class WithStoredWidth(Heads):
    head_dims = 4


@pytest.mark.parametrize(('module', 'takes'), [(Heads(12, 3), True), (WithStoredWidth(12, 3), False),
                                               (torch.nn.Linear(12, 36), False)])
def test_which_modules(module, takes):
    assert takes_width_of_input(module) == takes


def test_another_forward_is_left_alone():
    attn = Heads(12, 3)
    attn.forward = own = lambda x: x
    heads = HeadWidth(attn)
    attn.qkv = torch.nn.Linear(7, 36)
    heads.put_where_needed()
    assert attn.forward is own


# By toy of attention in torchvision and timm, the unit of its heads.
OF_LIBRARIES = {'HeadsByAWeight': 'attn.qkv', 'WindowsByAFunction': 'attn.qkv', 'WindowsOfSwinV2': 'attn.qkv',
                'HeadsOfMaxViT': 'attn.to_qkv'}


def windows(name, inputs, head):
    """Return a toy of such attention with the given channels of its embedding and of each head."""
    net = TOYS[name].build()
    units = trace_units(net, TOYS[name].example(1))
    units['patch'].choose(inputs)
    units[OF_LIBRARIES[name]].choose(head)
    return slim(net, units)


@pytest.mark.parametrize('name', OF_LIBRARIES)
def test_heads_of_libraries_are_pruned_again(name):
    model = windows(name, range(11), range(3))
    units = trace_units(model, TOYS[name].example(1))
    assert units['patch'].prunable and units[OF_LIBRARIES[name]].prunable
    units['patch'].choose(range(6))
    units[OF_LIBRARIES[name]].choose(range(2))
    x = TOYS[name].example()
    with torch.no_grad():
        torch.testing.assert_close(slim(model, units)(x), windows(name, range(6), range(2))(x))


def test_a_scale_that_code_takes_from_the_width_stays():
    """As many inputs as outputs of all heads, and yet half of what the scale was taken from."""
    attn, x = windows('WindowsByAFunction', range(6), range(2)).attn, torch.randn(1, 2, 2, 6)
    attn.shift_size = [0, 0]
    q, k, v = attn.qkv(x.flatten(1, 2)).view(1, 4, 3, 3, 2).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-2, -1) * 4 ** -0.5 + attn.get_relative_position_bias()).softmax(-1)
    torch.testing.assert_close(attn(x), attn.proj((weights @ v).transpose(1, 2).reshape(1, 2, 2, 6)))


def test_windows_in_short_numbers():
    """More places than bfloat16 can count."""
    attn, x = windows('WindowsByAFunction', range(7), range(3)).attn, torch.randn(2, 33, 21, 7)
    torch.testing.assert_close(attn.bfloat16()(x.bfloat16()).float(), attn.float()(x), atol=0.05, rtol=0.05)


def test_what_is_dropped_of_windows():
    attn = windows('WindowsByAFunction', range(7), range(3)).attn.train()
    attn.dropout = 0.5
    torch.manual_seed(0)
    given = attn(torch.randn(2, 8, 8, 7))
    assert 0.4 < (given == 0).float().mean() < 0.6


def test_windows_are_exported():
    model, x = windows('WindowsByAFunction', range(7), range(3)), TOYS['WindowsByAFunction'].example()
    torch.testing.assert_close(torch.jit.trace(model, (x,))(x), model(x))
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))
