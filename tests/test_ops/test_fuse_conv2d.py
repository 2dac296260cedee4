"""The fusing convolution against the explicit product of P and W."""
from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.model import BaseModule, ExponentialMovingAverage
from torch import Tensor, nn

from mmprune_ext.ops import FuseConv2d, FusionPart
from mmprune_ext.scores import fusion_matrix

TEMPERATURES = [1.0, 20.0, 10000.0]
CONVS = {
    'plain': dict(in_channels=4, out_channels=12, kernel_size=3, padding=1),
    'no bias': dict(in_channels=4, out_channels=12, kernel_size=3, bias=False),
    'strided': dict(in_channels=4, out_channels=12, kernel_size=(3, 2), stride=2, dilation=(1, 2)),
    'reflect': dict(in_channels=4, out_channels=12, kernel_size=3, padding=1, padding_mode='reflect'),
    '1x1': dict(in_channels=4, out_channels=12, kernel_size=1),
    'same': dict(in_channels=4, out_channels=12, kernel_size=3, padding='same'),
    'depthwise': dict(in_channels=12, out_channels=12, kernel_size=3, padding=1, groups=12),
}


def make(kind: str, seed: int = 0) -> nn.Conv2d:
    torch.manual_seed(seed)
    return nn.Conv2d(**CONVS[kind]).double()


def images(layer: nn.Conv2d) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(2, layer.in_channels, 9, 8, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize('temperature', [None, *TEMPERATURES])
@pytest.mark.parametrize('kind', CONVS)
def test_forward_is_the_convolution_with_p_w(kind, temperature):
    conv = make(kind)
    weight, bias = conv.weight.detach().clone(), conv.bias
    layer = FuseConv2d.from_conv(conv, 7)
    matrix = torch.eye(12, dtype=torch.float64)[:7]
    if temperature is not None:
        assert layer.update(temperature) is True
        matrix = fusion_matrix(weight, 7, temperature)[0]
    fused = torch.einsum('mc,cikl->mikl', matrix, weight)
    x = images(layer)
    padded = F.pad(x, (1, 1, 1, 1), mode='reflect') if kind == 'reflect' else x
    expected = F.conv2d(padded, fused, None if bias is None else matrix @ bias, conv.stride,
                        0 if kind == 'reflect' else conv.padding, conv.dilation,
                        7 if kind == 'depthwise' else 1)
    assert layer(x).shape[1] == layer.out_channels == 7
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize('temperature', TEMPERATURES)
@pytest.mark.parametrize('kind', CONVS)
def test_the_plain_convolution_is_the_same(kind, temperature):
    layer = FuseConv2d.from_conv(make(kind), 5).eval()
    layer.update(temperature)
    plain = layer.fused_conv()
    assert type(plain) is nn.Conv2d and not plain.training
    assert plain.weight.shape[0] == plain.out_channels == 5
    assert torch.equal(plain(images(layer)), layer(images(layer)))
    before = plain.weight.detach().clone()
    layer.weight.data.zero_()
    assert torch.equal(plain.weight, before)  # no memory shared with the trained filters


@pytest.mark.parametrize('kind', ['plain', 'depthwise'])
def test_gradients_reach_all_filters_and_not_p(kind):
    layer = FuseConv2d.from_conv(make(kind), 5)
    layer.update(1.0)
    layer(images(layer)).square().sum().backward()
    assert bool((layer.weight.grad.flatten(1).abs().sum(1) > 0).all())
    assert bool((layer.bias.grad != 0).all())
    assert not layer.fusion.requires_grad and layer.fusion.grad is None
    assert {name for name, _ in layer.named_parameters()} == {'weight', 'bias'}


def test_gradient_by_hand():
    """dL/dW = P^T dL/d(PW), also where the product is spared."""
    for temperature in TEMPERATURES:
        layer = FuseConv2d.from_conv(make('plain'), 5)
        layer.update(temperature)
        weight, _ = layer.fused_weight()
        upstream = torch.randn(weight.shape, dtype=weight.dtype)
        weight.backward(upstream)
        expected = torch.einsum('mc,mikl->cikl', layer.fusion, upstream)
        torch.testing.assert_close(layer.weight.grad, expected)


@pytest.mark.parametrize('temperature', TEMPERATURES)
def test_keeping_all_filters_at_high_temperature_changes_nothing(temperature):
    conv = make('plain')
    dense = copy.deepcopy(conv)
    layer = FuseConv2d.from_conv(conv, 12)
    torch.testing.assert_close(layer(images(layer)), dense(images(layer)))
    layer.update(temperature)
    assert bool(layer.chosen.all())
    if temperature == 10000:
        torch.testing.assert_close(layer(images(layer)), dense(images(layer)))
    else:
        assert not torch.allclose(layer(images(layer)), dense(images(layer)))


def test_parts_are_fused_apart():
    """Two units in one layer, one of two rows a channel, and rows of no unit."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 12, 3).double()
    first = FusionPart(np.array([[1], [2], [3], [4]]), np.array([[1], [2]]), np.array([1, 3]))
    pairs = FusionPart(np.array([[5, 8], [6, 9], [7, 10]]), np.array([[3, 5], [4, 6]]), np.array([0, 2]))
    layer = FuseConv2d(conv, [first, pairs])
    assert layer.fusion.nonzero()[:, 1].tolist() == [0, 2, 4, 5, 7, 8, 10, 11]
    assert layer.chosen.nonzero()[:, 0].tolist() == [0, 2, 4, 5, 7, 8, 10, 11]
    layer.update(2.0)
    expected = torch.zeros(8, 12, dtype=torch.float64)
    expected[0, 0] = expected[7, 11] = 1
    expected[1:3, 1:5] = fusion_matrix(conv.weight[1:5], 2, 2.0)[0]
    joint = torch.stack([conv.weight[[5, 8]], conv.weight[[6, 9]], conv.weight[[7, 10]]])
    matrix = fusion_matrix(joint, 2, 2.0)[0]
    for shift in (0, 1):
        expected[3 + 2 * shift:5 + 2 * shift, 5 + 3 * shift:8 + 3 * shift] = matrix
    torch.testing.assert_close(layer.fusion, expected)
    assert layer(torch.randn(1, 3, 5, 5, dtype=torch.float64)).shape[1] == 8


def test_depthwise_with_a_multiplier():
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, 3, groups=4)
    layer = FuseConv2d(conv, [FusionPart(np.arange(8).reshape(4, 2), np.arange(6).reshape(3, 2), np.arange(3))])
    layer.update(1.0)
    assert (layer.in_channels, layer.out_channels, layer.groups) == (3, 6, 3)
    assert layer(torch.randn(1, 3, 5, 5)).shape == (1, 6, 3, 3)


@pytest.mark.parametrize('conv', [nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 8, 1, groups=4)])
def test_grouped_convolutions_are_refused(conv):
    with pytest.raises(ValueError, match='takes groups=1 or a depthwise convolution'):
        FuseConv2d.from_conv(conv, 4)


@pytest.mark.parametrize('keep', [0, 13])
def test_kept_number_out_of_range(keep):
    with pytest.raises(ValueError, match=f'keep should be 1 to 12, got {keep}'):
        FuseConv2d.from_conv(make('plain'), keep)


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_weights_that_diverged_keep_the_mixture(bad):
    layer = FuseConv2d.from_conv(make('plain'), 5)
    layer.update(1.0)
    before, chosen = layer.fusion.clone(), layer.chosen.clone()
    layer.weight.data[3, 0, 0, 0] = bad
    assert layer.update(50.0) is False
    assert torch.equal(layer.fusion, before) and torch.equal(layer.chosen, chosen)


def test_update_remembers_its_choice():
    """Where all filters are equally important the choice of the mixing phase stays."""
    layer = FuseConv2d.from_conv(make('plain'), 5)
    layer.update(1.0)
    chosen = layer.chosen.clone()
    assert chosen.nonzero()[:, 0].tolist() != [0, 1, 2, 3, 4]
    layer.update(10000.0)
    assert torch.equal(layer.chosen, chosen)
    assert torch.equal(layer.fusion, torch.eye(12, dtype=torch.float64)[chosen])


def test_few_positions():
    """With fewer positions than weights in a filter the outputs are mixed: the same, both ways."""
    torch.manual_seed(0)
    layer = FuseConv2d.from_conv(nn.Conv2d(8, 24, 3, stride=2, padding=1, padding_mode='reflect').double(), 20)
    layer.update(0.5)
    for side, fewer in ((4, True), (32, False)):
        x = torch.randn(2, 8, side, side, dtype=torch.float64)
        assert layer._outputs_cost_less(x) is fewer
        found, expected = layer.train()(x), layer.fused_conv()(x)
        torch.testing.assert_close(found, expected)
        upstream = torch.randn_like(found)
        gradients = torch.autograd.grad(found, [layer.weight, layer.bias], upstream)
        wanted = torch.autograd.grad(layer.eval()(x), [layer.weight, layer.bias], upstream)
        torch.testing.assert_close(gradients, wanted)


def test_a_choice_is_exact():
    """Filters a hundredth apart share 1e-20 at this temperature: nothing in the type of the weights."""
    conv = nn.Conv2d(1, 3, 1, bias=False)
    conv.weight.data[:, 0, 0, 0] = torch.tensor([1.0, 1.01, 1.02])
    layer = FuseConv2d.from_conv(conv, 2)
    layer.update(4622.0)
    assert torch.equal(layer.fusion, torch.eye(3)[:2])
    layer.fusion.mul_(0.5)  # as an averaging hook might, between two choices
    torch.testing.assert_close(layer.fused_weight()[0], 0.5 * conv.weight[:2])
    layer.update(462.0)
    assert torch.count_nonzero(layer.fusion) == 6


# ---------------------------------------------------------------- as part of a model


def test_state_dict_round_trip():
    layer, other = FuseConv2d.from_conv(make('plain'), 5), FuseConv2d.from_conv(make('plain', 1), 5)
    layer.update(3.0)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    assert set(layer.state_dict()) == {'weight', 'bias', 'fusion', 'chosen'}
    assert layer.chosen.dtype is torch.bool
    assert torch.equal(other(images(layer)), layer(images(layer)))


def test_deepcopy_is_independent():
    layer = FuseConv2d.from_conv(make('plain'), 5)
    other = copy.deepcopy(layer)
    other.update(1.0)
    other.weight.data.zero_()
    torch.testing.assert_close(layer(images(layer)), make('plain')(images(layer))[:, :5])


def test_exponential_moving_average():
    layer = FuseConv2d.from_conv(make('plain'), 5)
    average = ExponentialMovingAverage(layer, momentum=0.5)
    average.update_parameters(layer)
    layer.update(1.0)
    layer.weight.data.mul_(3)
    average.update_parameters(layer)
    inner = average.module
    torch.testing.assert_close(inner.weight, 2 * make('plain').weight)
    assert torch.equal(inner.fusion, layer.fusion)
    expected = torch.einsum('mc,cikl->mikl', inner.fusion, inner.weight)
    torch.testing.assert_close(inner.fused_weight()[0], expected)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    layer = FuseConv2d.from_conv(make('plain').float(), 5)
    layer.update(1.0)
    x = images(layer).float()
    exact = layer(x)
    with torch.autocast('cpu', dtype=dtype):
        found = layer(x)
        assert layer.fused_weight()[0].dtype is torch.float32
    assert found.dtype is dtype
    torch.testing.assert_close(found.float(), exact, rtol=0.03, atol=0.03)
    found.float().sum().backward()
    assert layer.weight.grad.dtype is torch.float32 and bool(layer.weight.grad.isfinite().all())


def test_few_positions_in_mixed_precision():
    """Filters are mixed in float32 where mixing outputs would round the sums."""
    torch.manual_seed(0)
    layer = FuseConv2d.from_conv(nn.Conv2d(8, 24, 3, stride=2, padding=1), 20).train()
    layer.update(0.5)
    x = torch.randn(2, 8, 4, 4)
    assert layer._outputs_cost_less(x)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert not layer._outputs_cost_less(x)
        found = layer(x)
        weight, bias = layer.fused_weight()
        assert torch.equal(found, F.conv2d(x, weight, bias, 2, 1))
        with torch.autocast('cpu', enabled=False):
            assert layer._outputs_cost_less(x)


def test_other_types():
    layer = FuseConv2d.from_conv(make('plain'), 5)
    layer.update(1.0)
    layer = layer.to(torch.bfloat16)
    assert layer.fusion.dtype is torch.bfloat16 and layer.chosen.dtype is torch.bool
    assert layer(images(layer).bfloat16()).dtype is torch.bfloat16
    layer.update(2.0)
    assert layer.fusion.dtype is torch.bfloat16


def test_frozen_filters_stay_frozen():
    conv = make('plain')
    conv.weight.requires_grad = False
    layer = FuseConv2d.from_conv(conv, 5)
    layer.update(1.0)
    assert not layer.weight.requires_grad and not layer.fused_conv().weight.requires_grad
    assert layer.fused_conv().bias.requires_grad


INITS: dict[str, dict[str, Any]] = {
    'kaiming': dict(type='Kaiming', layer='Conv2d'), 'xavier': dict(type='Xavier', layer='Conv2d'),
    'constant': dict(type='Constant', layer=['Conv2d', 'BatchNorm2d'], val=0.25)}


@pytest.mark.parametrize('name', ['kaiming', 'xavier', 'constant'])
def test_initialised_like_a_convolution(name):
    """init_cfg finds layers by class name or the name of a base; all filters get values."""
    class Net(BaseModule):
        def __init__(self, conv: nn.Conv2d) -> None:
            super().__init__(init_cfg=dict(INITS[name]))
            self.conv = conv

    plain, fusing = Net(make('plain')), Net(FuseConv2d.from_conv(make('plain'), 5))
    torch.manual_seed(3)
    plain.init_weights()
    torch.manual_seed(3)
    fusing.init_weights()
    assert not torch.equal(plain.conv.weight, make('plain').weight)
    assert torch.equal(fusing.conv.weight, plain.conv.weight)
