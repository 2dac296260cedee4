"""Stripe-wise pruning: what is exported computes what the network with skeletons does, and counts as published."""
from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from mmprune_ext.algorithms import StripeWise
from mmprune_ext.analysis import Report, complexity
from mmprune_ext.compact import CompactModel
from mmprune_ext.compact.compact_model import relative_to_dense
from mmprune_ext.errors import ConfigError, PruningError
from mmprune_ext.ops import ShortcutBlock, SkeletonConv2d, StripeConv2d
from mmprune_ext.registry import MODELS
from mmprune_ext.units import UnitSet, slim, trace_units

VGG = dict(type='mmprune_ext.CifarVGG', depth=16, conv_bias=False, last_pool='max')
MUTATOR = dict(type='mmprune_ext.StripeMutator', demo_inputs=(32, 32))


def resnet(depth: int = 20, shortcut: str = 'A') -> dict[str, Any]:
    return dict(type='mmprune_ext.CifarResNet', depth=depth, shortcut=shortcut)


@pytest.fixture
def stripe_wise(classifier) -> Callable[..., nn.Module]:
    """Return a function that builds a run's model of a backbone, with random batch statistics and biases."""
    def build(backbone: Mapping[str, Any], features: int, **settings: Any) -> nn.Module:
        mutator = {**MUTATOR, **settings.pop('mutator', {})}
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            return MODELS.build(dict(type='mmprune_ext.StripeWise', architecture=classifier(backbone, features),
                                     mutator=mutator, **settings)).eval()
    return build


def skeletons(model: nn.Module) -> dict[str, SkeletonConv2d]:
    return dict(model.mutator.skeletons(model))


def kill(model: nn.Module, dead: Callable[[str, tuple[int, ...]], Any]) -> None:
    """Set the skeletons of all convolutions to zero where a function of path and shape says."""
    for path, layer in skeletons(model).items():
        marks = torch.as_tensor(np.broadcast_to(dead(path, tuple(layer.skeleton.shape)), layer.skeleton.shape).copy())
        layer.skeleton.data[marks] = 0


def at_random(density: float, seed: int = 0) -> Callable[[str, tuple[int, ...]], np.ndarray]:
    generator = np.random.default_rng(seed)
    return lambda path, shape: generator.random(shape) >= density


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def masked(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)[0]


@torch.no_grad()
def check_export(model: nn.Module, forms: str = 'dense') -> tuple[nn.Module, UnitSet]:
    """Check that the exported model, and the one rebuilt from its unit file, give the masked outputs."""
    x = images()
    wanted = masked(model, x)
    assert wanted.std() > 0
    exported, units = model.export_model(), model.exported_units
    for path, layer in units.stripes.items():
        units.stripes[path] = layer.in_form(forms)
    assert isinstance(exported, type(model).architecture_type) and not isinstance(exported, StripeWise)
    assert not any(isinstance(module, SkeletonConv2d) for module in exported.modules())
    torch.testing.assert_close(exported.eval()(x)[0], wanted, rtol=1e-4, atol=1e-4)
    dense = type(model).architecture_type
    rebuilt = CompactModel(fresh(model), units.to_json())
    assert isinstance(rebuilt, dense)
    rebuilt.load_state_dict(exported.state_dict())
    torch.testing.assert_close(rebuilt.eval()(x)[0], wanted, rtol=1e-4, atol=1e-4)
    return exported, units


def fresh(model: nn.Module) -> nn.Module:
    """Return the dense model of a run's architecture."""
    blank = copy.deepcopy(model)
    for layer in skeletons(blank).values():
        layer.skeleton.data.fill_(1)
    return blank._baked()


# ---------------------------------------------------------------- published counts


def oracle_rule(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """The test skeleton of the published counts: (o, i, j) stays if o % 8 != 7 and (7o + 3i + 5j) % 4 == 0."""
    o, i, j = np.indices(shape)
    return ~((o % 8 != 7) & ((7 * o + 3 * i + 5 * j) % 4 == 0))


def test_published_dense_networks(stripe_wise):
    model = stripe_wise(VGG, 512)
    cost = complexity(model._baked(), (3, 32, 32), flops=False)
    assert (cost.params, cost.macs) == (14_724_042, 313_201_664)
    cost = complexity(stripe_wise(resnet(56, 'B'), 64)._baked(), (3, 32, 32), flops=False)
    assert (cost.params, cost.macs) == (855_770, 125_747_840)


def test_published_test_skeleton(stripe_wise):
    """VGG-16 with the test skeleton: the published count of parameters and multiply-accumulates."""
    model = stripe_wise(VGG, 512)
    kill(model, oracle_rule)
    exported, units = check_export(model)
    cost = complexity(exported, (3, 32, 32), flops=False)
    assert (cost.params, cost.macs) == (2_872_298, 60_952_960)
    assert [unit.keep for unit in units.prunable.values()] == [
        56, 56, 112, 112, 224, 224, 224, 448, 448, 448, 448, 448, 448]
    # What the checkpoint holds are the parameters and the batch statistics.
    saved = sum(value.numel() for key, value in exported.state_dict().items()
                if not key.endswith(('running_mean', 'running_var', 'num_batches_tracked')))
    assert saved == cost.params


def test_counts_by_hand(stripe_wise):
    """Stripes times input channels that stay, times positions, and no more for a form with zeros."""
    model = stripe_wise(resnet(20), 64)
    kill(model, at_random(0.4))
    exported, units = check_export(model)
    by_hand, params = 0, 0
    sizes = {'conv1': 32, 'layer1': 32, 'layer2': 16, 'layer3': 8}
    layers = dict(exported.named_modules())
    for path, layer in units.stripes.items():
        stripes = int(layer.keep.sum())
        params += stripes * layers[path].in_channels
        by_hand += stripes * layers[path].in_channels * sizes[path.split('.')[1]] ** 2
    head = exported.head.fc.weight.numel()
    norms = sum(p.numel() for m in exported.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters())
    cost = complexity(exported, (3, 32, 32), flops=False)
    assert cost.macs == by_hand + head
    assert cost.params == params + head + 10 + norms


# ---------------------------------------------------------------- exported = masked


@pytest.mark.parametrize('form', ['dense', 'stripes'])
@pytest.mark.parametrize('backbone, features', [
    (resnet(20), 64), (resnet(20, 'B'), 64), (VGG, 512), (dict(VGG, batch_norm=False, conv_bias=True), 512),
    (dict(VGG, conv_bias=True), 512),
    (dict(type='ResNet_CIFAR', depth=50, base_channels=8, stem_channels=8, out_indices=(3,)), 256),
    (dict(type='MobileNetV2', widen_factor=0.25), 1280), (dict(type='RegNet', arch='regnetx_400mf'), 384),
], ids=['resnet20A', 'resnet20B', 'vgg', 'vgg-without-bn', 'vgg-bias', 'bottleneck', 'mobilenet', 'regnet'])
def test_random_skeletons(stripe_wise, backbone, features, form):
    """Random stripes, and whole filters with the biases of their batch norm."""
    model = stripe_wise(backbone, features)
    generator = np.random.default_rng(1)

    def dead(path: str, shape: tuple[int, ...]) -> np.ndarray:
        return (generator.random(shape) >= 0.5) | (generator.random((shape[0], 1, 1)) < 0.2)
    kill(model, dead)
    _, units = check_export(model, form)
    assert any(unit.keep < unit.num_channels for unit in units.values())


def test_bias_of_a_batch_norm_does_not_keep_a_dead_channel_alive(stripe_wise):
    model = stripe_wise(resnet(20), 64)
    norm = model.backbone.layer1[0].bn1
    norm.bias.data.fill_(0.7)
    model.backbone.layer1[0].conv1.skeleton.data[3] = 0
    _, units = check_export(model)
    assert 3 not in units['backbone.layer1.0.conv1'].indices
    assert (float(norm.bias[3]), float(norm.weight[3])) == (0, 0)
    assert float(norm.bias[2]) == pytest.approx(0.7)


def test_export_never_changes_what_a_model_computes(stripe_wise):
    """Stripes set to zero by hand, in a model that has not run since: a channel that is still heard stays."""
    model = stripe_wise(resnet(20), 64)
    model.backbone.layer1[0].conv1.skeleton.data[3] = 0
    model.backbone.layer1[0].bn1.bias.data[3] = 5.
    x = images()
    with torch.no_grad():
        exported = model.export_model().eval()
        want = model.head(model.neck(model.backbone(x)))
        torch.testing.assert_close(exported.head(exported.neck(exported.backbone(x))), want)
    assert model.exported_units['backbone.layer1.0.conv1'].keep == 16


def test_a_channel_stays_while_one_of_its_producers_lives(stripe_wise):
    model = stripe_wise(resnet(20, 'B'), 64)
    producers = [path for path in skeletons(model) if path.startswith('backbone.layer2')
                 and path.endswith(('conv2', 'downsample.0'))]
    for path in producers[1:]:
        model.get_submodule(path).skeleton.data[5] = 0
    _, units = check_export(model)
    name = next(name for name, unit in units.items() if producers[0] in {m.module for m in unit.producers})
    assert units[name].keep == 32
    model.get_submodule(producers[0]).skeleton.data[5] = 0
    _, units = check_export(model)
    assert 5 not in units[name].indices and units[name].keep == 31


def test_shortcut_without_weights_passes_channels_on(stripe_wise):
    """Option A: channel 8 of the second stage is channel 0 of the first, until that is dead as well."""
    model = stripe_wise(resnet(20, 'A'), 64)
    stage = [path for path in skeletons(model) if path.startswith('backbone.layer2') and path.endswith('conv2')]
    for path in stage:
        model.get_submodule(path).skeleton.data[[0, 8]] = 0
    _, units = check_export(model)
    unit = next(unit for unit in units.values() if stage[0] in {m.module for m in unit.producers})
    assert 0 not in unit.indices and 8 in unit.indices
    for path in ['backbone.conv1', *(f'backbone.layer1.{i}.conv2' for i in range(3))]:
        model.get_submodule(path).skeleton.data[0] = 0
    _, units = check_export(model)
    assert 8 not in units[unit.name].indices


@pytest.mark.parametrize('killed', ['conv1', 'conv2'])
def test_dead_branch_leaves_its_shortcut(stripe_wise, killed):
    """Either convolution; the other is then of no use."""
    model = stripe_wise(resnet(20, 'B'), 64)
    for block in (model.backbone.layer1[1], model.backbone.layer2[0]):
        getattr(block, killed).skeleton.data.zero_()
    before = sum(p.numel() for p in model._baked().parameters())
    exported, units = check_export(model)
    assert set(units.shortcuts) == {'backbone.layer1.1', 'backbone.layer2.0'}
    assert isinstance(exported.backbone.layer1[1], ShortcutBlock)
    assert list(dict(exported.backbone.layer1[1].named_parameters())) == []
    assert {name.split('.')[0] for name, _ in exported.backbone.layer2[0].named_parameters()} == {'downsample'}
    gone = 2 * 16 * 16 * 9 + (16 * 32 + 32 * 32) * 9 + 2 * (16 + 16 + 32 + 32)
    assert sum(p.numel() for p in exported.parameters()) == before - gone
    report = Report(complexity(model._baked(), (8, 8)), complexity(exported, (8, 8)), units).to_dict()
    kept = {name: unit['keep'] for name, unit in report['units'].items()}
    assert kept['backbone.layer1.1.conv1'] == kept['backbone.layer2.0.conv1'] == 0  # in no other layer
    assert kept['backbone.layer1.0.conv1'] == 16 and kept['backbone.conv1'] == 16


def test_blocks_of_mmpretrain_become_their_shortcuts(stripe_wise):
    model = stripe_wise(dict(type='ResNet', depth=18, base_channels=8, stem_channels=8), 64)
    model.backbone.layer1[0].conv2.skeleton.data.zero_()
    model.backbone.layer3[0].conv1.skeleton.data.zero_()
    exported, units = check_export(model)
    assert set(units.shortcuts) == {'backbone.layer1.0', 'backbone.layer3.0'}
    assert units.shortcuts['backbone.layer3.0'].layer == 'downsample'


class TwoBranches(nn.Module):
    """Two branches beside the identity, or one that gates the other."""

    def __init__(self, gated: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.block = Branches(gated)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block(self.conv1(x)).mean((2, 3)))


class Branches(nn.Module):
    def __init__(self, gated: bool) -> None:
        super().__init__()
        self.gated = gated
        self.a, self.b = (nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        if self.gated:
            return x + torch.sigmoid(self.a(x)) * self.b(x)
        return x + self.a(x).relu() + self.b(x).relu()


def two_branches(gated: bool) -> nn.Module:
    torch.manual_seed(0)
    return MODELS.build(dict(type='mmprune_ext.StripeWise', architecture=TwoBranches(gated), mutator=dict(
        type='mmprune_ext.StripeMutator', scope='all', demo_inputs=(8, 8)))).eval()


def test_a_branch_that_is_silent_on_some_images_is_none_that_is_dead():
    model = two_branches(False)
    model.block.b[1].bias.data.fill_(-4.)
    model.block.a[0].skeleton.data.zero_()
    assert model.exported_units.shortcuts == {}
    model.block.b[0].skeleton.data.zero_()
    model.settle()
    assert set(model.exported_units.shortcuts) == {'block'}


def test_a_dead_gate_is_a_constant():
    """What is multiplied by it needs the shift of its batch norm."""
    model = two_branches(True)
    model.block.a[1].bias.data.fill_(4.)
    model.block.a[0].skeleton.data.zero_()
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        wanted = model.fc(model.block(model.conv1(x)).mean((2, 3)))
        torch.testing.assert_close(model(x), wanted)
        torch.testing.assert_close(model.export_model()(x), wanted)
    assert bool((model.block.a[1].bias == 4).all())


def test_every_branch_dead(stripe_wise):
    model = stripe_wise(resnet(20, 'B'), 64)
    kill(model, lambda path, shape: '.layer' in path and 'downsample' not in path)
    exported, units = check_export(model)
    assert len(units.shortcuts) == 9
    assert {path.split('.')[1] for path in skeletons_left(exported)} == set()


@pytest.mark.parametrize('backbone', [
    dict(type='ResNet', depth=18, base_channels=8, stem_channels=8), resnet(20, 'B')], ids=['mmpretrain', 'cifar'])
def test_second_round_of_a_network_with_shortcuts(stripe_wise, backbone):
    """Units may bear other names, where the layer that gave it is gone; the joined file rebuilds the model."""
    model = stripe_wise(backbone, 64)
    kill(model, at_random(0.5))
    for block in (model.backbone.layer2[0], model.backbone.layer3[0]):
        block.conv2.skeleton.data.zero_()
    first, units = check_export(model)
    assert len(units.shortcuts) == 2
    second = trace_units(first, (32, 32))
    generator = np.random.default_rng(0)
    for unit in second.prunable.values():
        unit.choose(generator.permutation(unit.num_channels)[:max(unit.num_channels // 2, 1)].tolist())
    slimmed = slim(copy.deepcopy(first), second).eval()
    _, joined = relative_to_dense(dict(type='mmprune_ext.CompactModel', architecture={}, units=units.to_json()), second)
    rebuilt = CompactModel(fresh(model), joined.to_json()).eval()
    rebuilt.load_state_dict(slimmed.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(rebuilt(images())[0], slimmed(images())[0], rtol=1e-4, atol=1e-4)


def skeletons_left(model: nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if isinstance(module, StripeConv2d)]


def test_one_live_stripe(stripe_wise):
    model = stripe_wise(resnet(20), 64)
    skeleton = model.backbone.layer2[1].conv1.skeleton.data
    skeleton.zero_()
    skeleton[7, 2, 0] = -0.3
    exported, units = check_export(model)
    assert units['backbone.layer2.1.conv1'].indices == [7]
    assert exported.backbone.layer2[1].conv1.weight.numel() == 32


def test_all_stripes_alive(stripe_wise):
    model = stripe_wise(resnet(20), 64)
    exported, units = check_export(model)
    assert not units.stripes and not units.shortcuts
    assert type(exported.backbone.conv1) is nn.Conv2d
    assert all(unit.keep == unit.num_channels for unit in units.values())


def test_kernel_positions_that_are_dead_in_a_layer_shrink_its_kernel(stripe_wise):
    model = stripe_wise(resnet(20), 64)
    rows, point, corner = (model.backbone.layer1[i].conv1 for i in range(3))
    rows.skeleton.data[:, [0, 2]] = 0
    point.skeleton.data[:, [0, 2]] = 0
    point.skeleton.data[:, :, [0, 2]] = 0
    corner.skeleton.data[:, 2] = 0
    exported, _ = check_export(model)
    convs = [exported.backbone.layer1[i].conv1 for i in range(3)]
    assert [type(conv) for conv in convs] == [nn.Conv2d, nn.Conv2d, StripeConv2d]
    assert (convs[0].kernel_size, convs[0].padding) == ((1, 3), (0, 1))
    assert (convs[1].kernel_size, convs[1].padding) == ((1, 1), (0, 0))
    # Zeros on one side only: no padding of a plain convolution does that.
    assert convs[2].weight.numel() == 16 * 16 * 6


def test_rounding_keeps_dead_channels(stripe_wise):
    model = stripe_wise(resnet(20), 64, mutator=dict(divisor=8, min_channels=4))
    model.backbone.layer3[0].conv1.skeleton.data[:30] = 0
    model.backbone.layer3[1].conv1.skeleton.data[1:] = 0
    _, units = check_export(model)
    assert units['backbone.layer3.0.conv1'].keep == 40
    assert units['backbone.layer3.1.conv1'].keep == 8


def test_channels_under_a_layer_norm_stay(stripe_wise):
    """Their statistics would be others without the dead ones."""
    model = stripe_wise(dict(type='ResNet', depth=18, base_channels=8, stem_channels=8,
                             norm_cfg=dict(type='GN', num_groups=2)), 64)
    model.backbone.layer1[0].conv1.skeleton.data[:4] = 0
    _, units = check_export(model)
    unit = units['backbone.layer1.0.conv1']
    assert unit.prunable and unit.keep == unit.num_channels
    assert not units.stripes['backbone.layer1.0.conv1'].keep[:4].any()


# ---------------------------------------------------------------- layers


def test_layers_that_are_left_alone(stripe_wise):
    model = stripe_wise(dict(type='ResNeXt', depth=50, groups=4, width_per_group=4, base_channels=8, stem_channels=8),
                        256)
    reasons = set(model.mutator.left_alone.values())
    assert reasons == {'a grouped convolution'}
    assert 'backbone.layer1.0.conv2' in model.mutator.left_alone
    model = stripe_wise(dict(type='MobileNetV2', widen_factor=0.25), 1280)
    assert set(model.mutator.left_alone.values()) == {'a depthwise convolution'}


def test_scope_and_exclude(stripe_wise):
    model = stripe_wise(resnet(20, 'B'), 64, mutator=dict(exclude=['*.downsample.0', 'backbone.layer1.0.conv1']))
    alone = model.mutator.left_alone
    assert set(alone) == {'backbone.layer1.0.conv1', 'backbone.layer2.0.downsample.0', 'backbone.layer3.0.downsample.0'}
    assert not isinstance(model.backbone.layer1[0].conv1, SkeletonConv2d)
    assert isinstance(model.backbone.layer1[0].conv2, SkeletonConv2d)
    model = stripe_wise(resnet(20), 64, mutator=dict(scope='backbone.layer2'))
    assert all(path.startswith('backbone.layer2.') for path in skeletons(model))


def test_frozen_weights(stripe_wise):
    model = stripe_wise(resnet(20), 64, freeze_weights=True)
    assert {name.rpartition('.')[2] for name, p in model.named_parameters() if p.requires_grad} == {'skeleton'}
    assert all(parameter.requires_grad for parameter in model.export_model().parameters())


def test_start_of_batch_norm(stripe_wise, dense_resnet20):
    model = stripe_wise(resnet(20), 64)
    model.init_weights()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(bool((norm.weight == 0.5).all()) for norm in norms)
    norms[0].weight.data.fill_(1.7)
    model.init_weights()  # as the Runner does, of a model that has weights
    assert float(norms[0].weight.mean()) == pytest.approx(1.7)
    model = stripe_wise(resnet(20), 64, checkpoint=dense_resnet20)
    wanted = torch.load(dense_resnet20)['state_dict']['backbone.bn1.weight']
    model.init_weights()
    assert torch.equal(model.backbone.bn1.weight, wanted)


@pytest.fixture
def dense_resnet20(classifier, tmp_path) -> str:
    torch.save({'state_dict': classifier(resnet(20), 64).state_dict()}, tmp_path / 'dense.pth')
    return str(tmp_path / 'dense.pth')


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize('settings, message', [
    (dict(threshold=-0.1), 'threshold should be a number of at least 0 and below 1'),
    (dict(threshold=1.0), 'below 1, where all stripes start'),
    (dict(threshold='0.01'), "got '0.01'"),
    (dict(sr=-1e-5), 'sr should be a number of at least 0'),
    (dict(sr=float('nan')), 'sr should be a number'),
    (dict(sr=0, freeze_weights=True), 'nothing draws them to zero'),
    (dict(sr=0, threshold=0), 'no stripe would ever die'),
    (dict(bn_scale=0), 'bn_scale should be a positive number or None'),
    (dict(forms='fast'), 'forms should be one of dense, stripes'),
    (dict(forms={'backbon.*': 'stripes'}), 'no convolution with a skeleton matches "backbon.*"'),
    (dict(mutator=dict(type='mmprune_ext.L1Mutator')), 'mutator should be a StripeMutator'),
])
def test_settings_that_cannot_work(stripe_wise, settings, message):
    with pytest.raises(ConfigError, match=message):
        stripe_wise(resnet(20), 64, **settings)


def test_a_model_without_a_kernel_above_one(stripe_wise):
    with pytest.raises(PruningError, match='no convolution with a kernel above 1x1 can lose stripes'):
        stripe_wise(resnet(20, 'B'), 64, mutator=dict(exclude=['*conv*']))


def test_exclude_that_matches_nothing(stripe_wise):
    with pytest.raises(PruningError, match='no channel unit matches "stem"'):
        stripe_wise(resnet(20), 64, mutator=dict(exclude='stem'))
