"""Whole heads: which are left, and that what is slimmed computes what the silenced dense network does."""
import copy
import io

import numpy as np
import pytest
import torch
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from torch import Tensor, nn

from mmprune_ext.analysis import CostModel, complexity
from mmprune_ext.compact import CompactModel
from mmprune_ext.mutators import L1Mutator
from mmprune_ext.sizes import heads_left
from mmprune_ext.units import Reason, UnitSet, slim, trace_units
from tests.test_units.reference import assert_close, outputs_of, silenced
from tests.test_units.toy_base import randomise
from tests.test_units.toy_nets import TOYS

# By toy, the units of its heads and how many these are.
HEADS = {'HeadsOfInputWidth': {'attn.qkv': 3}, 'MultiheadAttention': {'attn.in_proj_weight': 3},
         'WidthsOfTheirOwn': {'attn.q_proj_weight': 3},
         'Encoder': {'body.layers.0.self_attn.in_proj_weight': 2, 'body.layers.1.self_attn.in_proj_weight': 2},
         'FusedHeads': {'attn.qkv': 3}, 'ScaledHeads': {'attn.qkv': 3},
         'SwinOutputs': {'body.stages.0.blocks.0.attn.w_msa.qkv': 3, 'body.stages.1.blocks.0.attn.w_msa.qkv': 6},
         'LocalHeads': {'attn.qkv': 3}, 'SubsampledHeads': {'attn.q': 3}, 'ClassHeads': {'cross.qkv': 3, 'attn.q': 3},
         'ChannelGroups': {'attn.qkv': 3}, 'PositionsLast': {'body.layers.0.attn.qkv': 3}}


def traced(name):
    """Return a toy and its units by whole heads."""
    net = TOYS[name].build()
    return net, trace_units(net, TOYS[name].example(1), whole_heads=True)


@pytest.mark.parametrize('name', HEADS)
def test_heads_are_channels(name):
    """In eval and in training mode; embedding and heads lose channels independently."""
    net, units = traced(name)
    found = {key: unit.num_channels for key, unit in units.prunable.items() if key in HEADS[name]}
    assert found == HEADS[name], {unit.name: unit.why() for unit in units.values()}
    for seed in (1, 2):
        generator = np.random.default_rng(seed)
        for key, unit in units.prunable.items():
            keep = generator.integers(1, unit.num_channels)
            if key in HEADS[name] or seed == 2:
                unit.choose(generator.permutation(unit.num_channels)[:keep].tolist())
        slimmed, reference, x = slim(copy.deepcopy(net), units), silenced(net, units), TOYS[name].example(2, seed)
        for training in (False, True):
            for model in (slimmed, reference):
                for module in model.modules():
                    module.training = training
            with torch.no_grad():
                assert_close(outputs_of(slimmed(x)), outputs_of(reference(x)), 1e-4)


@pytest.mark.parametrize('average', [False, True])
def test_weights_that_are_an_output_keep_the_heads(average):
    """One map for each head, or their mean."""
    net = nn.MultiheadAttention(12, 3, batch_first=True)
    x = torch.randn(1, 4, 12)
    units = trace_units(net, lambda model: model(x, x, x, average_attn_weights=average), whole_heads=True)
    assert units['in_proj_weight'].reason is (Reason.VALUES if average else Reason.FIXED_SIZE)


@pytest.mark.parametrize(('removed', 'left'), [
    (None, [0, 1, 2]), ([], [0, 1, 2]), ([2, 3], [0, 2]), ([0, 1, 2, 3], [2]), ([0, 2, 4], [0, 1, 2]),
    ([0, 1, 2], [0, 1, 2])])
def test_which_are_left(removed, left):
    gone = None if removed is None else np.isin(np.arange(6), removed)
    assert heads_left(gone, 3) == left


def dropped(keep: Tensor, query: Tensor, key: Tensor, value: Tensor, dropout_p: float) -> Tensor:
    """Attention whose weights are dropped by a pattern of the dense heads."""
    weights = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
    if dropout_p:
        weights = weights * keep[:, :query.shape[-2], :key.shape[-2]] / (1 - dropout_p)
    return weights @ value


@pytest.mark.parametrize('dropout', [0., 0.5])
@pytest.mark.parametrize('training', [False, True])
def test_vit_with_6_of_12_heads(training, dropout):
    """What the masked dense block gives, with the same weights dropped in the heads that are left."""
    torch.manual_seed(0)
    block = TransformerEncoderLayer(96, 12, 192, drop_rate=dropout, attn_drop_rate=dropout)
    randomise(block)
    net = nn.Sequential(nn.Linear(10, 96), block, nn.Linear(96, 5)).eval()
    units = trace_units(net, torch.randn(1, 7, 10), whole_heads=True)
    kept = [1, 4, 5, 8, 10, 11]
    assert units['1.attn.qkv'].num_channels == 12
    units['1.attn.qkv'].choose(kept)
    slimmed, reference = slim(copy.deepcopy(net), units), silenced(net, units)
    attn = slimmed[1].attn
    assert (attn.num_heads, attn.head_dims, attn.embed_dims, attn.qkv.out_features) == (6, 8, 48, 144)
    x, pattern = torch.randn(3, 7, 10), torch.rand(12, 7, 7) > dropout
    if dropout and training:
        attn.scaled_dot_product_attention = lambda *args, dropout_p: dropped(pattern[kept], *args, dropout_p)
        reference[1].attn.scaled_dot_product_attention = lambda *args, dropout_p: dropped(pattern, *args, dropout_p)
    found = []
    for model in (slimmed, reference):
        model.train(training)
        torch.manual_seed(2)  # what is dropped elsewhere has the same shape in both
        found.append(outputs_of(model(x)))
    assert_close(*found, 1e-5)
    if not training:
        torch.onnx.export(slimmed, (x,), io.BytesIO(), dynamo=False)
        torch.testing.assert_close(torch.compile(slimmed, backend='eager', fullgraph=True)(x), found[0][0])


@pytest.mark.parametrize('masked', ['bool', 'float'])
def test_a_mask_of_each_head(masked):
    """Code goes on giving it for all heads of the dense layer; those that are left take theirs, also in two rounds."""
    torch.manual_seed(0)
    net = nn.ModuleDict({'attn': nn.MultiheadAttention(16, 4, batch_first=True), 'head': nn.Linear(16, 3)})
    randomise(net)
    x, mask = torch.randn(2, 5, 16), torch.rand(2 * 4, 5, 5) > 0.7
    mask[..., 0] = False
    mask = mask if masked == 'bool' else torch.randn(2 * 4, 5, 5)

    def run(model, *_):
        return model['head'](model['attn'](x, x, x, attn_mask=mask, need_weights=False)[0])
    units = trace_units(net, run, scope='all', whole_heads=True)
    units['attn.in_proj_weight'].choose([0, 2, 3])
    once = slim(copy.deepcopy(net), units)
    with torch.no_grad():
        assert_close([run(once)], [run(silenced(net, units))], 1e-5)
    again = trace_units(once, run, scope='all', whole_heads=True)
    again['attn.in_proj_weight'].choose([1, 2])
    units['attn.in_proj_weight'].choose([2, 3])
    with torch.no_grad():
        assert_close([run(slim(once, again))], [run(silenced(net, units))], 1e-5)


@pytest.mark.parametrize('name', ['MultiheadAttention', 'FusedHeads', 'HeadsOfInputWidth'])
def test_scores_costs_and_back_from_the_file(name, tmp_path):
    """L1 of all rows of a head, exact costs, and a compact network from architecture and file alone."""
    toy, mutator = TOYS[name], L1Mutator('all', TOYS[name].example(1), whole_heads=True)
    net, x = toy.build(), toy.example()
    units = mutator.prepare(net)
    unit = next(key for key in HEADS[name])
    weight = dict(net.named_parameters())[unit if unit.endswith('weight') else f'{unit}.weight']
    torch.testing.assert_close(mutator.score(net, units[unit]), weight.detach().abs().double().sum(1).view(
        3, 3, -1).sum((0, 2)))
    mutator.choose(net, ratios={unit: 0.5, 'patch': 0.3})
    assert units[unit].keep == 1
    dense = complexity(net, x[:1], flops=False)
    keeps = {key: known.keep for key, known in units.items()}
    slimmed = slim(copy.deepcopy(net), units)
    compact = complexity(slimmed, x[:1], flops=False)
    costs = CostModel(units, dense.per_layer, net)
    assert (costs.params(keeps), costs.macs(keeps)) == (compact.params, compact.macs)
    units.save(tmp_path / 'units.json')
    other = CompactModel(toy.build(seed=3), str(tmp_path / 'units.json'))
    other.load_state_dict(slimmed.state_dict())
    assert torch.equal(other(x), slimmed(x))
    assert UnitSet.load(tmp_path / 'units.json')[unit].num_channels == 3
