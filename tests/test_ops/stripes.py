"""Convolutions that lose stripes, for the tests of them."""
from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from mmprune_ext.ops import StripeConv2d

FORMS = ['dense', 'stripes']
CONVS = {
    '3x3': dict(kernel_size=3, padding=1),
    'no padding': dict(kernel_size=3),
    'wide padding': dict(kernel_size=3, padding=3),
    'no bias': dict(kernel_size=3, padding=1, bias=False),
    'stride 2': dict(kernel_size=3, padding=1, stride=2),
    'stride 3': dict(kernel_size=5, padding=2, stride=3),
    'strides': dict(kernel_size=3, padding=1, stride=(1, 2)),
    'dilated': dict(kernel_size=3, padding=2, dilation=2),
    'dilated beyond the map': dict(kernel_size=3, padding=12, dilation=12),
    'dilated stride 2': dict(kernel_size=3, padding=(3, 2), dilation=(3, 2), stride=2),
    '1x1': dict(kernel_size=1),
    '1x1 stride 2': dict(kernel_size=1, stride=2),
    '5x5': dict(kernel_size=5, padding=2),
    '7x7 stride 2': dict(kernel_size=7, padding=3, stride=2),
    '1x3': dict(kernel_size=(1, 3), padding=(0, 1)),
    'even': dict(kernel_size=(2, 4), padding=(1, 2)),
    'same': dict(kernel_size=3, padding='same', dilation=2),
    'same, even': dict(kernel_size=(4, 2), padding='same'),
    'valid': dict(kernel_size=(3, 2), padding='valid'),
    'reflect': dict(kernel_size=3, padding=1, padding_mode='reflect'),
    'replicate': dict(kernel_size=5, padding=(2, 1), padding_mode='replicate', stride=2),
    'circular': dict(kernel_size=3, padding='same', padding_mode='circular', dilation=2),
}
IN, OUT = 5, 12


def make(kind: str, form: str = 'stripes', density: float = 0.4, dtype: torch.dtype = torch.float32,
         seed: int = 0) -> tuple[nn.Conv2d, Tensor, StripeConv2d]:
    """Return a convolution whose weight is masked, the mask `(C_out, kH, kW)`, and the layer that has lost stripes."""
    torch.manual_seed(seed)
    conv = nn.Conv2d(IN, OUT, **CONVS[kind]).to(dtype)
    keep = torch.rand(OUT, *conv.kernel_size) < density
    keep[3] = False
    layer = StripeConv2d.from_conv(conv, keep, form)
    return masked(conv, keep), keep, layer


def masked(conv: nn.Conv2d, keep: Tensor) -> nn.Conv2d:
    conv = copy.deepcopy(conv)
    conv.weight.data.mul_(keep[:, None])
    return conv


def images(batch: int = 2, height: int = 9, width: int = 8, dtype: torch.dtype = torch.float32,
           channels: int = IN) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(batch, channels, height, width, generator=generator, dtype=torch.float64).to(dtype)


def rows_of(weight: Tensor, keep: Tensor) -> Tensor:
    """Return the stripes of a dense weight in the order of the state dict, by plain loops."""
    filters, height, width = keep.shape
    return torch.stack([weight[j, :, a, b] for a in range(height) for b in range(width) for j in range(filters)
                        if keep[j, a, b]])
