"""DCFF's mutator: which units it prunes, the widths it chooses, the layers it puts in."""
from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmprune_ext.errors import PruningError, TargetError, UnitFileError
from mmprune_ext.mutators import DCFFMutator
from mmprune_ext.mutators.dcff_mutator import bake
from mmprune_ext.ops import FuseConv2d
from mmprune_ext.units import Reason, slim
from tests.test_units.reference import assert_close, outputs_of
from tests.test_units.toy_nets import TOYS


class Mixed(nn.Module):
    """Convolutions of several kinds in a row, each the only producer of its unit."""

    KINDS: dict[str, Any] = {
        'plain': lambda: nn.Conv2d(3, 8, 3), 'grouped': lambda: nn.Conv2d(8, 8, 3, groups=2),
        'follower': lambda: nn.Conv2d(8, 8, 3, groups=8), 'transposed': lambda: nn.ConvTranspose2d(8, 6, 2),
        'last': lambda: nn.Conv2d(6, 4, 1)}

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential()
        for name, kind in self.KINDS.items():
            self.backbone.add_module(name, kind())
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.backbone:
            x = layer(x).relu()
        return self.head(x.mean((2, 3)))


def prepared(model: nn.Module, **options: Any) -> DCFFMutator:
    mutator = DCFFMutator(demo_inputs=torch.randn(1, 3, 16, 16), **options)
    mutator.prepare(model)
    return mutator


# ---------------------------------------------------------------- units


def test_what_can_be_fused():
    units = prepared(Mixed()).units
    assert {name: unit.prunable for name, unit in units.items() if name.startswith('backbone')} == {
        'backbone.plain': True, 'backbone.grouped': False, 'backbone.transposed': False, 'backbone.last': True}
    assert units['backbone.grouped'].reason is Reason.LAYER
    assert units['backbone.grouped'].why().endswith('"backbone.grouped" is a grouped convolution)')
    assert units['backbone.transposed'].why().endswith('"backbone.transposed" is ConvTranspose2d)')


def test_a_convolution_of_ones_own_kind_is_not_replaced():
    class Weighted(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(2 * x)

    model = Mixed()
    model.backbone.plain = Weighted(3, 8, 3)
    assert prepared(model).units['backbone.plain'].why().endswith('"backbone.plain" is Weighted)')


def test_the_convolution_of_mmcv_is_plain():
    from mmcv.cnn import Conv2d
    model = Mixed()
    model.backbone.plain = Conv2d(3, 8, 3)
    mutator = prepared(model)
    mutator.choose(model, 0.5)
    assert isinstance(mutator.fuse(model).backbone.plain, FuseConv2d)


def test_a_depthwise_convolution_of_another_kind_keeps_its_unit_whole():
    from mmcv.cnn.bricks import Conv2dAdaptivePadding
    model = Mixed()
    model.backbone.grouped = Conv2dAdaptivePadding(8, 8, 3, groups=8)
    assert prepared(model).units['backbone.plain'].why().endswith('"backbone.grouped" is Conv2dAdaptivePadding)')


@pytest.mark.parametrize('layer', ['plain', 'follower'])
@pytest.mark.parametrize('register', ['register_forward_hook', 'register_forward_pre_hook'])
def test_a_convolution_with_hooks_keeps_its_unit_whole(layer, register):
    """Another layer in its place would not run them."""
    model = Mixed()
    del model.backbone.grouped
    getattr(model.backbone.get_submodule(layer), register)(lambda module, *_: None)
    units = prepared(model).units
    assert units['backbone.plain'].why().endswith(f'"backbone.{layer}" has forward hooks, which would be lost)')
    assert units['backbone.last'].prunable


def test_nothing_left():
    model = Mixed()
    del model.backbone.plain, model.backbone.grouped, model.backbone.follower, model.backbone.last
    model.backbone.transposed, model.head = nn.ConvTranspose2d(3, 6, 2), nn.Linear(6, 3)
    with pytest.raises(PruningError, match='no channel unit of the model can be pruned:(.|\n)*is ConvTranspose2d'):
        DCFFMutator(demo_inputs=torch.randn(1, 3, 16, 16)).prepare(model)


def test_known_units_that_do_not_fit():
    from mmprune_ext.units import trace_units
    units = trace_units(Mixed(), torch.randn(1, 3, 16, 16))
    DCFFMutator().prepare(Mixed(), units.copy())
    units['backbone.transposed'].choose([0, 1])
    with pytest.raises(UnitFileError, match='unit "backbone.transposed" keeps 2 of 6 channels, but DCFF fuses'):
        DCFFMutator().prepare(Mixed(), units)


# ---------------------------------------------------------------- choice


def test_widths_do_not_depend_on_the_weights():
    first, second = Mixed(), Mixed()
    chosen = [prepared(model).choose(model, 0.45)['backbone.plain'].indices for model in (first, second)]
    assert chosen == [[1, 2], [1, 2]]  # int(4 * 0.55) of four pairs, from the middle


def test_uniform_budget():
    model = Mixed()
    units = prepared(model).choose(model, budget=dict(channels=0.5))
    kept = [units[name].keep for name in ('backbone.plain', 'backbone.last')]
    assert sum(kept) == 4 and units['backbone.transposed'].keep == 6


@pytest.mark.parametrize(('target', 'text'), [
    ({}, 'give either target_pruning_ratio or budget'),
    (dict(ratios=0.5, budget=dict(flops=0.5)), 'give either target_pruning_ratio or budget'),
    (dict(budget=dict(flops=0.5, spread='global')), "no score tells channels apart; use spread='uniform'"),
    (dict(ratios={'backbone.grouped': 0.5}), 'unit "backbone.grouped" cannot be pruned: .* grouped convolution'),
], ids=str)
def test_bad_targets(target, text):
    model = Mixed()
    with pytest.raises(TargetError, match=text):
        prepared(model).choose(model, **target)


# ---------------------------------------------------------------- layers


def run(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(5)
        return outputs_of(model(x))


PRUNABLE = {name for name, toy in TOYS.items() if any(reason is None for _, reason in toy.units.values())}
# What can be pruned of these is made by layers of kinds whose filters cannot be fused.
NOT_FUSED = {'BestExpert', 'ClassHeads', 'Conv1dNet', 'Conv3dNet', 'CrossAttention', 'Decoder', 'DecoderOfModules',
             'DecoderOfRows', 'Encoder', 'FixedRoIWidth', 'FusedHeads', 'HeadsBesideMaps', 'HeadsByAWeight',
             'HeadsOfInputWidth', 'HeadsOfMaxViT', 'KeysAndValues', 'LocalHeads', 'MultiheadAttention', 'OwnTied',
             'PositionsLast', 'Queries', 'Routing', 'ScaledHeads', 'SelfAttention', 'SplitOfTheInput',
             'SqueezeExciteLinear', 'StandardisedConvs', 'SwinOutputs', 'TokenMixer', 'TokensWithEmbedding',
             'TransposedDepthwise', 'Waves', 'WeightStandardised', 'WidthsOfTheirOwn', 'WindowsByAFunction',
             'WindowsOfSwinV2'}


@pytest.mark.parametrize('name', sorted(NOT_FUSED))
def test_topologies_without_anything_to_fuse(name):
    toy = TOYS[name]
    with pytest.raises(PruningError, match='DCFF(Mutator)? (fuses the filters of plain and depthwise 2-D convolutions|'
                                            'puts layers of its own in the place of|chooses among outputs)'):
        DCFFMutator(scope='all', demo_inputs=toy.example(1)).prepare(toy.build())


@pytest.mark.parametrize('name', sorted(PRUNABLE - NOT_FUSED))
def test_every_topology(name):
    """Before the first update it is the slimmed model; after each it is its own export."""
    toy = TOYS[name]
    dense, x = toy.build(), toy.example()
    mutator = DCFFMutator(scope='all', demo_inputs=toy.example(1))
    mutator.prepare(dense)
    mutator.choose(dense, 0.5)
    fused, slimmed = mutator.fuse(copy.deepcopy(dense)), slim(copy.deepcopy(dense), mutator.units)
    assert_close(run(fused, x), run(slimmed, x), 1e-5)
    layers = [m for m in fused.modules() if isinstance(m, FuseConv2d)]
    for temperature in (0.5, 3.0, 10000.0):
        assert all(layer.update(temperature) for layer in layers)
        exported = bake(fused)
        assert_close(run(exported, x), run(fused, x), 1e-5)
    assert not any(isinstance(m, FuseConv2d) for m in exported.modules())
    shapes = {key: value.shape for key, value in slimmed.state_dict().items()}
    assert {key: value.shape for key, value in exported.state_dict().items()} == shapes


def test_a_layer_in_a_plain_list_is_the_fused_one_too():
    """Models loop over lists and dicts of layers that torch does not know of."""
    model = Mixed()
    model.order = {'first': [model.backbone.plain]}
    mutator = prepared(model)
    mutator.choose(model, 0.5)
    mutator.fuse(model)
    assert isinstance(model.order['first'][0], FuseConv2d) and model.order['first'][0] is model.backbone.plain
    exported = bake(model)
    assert type(exported.order['first'][0]) is nn.Conv2d and exported.order['first'][0] is exported.backbone.plain


def test_a_layer_that_a_model_holds_twice_is_replaced_twice():
    model = Mixed()
    model.alias = nn.ModuleList([model.backbone.plain])
    mutator = prepared(model)
    mutator.choose(model, 0.5)
    mutator.fuse(model)
    assert isinstance(model.backbone.plain, FuseConv2d) and model.alias[0] is model.backbone.plain
    exported = bake(model)
    assert type(exported.alias[0]) is nn.Conv2d and exported.alias[0] is exported.backbone.plain
    assert isinstance(model.backbone.plain, FuseConv2d)  # the model itself is as it was
