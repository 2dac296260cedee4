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
    """A weight whose dimensions of channels are merged: refused by name."""

    units = {'stem.0': (8, Reason.LAYER), 'a': (8, None), 'head': OUT}

    def make(self) -> None:
        self.merged, self.a = nn.Parameter(torch.randn(8, 72)), conv(8, 8)

    def middle(self, x: Tensor) -> Tensor:
        return self.a(F.relu(F.conv2d(x, self.merged.view(8, 8, 3, 3), padding=1)))


class OwnGroups(Wrapped):
    """A convolution of two groups, and a transposed one: position ``c`` of both groups is a channel."""

    units = {'stem.0': (4, None), 'a': (3, None), 'b': (2, None), 'head': OUT}
    members = {'a': 'a[0:6/2]~ | b[0:6/2]~ | '}
    head_inputs = 4

    def make(self) -> None:
        self.a, self.b = nn.Parameter(torch.randn(6, 4, 3, 3)), nn.Parameter(torch.randn(6, 2, 2, 2))

    def middle(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.a * 0.1, padding=1, groups=2))
        return F.relu(F.conv_transpose2d(x, self.b, stride=2, groups=2))


class OwnKernels(Wrapped):
    """Kernels of single channels: learned, of two outputs each, and a fixed one that blurs."""

    units = {'stem.0': (8, None), 'head': OUT}
    members = {'stem.0': 'stem.0[0:8] | bias[0:16/2] stem.1[0:8] weight[0:16/2] | head[0:16/2]'}
    head_inputs = 16

    def make(self) -> None:
        self.weight, self.bias = nn.Parameter(torch.randn(16, 1, 3, 3)), nn.Parameter(torch.randn(16))
        self.register_buffer('blur', torch.full((1, 1, 3, 3), 1 / 9))

    def middle(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.blur.expand(x.shape[1], -1, -1, -1), padding=1, groups=x.shape[1])
        return F.relu(F.conv2d(x, self.weight * 0.3, self.bias, padding=1, groups=x.shape[1]))


class OwnEquations(Wrapped):
    """Equations with a matrix, of all dimensions and of those that matter; a matrix on the left of ``@``."""

    units = {'stem.0': (8, None), 'a': (6, None), 'b': (7, None), 'c': (4, None), 'head': OUT}
    members = {'a': 'a[0:6] | b[0:6] | ', 'c': 'c[0:4] |  | head[0:4]'}
    head_inputs = 4

    def make(self) -> None:
        self.a, self.b, self.c = (nn.Parameter(torch.randn(size)) for size in ((6, 8), (6, 7), (4, 7)))

    def middle(self, x: Tensor) -> Tensor:
        x = F.relu(torch.einsum('oc, nchw -> nohw', self.a * 0.5, x))
        x = F.relu(torch.einsum('...c,co->...o', x.movedim(1, -1), self.b)).movedim(-1, 1)
        return F.relu(self.c @ x.flatten(2)).unflatten(2, x.shape[2:])


class OwnLowRank(Wrapped):
    """A weight with a change of low rank, as LoRA trains it, and a mask that is a buffer."""

    units = {'stem.0': (8, None), 'weight': (6, None), 'c': (7, None), 'head': OUT}
    members = {'weight': 'weight[0:6] | up[0:6] | c[0:6]',
               'c': 'c[0:7] |  | head[0:7]'}
    head_inputs = 7

    def make(self) -> None:
        self.weight, self.c = nn.Parameter(torch.randn(6, 8)), Masked(6, 7, 3, padding=1)
        self.up, self.down = nn.Parameter(torch.randn(6, 2)), nn.Parameter(torch.randn(2, 8))

    def middle(self, x: Tensor) -> Tensor:
        x = F.linear(x.movedim(1, -1), self.weight + self.up @ self.down * 0.5).movedim(-1, 1)
        return F.relu(self.c(F.relu(x)))


class Masked(nn.Conv2d):
    """A convolution with a mask and a gain of its own."""

    def __init__(self, *sizes: int, **options: int) -> None:
        super().__init__(*sizes, **options)
        self.gain = nn.Parameter(torch.ones(self.out_channels))
        self.register_buffer('mask', (torch.rand(self.weight.shape) > 0.3).float())

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.mask * self.gain.view(-1, 1, 1, 1), self.bias)


class OwnMask(Wrapped):
    """A mask that is a buffer, beside a parameter."""

    units = {'stem.0': (8, None), 'weight': (6, None), 'head': OUT}
    members = {'weight': 'weight[0:6] | mask[0:6] | head[0:6]'}
    head_inputs = 6

    def make(self) -> None:
        self.weight = nn.Parameter(torch.randn(6, 8, 3, 3))
        self.register_buffer('mask', (torch.rand(6, 8, 3, 3) > 0.3).float())

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(F.conv2d(x, self.weight * self.mask, padding=1))


class OwnTied(Wrapped):
    """One weight, there and back: its rows are channels, and so are its columns."""

    units = {'stem.0': (8, None), 'weight': (6, None), 'head': OUT}
    members = {'weight': 'weight[0:6] |  | '}

    def make(self) -> None:
        self.weight = nn.Parameter(torch.randn(6, 8))

    def middle(self, x: Tensor) -> Tensor:
        y = F.relu(F.linear(x.movedim(1, -1), self.weight))
        return F.relu(x + F.linear(y, self.weight.t()).movedim(-1, 1))


class OwnList(Wrapped):
    """Parameters in a list and in a dictionary, and those of a part that is never called."""

    units = {'stem.0': (8, None), 'weights.0': (6, None), 'part.weight': (7, None), 'head': OUT}
    members = {'weights.0': 'weights.0[0:6] | biases.first[0:6] part.weight[0:6] | '}
    head_inputs = 7

    def make(self) -> None:
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(6, 8, 3, 3))])
        self.biases = nn.ParameterDict({'first': nn.Parameter(torch.randn(6))})
        self.part = ScaledConv(6, 7, 1)

    def middle(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.weights[0], self.biases['first'], padding=1))
        return torch.tanh(F.conv2d(x, self.part.weight, self.part.bias))
