"""Attention with widths of its own: torch's layer is the reference for whole layers, plain sums for slimmed ones."""
import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmprune_ext.compact.forms import Forms
from mmprune_ext.sizes import Multihead, OwnWidths
from mmprune_ext.units import slim, trace_units
from tests.test_units.reference import assert_close, outputs_of
from tests.test_units.toy_base import randomise
from tests.test_units.toy_nets import TOYS

NAMES = ('MultiheadAttention', 'WidthsOfTheirOwn', 'Encoder', 'FusedHeads', 'Waves', 'LocalHeads', 'SubsampledHeads',
         'ClassHeads')


def halved(name, share=2):
    """Return a toy of which every unit has lost its first channels."""
    toy = TOYS[name]
    net = toy.build()
    units = trace_units(net, toy.example(1))
    for unit in units.prunable.values():
        unit.choose(range(int(unit.num_channels / share), unit.num_channels))
    return slim(net, units)


LAYERS = {'plain': {}, 'batch first': {'batch_first': True}, 'no bias': {'bias': False},
          'more places': {'add_bias_kv': True, 'add_zero_attn': True}, 'other widths': {'kdim': 6, 'vdim': 10}}
MASKS = {'none': {}, 'bool': {'attn_mask': torch.arange(20).view(4, 5) % 3 == 1},
         'float': {'attn_mask': torch.randn(4, 5, generator=torch.Generator().manual_seed(0))},
         'by head': {'attn_mask': torch.randn(6, 4, 5, generator=torch.Generator().manual_seed(0))},
         'padding': {'key_padding_mask': torch.arange(10).view(2, 5) % 5 > 2},
         'both': {'attn_mask': torch.arange(20).view(4, 5) % 3 == 1,
                  'key_padding_mask': torch.arange(10).view(2, 5) % 5 == 4}}


@pytest.mark.filterwarnings('ignore:Support for mismatched')
@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('masks', MASKS)
@pytest.mark.parametrize('layer', LAYERS)
def test_a_whole_layer_is_that_of_torch(layer, masks, training):
    """In training too, where the same random numbers drop the same weights."""
    torch.manual_seed(0)
    dense = nn.MultiheadAttention(12, 3, dropout=0.3, **LAYERS[layer]).train(training)
    randomise(dense)
    own = copy.deepcopy(dense)
    own.forward = OwnWidths(own, 4 ** -0.5, [0, 1, 2], 3)
    tokens = [torch.randn(places, 2, width) for places, width in ((4, 12), (5, dense.kdim), (5, dense.vdim))]
    if dense.batch_first:
        tokens = [x.transpose(0, 1) for x in tokens]
    for weights, mean in ((True, True), (True, False), (False, True)):
        found = []
        for module in (dense, own):
            torch.manual_seed(1)
            found.append(outputs_of([x for x in module(*tokens, need_weights=weights, average_attn_weights=mean,
                                                       **MASKS[masks]) if x is not None]))
        assert len(found[0]) == 1 + weights
        assert_close(found[1], found[0], 1e-5)


def test_one_sequence_without_a_batch():
    dense = nn.MultiheadAttention(12, 3)
    own = copy.deepcopy(dense)
    own.forward = OwnWidths(own, 4 ** -0.5, [0, 1, 2], 3)
    x = torch.randn(4, 12)
    for options in ({}, {'attn_mask': torch.eye(4, dtype=torch.bool)}, {'key_padding_mask': torch.arange(4) > 2}):
        assert_close(outputs_of(own(x, x, x, **options)), outputs_of(dense(x, x, x, **options)), 1e-5)
    mask = nn.Transformer.generate_square_subsequent_mask(4)
    assert_close(outputs_of(own(x, x, x, attn_mask=mask, is_causal=True)),
                 outputs_of(dense(x, x, x, attn_mask=mask, is_causal=True)), 1e-5)
    with pytest.raises(RuntimeError, match='Need attn_mask'):
        own(x, x, x, is_causal=True)


def test_widths_and_scale_of_a_slimmed_layer():
    """The dense scale, heads of two widths, names as before; by hand, head by head."""
    net = TOYS['MultiheadAttention'].build()
    names = list(net.state_dict())
    units = trace_units(net, TOYS['MultiheadAttention'].example(1))
    units['patch'].choose(range(7))
    units['attn.in_proj_weight'].choose([0, 3])
    units['attn.in_proj_weight#2'].choose([1, 2, 3])
    attn = slim(net, units).attn
    assert list(net.state_dict()) == names
    assert attn.in_proj_weight.shape == (6 + 6 + 9, 7)
    assert (attn.embed_dim, attn.num_heads, attn.head_dim) == (7, 3, 3)
    assert attn.out_proj.weight.shape == (7, 9)
    x = torch.randn(2, 5, 7)
    q, k, v = F.linear(x, attn.in_proj_weight, attn.in_proj_bias).split([6, 6, 9], -1)
    heads = [(q[..., 2 * h:2 * h + 2] @ k[..., 2 * h:2 * h + 2].mT / 2).softmax(-1) @ v[..., 3 * h:3 * h + 3]
             for h in range(3)]
    torch.testing.assert_close(attn(x, x, x)[0], attn.out_proj(torch.cat(heads, -1)))


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
                         ids=['deepcopy', 'pickle'])
@pytest.mark.parametrize('name', NAMES)
def test_a_copy_is_of_its_own(name, copied):
    model = halved(name)
    other, x = copied(model), TOYS[name].example()
    assert_close(outputs_of(other(x)), outputs_of(model(x)), 0.)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    assert not torch.equal(outputs_of(other(x))[0], outputs_of(model(x))[0])


@pytest.mark.parametrize('name', NAMES)
def test_it_is_exported_and_compiled(name):
    model, x = halved(name), TOYS[name].example()
    want = model(x)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), want)
    torch.testing.assert_close(torch.jit.trace(model, (x,))(x), want)
    torch.testing.assert_close(torch.compile(model, backend='eager', fullgraph=True)(x), want)
    torch.onnx.export(model, (x,), io.BytesIO(), dynamo=False)


@pytest.mark.parametrize('name', NAMES)
def test_it_is_pruned_again(name):
    """The channels that are left are units of their own, as in rounds of pruning."""
    toy, model = TOYS[name], halved(name)
    units = trace_units(model, toy.example(1))
    assert all(unit.num_channels == toy.units[unit_name][0] // 2 for unit_name, unit in units.prunable.items())
    assert units.prunable.keys() == {key for key, (_, reason) in toy.units.items() if reason is None}
    for unit in units.prunable.values():
        unit.choose(range(unit.num_channels // 2, unit.num_channels))
    twice, once = slim(model, units), halved(name, 4 / 3)
    assert [p.shape for p in twice.parameters()] == [p.shape for p in once.parameters()]
    torch.testing.assert_close(twice(toy.example()), once(toy.example()))


def test_a_form_of_a_model():
    """Forms exchange what a layer holds: its forward with its weights."""
    toy = TOYS['MultiheadAttention']
    model, x = toy.build(), toy.example()
    units = trace_units(model, toy.example(1))
    units['attn.in_proj_weight'].choose([0])
    dense = model(x)
    forms = Forms(model)
    slimmed = forms.make(lambda net: slim(net, units))
    assert torch.equal(model(x), dense)
    forms.take(slimmed)
    assert not torch.equal(model(x), dense)
    forms.take(None)
    assert torch.equal(model(x), dense)
    assert 'forward' not in vars(model.attn)


def test_an_encoder_with_padding():
    """Torch packs the sequences of an encoder for a fused operator, which slimmed layers cannot take."""
    model = halved('Encoder')
    width = model.patch.out_channels
    x, padding = torch.randn(2, 4, width), torch.tensor([[False] * 4, [False, False, True, True]])
    with torch.no_grad():
        given = model.body(x, src_key_padding_mask=padding)
        alone = model.body(x[1:, :2])
    torch.testing.assert_close(given[1:, :2], alone)


def test_untouched_layers_are_left_alone():
    layer = nn.MultiheadAttention(12, 3)
    Multihead(layer).renew(None)
    assert 'forward' not in vars(layer)
    assert layer._qkv_same_embed_dim


def test_dropped_weights_are_scaled_as_in_torch():
    """On average over draws, dropout leaves attention as it is."""
    attn = halved('MultiheadAttention').attn.train()
    attn.dropout = 0.5
    x = torch.randn(1, 6, attn.embed_dim)
    torch.manual_seed(0)
    draws = torch.stack([attn(x, x, x, need_weights=number % 2 == 0)[0] for number in range(1000)])
    torch.testing.assert_close(draws.mean(0), attn.eval()(x, x, x)[0], rtol=0, atol=0.1)
