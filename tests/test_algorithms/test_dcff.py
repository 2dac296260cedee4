"""DCFF as a model: structure, initialisation, export."""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from mmprune_ext.algorithms import DCFF
from mmprune_ext.analysis import complexity
from mmprune_ext.compact import CompactModel
from mmprune_ext.errors import CheckpointError, ConfigError, PruningError, TargetError, UnitFileError
from mmprune_ext.mutators import DCFFMutator
from mmprune_ext.ops import FuseConv2d
from mmprune_ext.registry import MODELS


@pytest.fixture
def mutator() -> DCFFMutator:
    return DCFFMutator(demo_inputs=[32, 32])


def build(model: nn.Module, mutator: DCFFMutator, ratio: Any = 0.5, **options: Any) -> DCFF:
    torch.manual_seed(1)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return DCFF(model, mutator, ratio, **options)


def shaken(algorithm: DCFF) -> DCFF:
    """Give an untrained model filters and statistics such that its outputs depend on everything in it.

    Filters about log(C) apart are mixed half and half with all others at temperature 1.
    """
    generator = torch.Generator().manual_seed(2)
    for _, layer in algorithm.fuse_layers():
        norms = layer.weight.data.flatten(1).norm(dim=1).mean()
        layer.weight.data *= math.log(len(layer.weight)) / 2 ** 0.5 / norms
    for module in algorithm.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(std=0.3, generator=generator)
            module.running_mean.normal_(std=0.1, generator=generator)
            module.running_var.uniform_(0.05, 0.3, generator=generator)
    return algorithm.eval()


def images(seed: int = 5) -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


RESNET = dict(type='mmprune_ext.CifarResNet', depth=8, base_channels=8)
VGG = dict(type='VGG', depth=11, num_classes=-1)  # convolutions with bias, no normalisation
MOBILENET = dict(type='MobileNetV2', widen_factor=0.25)
SHUFFLENET = dict(type='ShuffleNetV2', widen_factor=0.5)
NETWORKS = {'residual': (RESNET, 32), 'bias': (VGG, 512), 'depthwise': (MOBILENET, 1280),
            'split and shuffled': (SHUFFLENET, 1024)}


def network(name: str, classifier: Callable[..., nn.Module]) -> nn.Module:
    backbone, features = NETWORKS[name]
    return classifier(backbone, features)


# ---------------------------------------------------------------- export


@pytest.mark.parametrize('name', NETWORKS)
def test_exported_model_is_the_trained_one(name, classifier, mutator):
    """At the start, in between and at the end of the schedule."""
    algorithm = shaken(build(network(name, classifier), mutator))
    for step in (0, 1, 9):
        algorithm.update_fusion(step, 10)
        expected = algorithm(images())
        compact = algorithm.export_model()
        torch.testing.assert_close(compact(images()), expected, rtol=1e-5, atol=1e-5)
        assert float(expected.detach().std(0).max()) > 1e-3  # the images make a difference
    assert not any(isinstance(module, FuseConv2d) for module in compact.modules())
    assert any(isinstance(module, FuseConv2d) for module in algorithm.modules())


@pytest.mark.parametrize('name', NETWORKS)
def test_exported_weights_fit_the_compact_model(name, classifier, mutator):
    algorithm = shaken(build(network(name, classifier), mutator))
    algorithm.update_fusion(0, 10)
    compact = CompactModel(network(name, classifier), algorithm.units.to_json())
    result = compact.load_state_dict(algorithm.export_model().state_dict(), strict=True)
    assert not result.missing_keys and not result.unexpected_keys
    torch.testing.assert_close(compact.eval()(images()), algorithm(images()), rtol=1e-5, atol=1e-5)


def test_a_depthwise_follower_is_fused_too(classifier, mutator):
    algorithm = build(network('depthwise', classifier), mutator)
    layers = dict(algorithm.fuse_layers())
    depthwise = [layer for layer in layers.values() if layer.groups > 1]
    assert depthwise and all(len(layer.weight) > layer.out_channels == layer.groups for layer in depthwise)


# ---------------------------------------------------------------- structure


def test_only_out_dimensions_stay_large(classifier, mutator):
    algorithm = build(network('residual', classifier), mutator)
    inner = algorithm.backbone.layer2[0]
    assert isinstance(inner.conv1, FuseConv2d)
    assert inner.conv1.weight.shape == (16, 4, 3, 3)   # all 16 filters on the 4 channels that stay
    assert inner.conv2.weight.shape == (16, 8, 3, 3)
    assert inner.conv1.out_channels == inner.bn1.num_features == 8
    assert algorithm.head.fc.in_features == 16


def test_each_producer_of_a_unit_has_its_own_mixture(classifier, mutator):
    algorithm = build(network('residual', classifier), mutator)
    algorithm.init_weights()
    unit = next(u for u in algorithm.units.values() if len(u.producers) > 1)
    mixtures = [algorithm.get_submodule(m.module).fusion for m in unit.producers
                if m.module in dict(algorithm.fuse_layers())]
    assert len(mixtures) > 1 and {len(m) for m in mixtures} == {unit.keep}
    assert not torch.equal(mixtures[0], mixtures[1])


def test_shortcuts_without_weights_pass_on_what_fits(classifier, mutator):
    algorithm = build(network('residual', classifier), mutator, 0.7)
    shortcut = algorithm.backbone.layer2[0].downsample
    assert shortcut.in_channels == 2 and shortcut.out_channels == 4
    assert sorted(source for source in shortcut.sources if source >= 0) == [0, 1]


def test_a_ratio_of_zero_changes_nothing(classifier, mutator):
    dense = network('residual', classifier).eval()
    expected = dense(images())
    algorithm = build(network('residual', classifier), mutator, 0.0).eval()
    assert list(algorithm.fuse_layers()) == []
    torch.testing.assert_close(algorithm(images()), expected, rtol=0, atol=0)
    assert algorithm.export_model().state_dict().keys() == dense.state_dict().keys()
    algorithm.update_fusion(3, 10)
    torch.testing.assert_close(algorithm(images()), expected, rtol=0, atol=0)


def test_a_budget_of_flops(classifier, mutator):
    dense = complexity(network('residual', classifier), (32, 32)).macs
    algorithm = build(network('residual', classifier), mutator, None, budget=dict(flops=0.5))
    assert 0.4 < complexity(algorithm.export_model(), (32, 32)).macs / dense <= 0.5


def test_known_units_are_not_traced(classifier, mutator, monkeypatch):
    first = build(network('residual', classifier), mutator)

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError('traced')

    monkeypatch.setattr('mmprune_ext.mutators.base.trace_units', forbidden)
    second = build(network('residual', classifier), DCFFMutator(), None, units=first.units.to_json(),
                   checkpoint='deleted.pth')
    assert second.units.to_json() == first.units.to_json()
    second.load_state_dict(first.state_dict())


def test_a_checkpoint_of_other_widths_is_refused(classifier, mutator):
    first = build(network('residual', classifier), mutator)
    second = build(network('residual', classifier), DCFFMutator(demo_inputs=[32, 32]), 0.25)
    with pytest.raises(CheckpointError, match='pruned other channels'):
        second.load_state_dict(first.state_dict(), strict=False)


def test_layers_that_cannot_be_fused_stay_whole(classifier):
    """A grouped convolution makes the channels of ResNeXt's middle; the rest is pruned."""
    model = classifier(dict(type='ResNeXt', depth=50, groups=4, width_per_group=4), 2048)
    algorithm = build(model, DCFFMutator(demo_inputs=[32, 32]))
    unit = algorithm.units['backbone.layer1.0.conv2']
    assert not unit.prunable
    assert unit.why() == (
        'a layer of unsupported kind uses it (DCFF fuses the filters of plain and depthwise 2-D '
        'convolutions, and "backbone.layer1.0.conv2" is a grouped convolution)')
    assert dict(algorithm.fuse_layers())['backbone.layer1.0.conv1'].out_channels > 0


def test_nothing_to_fuse(classifier):
    model = classifier(dict(type='VisionTransformer', arch='deit-t', img_size=32, patch_size=16,
                            out_type='cls_token'), 192, neck=dict(type='mmpretrain.GlobalAveragePooling'))
    model.neck = None
    with pytest.raises(PruningError, match='no channel unit of the model can be pruned:(.|\n)*is Linear'):
        build(model, DCFFMutator(demo_inputs=[32, 32]))


# ---------------------------------------------------------------- initialisation


def test_from_scratch_all_filters_are_initialised_then_mixed(classifier, mutator):
    model = network('residual', classifier)
    model.backbone.init_cfg = [dict(type='Constant', layer='Conv2d', val=0.25)]
    algorithm = build(model, mutator)
    algorithm.init_weights()
    layers = list(algorithm.fuse_layers())
    assert layers
    for _, layer in layers:
        assert layer.weight.unique().tolist() == [0.25]
        # Equal filters are mixed in equal parts.
        torch.testing.assert_close(layer.fusion, torch.full_like(layer.fusion, 1 / len(layer.weight)))


def test_initial_mixture_is_that_of_the_first_step(classifier, mutator):
    algorithm = build(network('residual', classifier), mutator)
    algorithm.init_weights()
    before = {path: layer.fusion.clone() for path, layer in algorithm.fuse_layers()}
    assert algorithm.update_fusion(0, 30) == 1.0
    assert all(torch.equal(before[path], layer.fusion) for path, layer in algorithm.fuse_layers())
    assert algorithm.update_fusion(30, 30) == 10000.0
    assert all(not torch.equal(before[path], layer.fusion) for path, layer in algorithm.fuse_layers())


def test_from_dense_weights(pruning_config, dense_checkpoint):
    """All filters of the dense model are there; their inputs are those of the channels that stay."""
    config = dcff_config(pruning_config, checkpoint=str(dense_checkpoint))
    algorithm = from_config(config)
    algorithm.init_weights()  # the Runner calls it
    dense = torch.load(dense_checkpoint, weights_only=False)['state_dict']['backbone.layer2.0.conv1.weight']
    entered = algorithm.units['backbone.conv1'].indices
    layer = algorithm.backbone.layer2[0].conv1
    torch.testing.assert_close(layer.weight, dense[:, entered], rtol=0, atol=0)


def test_from_the_checkpoint_that_the_architecture_names(pruning_config, dense_checkpoint):
    config = dcff_config(pruning_config, checkpoint=None)
    config.model.architecture.init_cfg = dict(type='Pretrained', checkpoint=str(dense_checkpoint))
    algorithm = from_config(config)
    algorithm.init_weights()
    dense = torch.load(dense_checkpoint, weights_only=False)['state_dict']['backbone.conv1.weight']
    assert torch.equal(algorithm.backbone.conv1.weight, dense)
    assert algorithm.init_cfg is None  # it does not fit the compact network


def dcff_config(pruning_config: Callable[..., Config], **model: Any) -> Config:
    config = pruning_config()
    config.model = dict(type='mmprune_ext.DCFF', architecture=config.model.architecture,
                        mutator=dict(type='mmprune_ext.DCFFMutator', demo_inputs=[32, 32]),
                        target_pruning_ratio=0.5, **model)
    return config


def from_config(config: Config) -> DCFF:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build({**config.model, 'data_preprocessor': config.data_preprocessor})


def test_mutator_by_default(pruning_config):
    config = dcff_config(pruning_config)
    config.model.mutator = None
    config.model.architecture.backbone.depth = 14
    assert isinstance(from_config(config).mutator, DCFFMutator)


# ---------------------------------------------------------------- training


def test_training_needs_updates(pruning_config):
    """A run without the hook would train through mixtures that never change."""
    from mmpretrain.structures import DataSample
    algorithm = from_config(dcff_config(pruning_config))
    samples = [DataSample().set_gt_label(i) for i in range(3)]
    algorithm.train()
    with pytest.raises(ConfigError, match=r"nothing updates the mixtures .* add dict\(type='mmprune_ext.FusionHook'\)"):
        algorithm(images(), samples, mode='loss')
    algorithm.eval()
    algorithm(images(), samples, mode='loss')
    algorithm.train()
    algorithm.update_fusion(0, 1)
    algorithm(images(), samples, mode='loss')


@pytest.mark.parametrize('step', [0, 5])
def test_training_step_in_bfloat16(pruning_config, step):
    from mmpretrain.structures import DataSample
    algorithm = from_config(dcff_config(pruning_config)).train()
    algorithm.init_weights()
    algorithm.update_fusion(step, 5)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = algorithm(images(), [DataSample().set_gt_label(i) for i in range(3)], mode='loss')['loss']
    loss.backward()
    for name, parameter in algorithm.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
        assert parameter.grad.dtype is torch.float32
    layer = algorithm.backbone.layer2[0].conv1
    reached = layer.weight.grad.flatten(1).abs().sum(1) > 0
    assert reached.tolist() == ([True] * 16 if step == 0 else layer.chosen.tolist())


def test_diverged_weights_are_told(pruning_config, caplog):
    algorithm = from_config(dcff_config(pruning_config))
    algorithm.backbone.layer2[0].conv1.weight.data[0, 0, 0, 0] = float('nan')
    before = algorithm.backbone.layer2[0].conv1.fusion.clone()
    from mmengine.logging import MMLogger
    logger = MMLogger.get_instance('diverged')
    logger.addHandler(caplog.handler)
    algorithm.update_fusion(1, 5)
    assert ('DCFF: 1 convolutions hold values that are not finite and keep their mixtures (first: '
            'backbone.layer2.0.conv1)') in caplog.text
    assert torch.equal(algorithm.backbone.layer2[0].conv1.fusion, before)


# ---------------------------------------------------------------- bad inputs


@pytest.mark.parametrize(('options', 'error', 'text'), [
    (dict(step_freq=0), ConfigError, 'step_freq is the number of epochs .* but got 0'),
    (dict(step_freq=1.5, by_epoch=False), ConfigError, 'step_freq is the number of iterations .* but got 1.5'),
    (dict(step_freq=True), ConfigError, 'but got True'),
    (dict(mutator=dict(type='mmprune_ext.L1Mutator')), ConfigError,
     'mutator should be a DCFFMutator, but got L1Mutator'),
    (dict(target_pruning_ratio={'backbone.layer9.0.conv1': 0.5}), UnitFileError,
     'unknown channel unit "backbone.layer9.0.conv1"'),
    (dict(target_pruning_ratio=None), TargetError, 'either target_pruning_ratio or budget'),
    (dict(budget=dict(flops=0.5)), TargetError, 'either target_pruning_ratio or budget'),
    (dict(target_pruning_ratio=None, budget=dict(flops=0.5, spread='global')), TargetError, "use spread='uniform'"),
    (dict(checkpoint='nowhere.pth'), CheckpointError, 'checkpoint nowhere.pth: no such file'),
    (dict(units='nowhere.json'), UnitFileError, 'nowhere.json: no such file'),
], ids=str)
def test_bad_settings(pruning_config, options, error, text):
    config = dcff_config(pruning_config)
    config.model.update(options)
    with pytest.raises(error, match=text):
        from_config(config)


def test_units_that_cannot_be_fused(classifier):
    model = classifier(dict(type='ResNeXt', depth=50, groups=4, width_per_group=4), 2048)
    from mmprune_ext.units import trace_units
    units = trace_units(model, [32, 32])
    unit = units['backbone.layer1.0.conv2']
    unit.choose(range(unit.kept_number(0.5)))
    with pytest.raises(UnitFileError, match=r'unit "backbone.layer1.0.conv2" keeps \d+ of \d+ channels, but DCFF '
                       'fuses the filters of plain and depthwise 2-D convolutions'):
        build(model, DCFFMutator(), None, units=units)
