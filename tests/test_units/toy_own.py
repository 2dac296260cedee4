"""Toy nets: layers of one's own, a function of torch on a parameter that is no layer's weight."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tests.test_units.toy_base import F, Reason, ToyNet, Wrapped, conv

OUT = (5, Reason.OUTPUT)


class ScaledConv(nn.Module):
    """Equalised learning rate: the weight is scaled before it is used."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.randn(outputs))
        self.scale, self.padding = 1 / math.sqrt(inputs * kernel ** 2), kernel // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.scale, self.bias, padding=self.padding)


class OwnConvs(ToyNet):
    """Two of them before a layer of torch; the first reads the image."""

    units = {'a.weight': (8, None), 'b.weight': (6, None), 'c': (7, None), 'head': OUT}
    members = {'a.weight': 'a.weight[0:8] | a.bias[0:8] b.weight[0:8] | ',
               'b.weight': 'b.weight[0:6] | b.bias[0:6] | c[0:6]'}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = ScaledConv(3, 8, 3), ScaledConv(8, 6, 3), conv(6, 7), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.b(F.leaky_relu(self.a(x))))
        return self.head(F.relu(self.c(x)).mean((2, 3)))


class OwnTransposed(Wrapped):
    """A transposed convolution: the weight's first dimension is what it reads."""

    units = {'stem.0': (8, None), 'weight': (6, None), 'head': OUT}
    members = {'stem.0': 'stem.0[0:8] | stem.1[0:8] weight[0:8] | ', 'weight': 'weight[0:6] | bias[0:6] | head[0:6]'}
    head_inputs = 6

    def make(self) -> None:
        self.weight, self.bias = nn.Parameter(torch.randn(8, 6, 2, 2)), nn.Parameter(torch.randn(6))

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(F.conv_transpose2d(x, self.weight * 0.1, self.bias, stride=2))


class OwnProducts(Wrapped):
    """Linear products: a weight that is transposed, and one on the right of ``@``, in a residual branch."""

    units = {'stem.0': (8, None), 'a': (6, None), 'c': (7, None), 'head': OUT}
    members = {'a': 'a[0:6] | b[0:6] | ', 'stem.0': 'b[0:8] stem.0[0:8] | a[0:8] shift[0:8] stem.1[0:8] | c[0:8]'}
    head_inputs = 7

    def make(self) -> None:
        self.a, self.b, self.shift = (nn.Parameter(torch.randn(size)) for size in ((8, 6), (6, 8), 8))
        self.c = conv(8, 7)

    def middle(self, x: Tensor) -> Tensor:
        y = F.relu(F.linear(x.movedim(1, -1), self.a.t()))
        return F.relu(self.c(x + (y @ self.b + self.shift).movedim(-1, 1)))


class OwnNormalised(Wrapped):
    """The filters are normalised, and each has a gain."""

    units = {'stem.0': (8, None), 'weight': (6, None), 'head': OUT}
    members = {'weight': 'weight[0:6] | gain[0:6] | head[0:6]'}
    head_inputs = 6

    def make(self) -> None:
        self.weight, self.gain = nn.Parameter(torch.randn(6, 8, 3, 3)), nn.Parameter(torch.rand(6, 1, 1, 1) + 0.5)

    def middle(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(self.weight.square().sum((1, 2, 3), keepdim=True) + 1e-6)
        return F.relu(F.conv2d(x, self.weight * self.gain * scale, padding=1))


class OwnCentred(Wrapped):
    """Weight standardisation: what it reads cannot be pruned."""

    units = {'stem.0': (8, Reason.STATISTICS), 'weight': (6, None), 'c': (7, None), 'head': OUT}
    head_inputs = 7

    def make(self) -> None:
        self.weight, self.c = nn.Parameter(torch.randn(6, 8, 3, 3)), conv(6, 7)

    def middle(self, x: Tensor) -> Tensor:
        centred = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.relu(self.c(F.relu(F.conv2d(x, centred, padding=1))))


class OwnShared(Wrapped):
    """One weight in two calls, of which one reads the other's outputs."""

    units = {'stem.0': (8, None), 'c': (6, None), 'head': OUT}
    members = {'stem.0': 'stem.0[0:8] weight[0:8] | stem.1[0:8] weight[0:8] | c[0:8]'}
    head_inputs = 6

    def make(self) -> None:
        self.weight, self.c = nn.Parameter(torch.randn(8, 8, 1, 1)), conv(8, 6)

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(self.c(F.conv2d(F.relu(F.conv2d(x, self.weight)), self.weight)))


class OwnUnclear(Wrapped):
    """Weights whose dimensions of channels are cut or merged, and a grouped one: refused by name."""

    units = {'stem.0': (8, Reason.LAYER), 'a': (8, Reason.LAYER), 'head': OUT}

    def make(self) -> None:
        self.merged, self.grouped = nn.Parameter(torch.randn(8, 72)), nn.Parameter(torch.randn(8, 4, 1, 1))
        self.a = conv(8, 8)

    def middle(self, x: Tensor) -> Tensor:
        x = self.a(F.relu(F.conv2d(x, self.merged.view(8, 8, 3, 3), padding=1)))
        return F.conv2d(x, self.grouped, groups=2)
