"""Exact counts, and a model that stays as it was."""
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.analysis import ActivationAnalyzer
from torch import nn
from torch.nn import functional as F

from mmprune_ext.analysis import complexity
from mmprune_ext.analysis.complexity import backbone_path
from mmprune_ext.errors import PruningError

# Published networks at 3 x 224 x 224 with 1000 classes, counted from independent builds.
PUBLISHED = {
    'CHIP ImageNet ResNet-50 dense': (('ResNet', 50, {}), 25557032, 4089184256,
        4121924096, 4111514624),
    'ResNet18 ImageNet dense': (('ResNet', 18, {}), 11689512, 1814073344,
        1822176768, 1819066368),
    'ChipNet table VGG-11': (('VGG', 11, {}), 132863336, 7609090048,
        7630071808, 7616516096),
    'ChipNet table VGG-16': (('VGG', 16, {}), 138357544, 15470264320,
        15503489024, 15483811840),
    'ChipNet table VGG-19': (('VGG', 19, {}), 143667240, 19632062464,
        19667896320, 19646914560),
    'ChipNet table VGG-11-BN': (('VGG', 11, {'type': 'BN'}), 132868840, 7609090048,
        7644923904, 7631368192),
    'ChipNet table VGG-16-BN': (('VGG', 16, {'type': 'BN'}), 138365992, 15470264320,
        15530584064, 15510906880),
}


def published_model(kind: str, depth: int, norm: dict) -> nn.Module:
    pytest.importorskip('mmpretrain.models')
    from mmpretrain.registry import MODELS
    if kind == 'VGG':
        config = dict(type='mmpretrain.ImageClassifier', backbone=dict(
            type='mmpretrain.VGG', depth=depth, num_classes=1000, norm_cfg=norm or None))
    else:
        return MODELS.build(dict(
            type='mmpretrain.ImageClassifier',
            backbone=dict(type='mmpretrain.ResNet', depth=depth),
            neck=dict(type='mmpretrain.GlobalAveragePooling'),
            head=dict(type='mmpretrain.LinearClsHead', num_classes=1000,
                      in_channels=2048 if depth == 50 else 512)))
    # Counting needs no sensible weights, and initialising 140 million takes longer than all else.
    with torch.device('meta'):
        model = MODELS.build(config)
    model = model.to_empty(device='cpu')
    for value in model.state_dict().values():
        value.zero_()
    return model


@pytest.mark.parametrize('row', PUBLISHED)
def test_published_counts(row):
    (kind, depth, norm), params, macs, flops_mm, flops_thop = PUBLISHED[row]
    result = complexity(published_model(kind, depth, norm), (3, 224, 224), flops=False)
    assert (result.params, result.macs) == (params, macs)
    assert (result.flops_mm, result.flops_thop) == (flops_mm, flops_thop)
    if kind == 'ResNet':
        width = 2048 if depth == 50 else 512
        assert result.backbone_params == params - 1000 * (width + 1)
        assert result.backbone_macs == macs - 1000 * width
    assert sum(result.per_layer.values()) == macs
    assert result.matmul_macs == 0


def test_flops_are_those_of_mmengine():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(),
                          nn.Linear(4 * 8 * 8, 5))
    result = complexity(model, (8, 8))
    # Nothing here but what both conventions count.
    assert result.flops == result.macs == 64 * 27 * 4 + 256 * 5
    normalised = complexity(nn.Sequential(model[0], nn.BatchNorm2d(4)), (8, 8))
    assert normalised.flops > normalised.macs
    assert complexity(model, (8, 8), flops=False).flops is None


@pytest.mark.parametrize(('model', 'shape'), [
    (lambda: Kinds(), (4, 8, 8)), (lambda: Shared(), (3, 4, 4)),
    (lambda: published_model('ResNet', 18, {}), (3, 64, 64))],
    ids=['Kinds', 'Shared', 'ResNet-18'])
def test_volume_is_mmengines_activation_count(model, shape):
    """Without products of two activations the conventions agree."""
    model = model().eval()
    result = complexity(model, shape, flops=False)
    analysis = ActivationAnalyzer(model, (torch.zeros(1, *shape), )).unsupported_ops_warnings(False)
    assert result.volume == analysis.uncalled_modules_warnings(False).total()


class Kinds(nn.Module):
    """One layer of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(4, 8, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=8)
        self.transposed = nn.ConvTranspose2d(16, 6, 2, stride=2, groups=2)
        self.strip = nn.Conv1d(6, 5, 3)
        self.linear = nn.Linear(62, 7)

    def forward(self, x):
        x = self.transposed(self.depthwise(self.grouped(x)))
        return self.linear(self.strip(x.flatten(2)))


def test_every_kind_of_layer():
    result = complexity(Kinds(), (4, 8, 8))
    assert result.per_layer == {
        'grouped': 64 * 8 * 2 * 9, 'depthwise': 16 * 16 * 9, 'transposed': 16 * 16 * 3 * 4,
        'strip': 62 * 5 * 6 * 3, 'linear': 5 * 62 * 7}
    assert result.per_layer_outputs == {
        'grouped': 8 * 64, 'depthwise': 16 * 16, 'transposed': 6 * 64, 'strip': 5 * 62, 'linear': 5 * 7}
    assert result.volume == sum(result.per_layer_outputs.values())
    assert result.macs == sum(result.per_layer.values())
    assert result.input_shape == (4, 8, 8)


class Shared(nn.Module):
    """A layer called twice, a layer never called, and one weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.twin = nn.Conv2d(3, 3, 1)
        self.twin.weight = self.conv.weight
        self.unused = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.twin(self.conv(self.conv(x)))


def test_shared_layers():
    result = complexity(Shared(), (4, 4))
    assert result.per_layer == {'conv': 2 * 16 * 9, 'twin': 16 * 9}
    assert result.per_layer_outputs == {'conv': 2 * 16 * 3, 'twin': 16 * 3}
    assert result.params == 2 * 9 + 3 * 3


def test_attention():
    """Projections are layers; products of activations are apart."""
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    result = complexity(model, lambda m: m(torch.randn(1, 5, 8)))
    assert result.per_layer == {'self_attn': 5 * 8 * 24, 'self_attn.out_proj': 5 * 8 * 8,
                                'linear1': 5 * 8 * 16, 'linear2': 5 * 8 * 16}
    assert result.per_layer_outputs == {'self_attn': 5 * 24, 'self_attn.out_proj': 5 * 8, 'linear1': 5 * 16,
                                        'linear2': 5 * 8}
    assert result.matmul_macs == 2 * 5 * 5 * 8
    assert result.input_shape is None


class Products(nn.Module):
    """The ways to write a product of activations."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def forward(self, x):
        x = x.reshape(1, 2, 6, 4)
        if self.way == 'fused':
            return F.scaled_dot_product_attention(x, x, x)
        if self.way == 'einsum':
            return torch.einsum('bhik,bhjk->bhij', x, x) @ x
        return (x @ x.transpose(-2, -1)) @ x


@pytest.mark.parametrize('way', ['fused', 'einsum', 'matmul'])
def test_products_of_activations(way):
    result = complexity(Products(way), (48,), flops=False)
    assert result.matmul_macs == 2 * (2 * 6 * 6 * 4)
    assert result.macs == result.volume == 0


class Functional(nn.Module):
    """Convolutions by function: with a parameter, and with a computed weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.filters = nn.Parameter(torch.ones(5, 4, 3, 3))

    def forward(self, x):
        x = self.stem(x)
        return F.conv2d(F.conv2d(x, self.filters), torch.ones(2, 5, 1, 1) * 2)


def test_functional_convolutions():
    result = complexity(Functional(), (6, 6), flops=False)
    assert result.per_layer == {'stem': 36 * 12, '': 16 * 5 * 36, '(functional)': 16 * 10}
    assert result.per_layer_outputs == {'stem': 36 * 4, '': 16 * 5, '(functional)': 16 * 2}


class ToyDeformConv(nn.Module):
    """As mmcv's: no convolution layer, the work happens in a custom operator."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6, 3, 3, 3))
        self.conv_offset = nn.Conv2d(3, 18, 1)

    def forward(self, x):
        return x.new_zeros(1, 6, 4, 4) + self.conv_offset(x).mean()


def test_deformable_convolutions_count_once():
    result = complexity(nn.Sequential(ToyDeformConv()), (3, 4, 4), flops=False)
    assert result.per_layer == {'0': 16 * 6 * 27, '0.conv_offset': 16 * 3 * 18}
    assert result.per_layer_outputs == {'0': 16 * 6, '0.conv_offset': 16 * 18}


# ---------------------------------------------------------------- nothing changes


class Restless(nn.Module):
    """Freezes itself in train(), draws random numbers and writes a buffer in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.register_buffer('calls', torch.zeros(1))

    def train(self, mode: bool = True):
        super().train(mode)
        self.norm.training = False
        self.conv.weight.requires_grad = False
        return self

    def forward(self, x):
        self.calls += 1
        noise = torch.rand(1).item() + np.random.rand() + random.random()
        return self.norm(self.conv(x)) * noise


def test_model_and_random_state_stay_as_they_were():
    model = Restless()
    model.norm.training = True  # not what train() would set
    state = {key: value.clone() for key, value in model.state_dict().items()}
    random_states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    complexity(model, (8, 8))
    assert model.training and model.norm.training and model.conv.training
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_states[0])
    assert np.array_equal(np.random.get_state()[1], random_states[1])
    assert random.getstate() == random_states[2]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_everything_is_restored_after_a_failure():
    model = Restless()
    with pytest.raises(PruningError, match='Restless does not run on an input of shape'):
        complexity(model, (5, 8, 8))
    assert model.training and not model.conv._forward_hooks
    assert model.calls.item() == 0


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize('shape', [(0, 8), (3, 8, 8, 8), (), (8.0, 8.0), 'CHW', (True, 8), 8])
def test_malformed_shapes(shape):
    with pytest.raises(PruningError, match=r'input_shape should be \(C, H, W\) or \(H, W\)'):
        complexity(nn.Conv2d(3, 4, 1), shape)


def test_default_shape_and_dtype_follow_the_model():
    assert complexity(nn.Conv2d(3, 4, 3, stride=32), flops=False).input_shape == (3, 224, 224)
    assert complexity(nn.Linear(6, 2).double()).macs == 12


def test_demo_pass_that_fails():
    with pytest.raises(PruningError, match='does not run on the given demo pass: KeyError'):
        complexity(nn.Linear(2, 2), lambda m: {}['missing'])


class Wrapped(nn.Module):
    """Returns tensors inside an object, as models return data samples."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return SimpleNamespace(out=self.layer(x))


def test_outputs_that_are_no_tensors_are_analysed():
    assert complexity(Wrapped(), (4,)).flops == complexity(Wrapped(), lambda m: m(torch.ones(1, 4))).flops == 12


class Silent(Wrapped):
    """Returns no tensor, without which there is nothing for torch.jit to trace."""

    def forward(self, x):
        return len(self.layer(x))


def test_models_that_jit_cannot_trace_are_counted_without_flops(capfd):
    result = complexity(Silent(), (4,))
    assert (result.macs, result.flops) == (12, None)
    assert result.flops_missing.startswith('torch.jit: ')
    assert complexity(Silent(), (4,), flops=False).flops_missing == ''
    assert capfd.readouterr() == ('', '')


class Deciding(nn.Linear):
    """torch.jit warns about the branch."""

    def forward(self, x):
        return super().forward(x) if bool(x.sum() > 1e9) else super().forward(-x)


def test_analysis_is_quiet(capfd, recwarn):
    assert complexity(Deciding(4, 3), (4,)).flops == 12
    assert not recwarn.list and capfd.readouterr() == ('', '')


def test_backbone_is_found_inside_a_wrapper():
    inner = nn.Module()
    inner.backbone, inner.head = nn.Linear(3, 4), nn.Linear(4, 5)
    inner.forward = lambda x: inner.backbone2(inner.head(inner.backbone(x)))
    outer = nn.Module()
    inner.backbone2 = nn.Linear(5, 6)
    outer.architecture = inner
    outer.forward = inner.forward
    assert backbone_path(outer) == 'architecture.backbone'
    result = complexity(outer, (3,), flops=False)
    assert (result.backbone_params, result.backbone_macs) == (16, 12)
    assert (result.params, result.macs) == (16 + 25 + 36, 12 + 20 + 30)


def test_to_dict_names_the_conventions():
    record = complexity(nn.Linear(2, 3), (2,)).to_dict()
    assert record['macs'] == 6 and record['per_layer'] == {'': 6}
    assert record['volume'] == 3 and record['per_layer_outputs'] == {'': 3}
    assert set(record['conventions']) >= {'params', 'macs', 'volume', 'matmul_macs', 'flops', 'backbone'}
