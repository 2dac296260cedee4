"""SkeletonConv2d: the convolution of filters times their skeleton, and how stripes die."""
from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmprune_ext.ops import SkeletonConv2d
from mmprune_ext.registry import MODELS

SHAPES = [
    dict(kernel_size=1), dict(kernel_size=3, padding=1), dict(kernel_size=3, stride=2, padding=1),
    dict(kernel_size=5, padding=4, dilation=2), dict(kernel_size=7, stride=2, padding=3, bias=False),
    dict(kernel_size=(1, 3), padding=(0, 1)), dict(kernel_size=(5, 3), stride=(2, 1), padding='valid'),
    dict(kernel_size=3, padding='same'), dict(kernel_size=3, padding=1, padding_mode='reflect'),
    dict(kernel_size=3, padding=1, padding_mode='circular'), dict(kernel_size=3, padding=1, padding_mode='replicate')]


@pytest.fixture(params=SHAPES, ids=str)
def layer(request) -> SkeletonConv2d:
    torch.manual_seed(0)
    conv = SkeletonConv2d(5, 6, **request.param)
    nn.init.uniform_(conv.skeleton, -1, 1)
    conv.skeleton.data[torch.rand_like(conv.skeleton) < 0.4] = 0
    return conv


def test_outputs_and_gradients_by_loops(layer):
    """Stripe by stripe: the 1x1 convolution of each kernel position, times its number."""
    x = torch.randn(2, 5, 11, 10, requires_grad=True)
    out = layer(x)
    padded = F.pad(x, layer._reversed_padding_repeated_twice,
                   'constant' if layer.padding_mode == 'zeros' else layer.padding_mode)
    wanted = torch.zeros_like(out)
    if layer.bias is not None:
        wanted = wanted + layer.bias[:, None, None]
    (sy, sx), (dy, dx) = layer.stride, layer.dilation
    for a in range(layer.kernel_size[0]):
        for b in range(layer.kernel_size[1]):
            rows = slice(a * dy, a * dy + sy * (out.shape[2] - 1) + 1, sy)
            columns = slice(b * dx, b * dx + sx * (out.shape[3] - 1) + 1, sx)
            seen = padded[:, :, rows, columns]
            stripes = torch.einsum('oc,nchw->nohw', layer.weight[:, :, a, b], seen)
            wanted = wanted + layer.skeleton[:, a, b][:, None, None] * stripes
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)
    leaves = [x, layer.weight, layer.skeleton]
    weights = torch.randn_like(out)
    for given, want in zip(torch.autograd.grad((out * weights).sum(), leaves),
                           torch.autograd.grad((wanted * weights).sum(), leaves)):
        torch.testing.assert_close(given, want, rtol=1e-4, atol=1e-4)


def test_plain_conv_computes_the_same(layer):
    x = torch.randn(2, 5, 11, 10)
    plain = layer.plain_conv()
    assert type(plain) is nn.Conv2d
    torch.testing.assert_close(plain(x), layer(x))
    assert not plain.weight[~layer.alive()[:, None].expand_as(plain.weight)].any()


def test_starts_as_the_convolution():
    conv = nn.Conv2d(3, 4, 3, padding=1).eval()
    layer = SkeletonConv2d.from_conv(conv)
    x = torch.randn(1, 3, 6, 6)
    assert torch.equal(layer(x), conv(x))
    assert layer.weight is conv.weight and layer.bias is conv.bias and not layer.training
    assert torch.equal(layer.skeleton, torch.ones(4, 3, 3))
    assert set(layer.state_dict()) == {'weight', 'bias', 'skeleton'}


def test_is_registered():
    layer = MODELS.build(dict(type='mmprune_ext.SkeletonConv2d', in_channels=3, out_channels=4, kernel_size=3))
    assert isinstance(layer, SkeletonConv2d) and layer.skeleton.shape == (4, 3, 3)


@pytest.mark.parametrize('make', [lambda: SkeletonConv2d(4, 4, 3, groups=2),
                                  lambda: SkeletonConv2d.from_conv(nn.Conv2d(4, 4, 3, groups=4))])
def test_grouped(make: Any):
    with pytest.raises(ValueError, match='SkeletonConv2d takes groups=1'):
        make()


def test_sparsity_by_hand():
    layer = SkeletonConv2d(2, 3, 1)
    layer.skeleton.data = torch.tensor([0.5, -2., 0.])[:, None, None]
    layer.add_sparsity(0.1)  # nothing to add to
    assert layer.skeleton.grad is None
    layer.skeleton.grad = torch.tensor([1., 1., 1.])[:, None, None]
    layer.add_sparsity(0.1)
    torch.testing.assert_close(layer.skeleton.grad.flatten(), torch.tensor([1.1, 0.9, 0.]))


def test_what_dies_by_hand():
    """Up to the threshold, past it, or dead before."""
    layer = SkeletonConv2d(2, 7, 1, bias=False)
    before = torch.tensor([0.5, 0.5, 0.5, -0.5, -0.5, 0., 0.011])[:, None, None]
    layer.skeleton.data = torch.tensor([0.01, 0.02, -0.3, -0.4, 0.2, 0.7, 0.0101])[:, None, None]
    layer.cut(0.01, before)
    torch.testing.assert_close(layer.skeleton.flatten(), torch.tensor([0., 0.02, 0., -0.4, 0., 0., 0.0101]))


def test_copies_are_independent():
    layer = SkeletonConv2d(2, 3, 3)
    other = copy.deepcopy(layer)
    other.skeleton.data.zero_()
    assert bool(layer.alive().all()) and not other.alive().any()
    assert 'stripes=0 of 27' in repr(other)
