"""Toy nets: chains, sums, concatenations, every kind of convolution, flattening and pooling."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.test_units.toy_base import F, Reason, ToyNet, Wrapped, conv, conv_bn

OUT = (5, Reason.OUTPUT)


class Chain(ToyNet):
    units = {'conv1': (8, None), 'conv2': (12, None), 'head': OUT}
    members = {'conv1': 'conv1[0:8] | bn1[0:8] | conv2[0:8]',
               'conv2': 'conv2[0:12] | bn2[0:12] | head[0:12]',
               'head': 'head[0:5] |  | '}

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, 8, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = conv(8, 12, bias=False), nn.BatchNorm2d(12)
        self.head = conv(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.head(F.relu(self.bn2(self.conv2(x))))


class BiasWithoutNorm(Wrapped):
    units = {'stem.0': (8, None), 'mid': (6, None), 'head': OUT}
    members = {'mid': 'mid[0:6] |  | head[0:6]'}
    head_inputs = 6

    def make(self) -> None:
        self.mid = conv(8, 6)

    def middle(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.mid(x), 0.1)


class Residual(Wrapped):
    units = {'stem.0': (8, None), 'a.0': (6, None), 'head': OUT}
    members = {'stem.0': 'b.0[0:8] stem.0[0:8] | b.1[0:8] stem.1[0:8] | a.0[0:8] head[0:8]'}

    def make(self) -> None:
        self.a, self.b = conv_bn(8, 6), conv_bn(6, 8)

    def middle(self, x: Tensor) -> Tensor:
        return x + self.b(self.a(x))


class ProjectedBlocks(Wrapped):
    units = {'stem.0': (8, None), 'a1.0': (6, None), 'proj.0': (10, None), 'a2.0': (6, None),
             'a3.0': (6, None), 'head': OUT}
    members = {'proj.0': 'b2.0[0:10] b3.0[0:10] proj.0[0:10] | b2.1[0:10] b3.1[0:10] '
                         'proj.1[0:10] | a3.0[0:10] head[0:10]'}
    head_inputs = 10

    def make(self) -> None:
        self.a1, self.b1 = conv_bn(8, 6), conv_bn(6, 8)
        self.proj = conv_bn(8, 10, 1, stride=2)
        self.a2, self.b2 = conv_bn(8, 6, stride=2), conv_bn(6, 10)
        self.a3, self.b3 = conv_bn(10, 6), conv_bn(6, 10)

    def middle(self, x: Tensor) -> Tensor:
        x = x + self.b1(self.a1(x))
        x = self.proj(x) + self.b2(self.a2(x))
        return x + self.b3(self.a3(x))


class DenseConcat(Wrapped):
    """DenseNet: each normalisation runs over everything so far, so it belongs to several units."""

    units = {'stem.0': (8, None), 'conv1': (4, None), 'conv2': (4, None), 'head': OUT}
    members = {'stem.0': 'stem.0[0:8] | bn1[0:8] bn2[0:8] bn3[0:8] stem.1[0:8] | '
                         'conv1[0:8] conv2[0:8] head[0:8]',
               'conv1': 'conv1[0:4] | bn2[8:12] bn3[8:12] | conv2[8:12] head[8:12]',
               'conv2': 'conv2[0:4] | bn3[12:16] | head[12:16]'}
    head_inputs = 16

    def make(self) -> None:
        self.bn1, self.conv1 = nn.BatchNorm2d(8), conv(8, 4)
        self.bn2, self.conv2 = nn.BatchNorm2d(12), conv(12, 4)
        self.bn3 = nn.BatchNorm2d(16)

    def middle(self, x: Tensor) -> Tensor:
        first = self.conv1(F.relu(self.bn1(x)))
        both = torch.cat([x, first], 1)
        second = self.conv2(F.relu(self.bn2(both)))
        return F.relu(self.bn3(torch.cat([both, second], 1)))


class NestedConcat(Wrapped):
    """One part appears twice in a concatenation of concatenations, in swapped order."""

    units = {'stem.0': (8, None), 'a.0': (4, None), 'head': OUT}
    members = {'stem.0': 'stem.0[0:8] | stem.1[0:8] | a.0[0:8] head[4:24/2]~',
               'a.0': 'a.0[0:4] | a.1[0:4] | head[0:16/2]~'}
    head_inputs = 24

    def make(self) -> None:
        self.a = conv_bn(8, 4)

    def middle(self, x: Tensor) -> Tensor:
        a = self.a(x)
        return torch.cat([torch.cat([a, x], 1), torch.cat([a, x], 1)], 1)


class GroupedConv(Wrapped):
    """The same channel of every group goes, so that the groups stay equal."""

    units = {'stem.0': (2, None), 'mid.0': (3, None), 'head': OUT}
    members = {'stem.0': 'stem.0[0:8/4]~ | stem.1[0:8/4]~ | mid.0[0:8/4]~',
               'mid.0': 'mid.0[0:12/4]~ | mid.1[0:12/4]~ | head[0:12/4]~'}
    head_inputs = 12

    def make(self) -> None:
        self.mid = conv_bn(8, 12, groups=4)

    def middle(self, x: Tensor) -> Tensor:
        return self.mid(x)


class GroupedChain(Wrapped):
    """Two grouped convolutions with different numbers of groups tie each other's rows."""

    units = {'stem.0': (4, None), 'a.0': (2, None), 'b.0': (2, None), 'head': OUT}

    def make(self) -> None:
        self.a, self.b = conv_bn(8, 8, groups=2), conv_bn(8, 8, groups=4)

    def middle(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


class Depthwise(Wrapped):
    units = {'stem.0': (8, None), 'pw': (6, None), 'head': OUT}
    members = {'stem.0': 'stem.0[0:8] | dw.0[0:8] dw.1[0:8] stem.1[0:8] | pw[0:8]'}
    head_inputs = 6

    def make(self) -> None:
        self.dw, self.pw = conv_bn(8, 8, groups=8), conv(8, 6, 1)

    def middle(self, x: Tensor) -> Tensor:
        return self.pw(self.dw(x))


class DepthwiseMultiplier(Wrapped):
    units = {'stem.0': (8, None), 'head': OUT}
    members = {'stem.0': 'stem.0[0:8] | dw.0[0:24/3] dw.1[0:24/3] stem.1[0:8] | head[0:24/3]'}
    head_inputs = 24

    def make(self) -> None:
        self.dw = conv_bn(8, 24, groups=8)

    def middle(self, x: Tensor) -> Tensor:
        return self.dw(x)


class DepthwiseOnImage(Wrapped):
    """A depthwise convolution of the image: its channels are bound to the image's."""

    units = {'dw': (1, Reason.SINGLE), 'stem.0': (8, None), 'head': OUT}

    def make(self) -> None:
        self.dw = conv(3, 3, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(self.dw(x)))


class Transposed(Wrapped):
    units = {'stem.0': (8, None), 'up': (6, None), 'head': OUT}
    members = {'up': 'up[0:6] | bn[0:6] | head[0:6]'}
    head_inputs = 6

    def make(self) -> None:
        self.up, self.bn = nn.ConvTranspose2d(8, 6, 2, 2), nn.BatchNorm2d(6)

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.up(x)))


class TransposedGrouped(Wrapped):
    units = {'stem.0': (4, None), 'up': (3, None), 'head': OUT}
    members = {'up': 'up[0:6/2]~ |  | head[0:6/2]~'}
    head_inputs = 6

    def make(self) -> None:
        self.up = nn.ConvTranspose2d(8, 6, 2, 2, groups=2)

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(self.up(x))


class TransposedDepthwise(Wrapped):
    units = {'stem.0': (8, None), 'head': OUT}
    members = {'stem.0': 'stem.0[0:8] | stem.1[0:8] up[0:8] wide[0:16/2] | head[0:16/2]'}
    head_inputs = 16

    def make(self) -> None:
        self.up = nn.ConvTranspose2d(8, 8, 2, 2, groups=8)
        self.wide = nn.ConvTranspose2d(8, 16, 2, 2, groups=8)

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(self.wide(F.relu(self.up(x))))


class FlattenLinear(ToyNet):
    """One channel is 49 inputs of the linear layer."""

    shape = (3, 7, 7)
    units = {'conv1': (4, None), 'fc': (6, None), 'head': OUT}
    members = {'conv1': 'conv1[0:4] |  | fc[0:196/49]', 'fc': 'fc[0:6] |  | head[0:6]'}

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.fc, self.head = conv(3, 4), nn.Linear(196, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(F.relu(self.conv1(x)), 1)
        return self.head(F.relu(self.fc(x)))


class ChannelsLastFlatten(ToyNet):
    """Flattened after a permutation, one channel is every fourth input."""

    shape = (3, 4, 4)
    units = {'conv1': (4, None), 'head': OUT}
    members = {'conv1': 'conv1[0:4] |  | head[0:64/16]~'}

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.head = conv(3, 4), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x)).permute(0, 2, 3, 1)
        return self.head(x.reshape(x.shape[0], -1))


class GlobalPool(ToyNet):
    units = {'body.0': (8, None), 'head': OUT}
    members = {'body.0': 'body.0[0:8] | body.1[0:8] | head[0:8]'}

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = conv_bn(3, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.body(x), 1)
        return self.head(x.view(x.size(0), -1))


class PoolKinds(Wrapped):
    """Every way of making a plane smaller or larger, summed: one unit."""

    units = {'stem.0': (8, None), 'head': OUT}

    def middle(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        ways = [F.avg_pool2d(x, 2), F.max_pool2d(x, 2), F.adaptive_max_pool2d(x, 4),
                F.interpolate(x, scale_factor=0.5), x.mean((2, 3), True),
                x.amax((2, 3), True)]
        return sum(F.interpolate(w, size, mode='bilinear', align_corners=False) for w in ways)


class Conv1dNet(ToyNet):
    shape = (3, 16)
    units = {'a': (8, None), 'up': (6, None), 'head': OUT}
    members = {'a': 'a[0:8] | bn[0:8] | up[0:8]'}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn = nn.Conv1d(3, 8, 3, padding=1), nn.BatchNorm1d(8)
        self.up, self.head = nn.ConvTranspose1d(8, 6, 2, 2), nn.Conv1d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.max_pool1d(self.up(F.relu(self.bn(self.a(x)))), 2))


class Conv3dNet(ToyNet):
    shape = (3, 4, 4, 4)
    units = {'a': (8, None), 'b': (6, None), 'head': OUT}
    members = {'a': 'a[0:8] | bn[0:8] dw[0:8] | b[0:8]'}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn = nn.Conv3d(3, 8, 3, padding=1), nn.BatchNorm3d(8)
        self.dw, self.b = nn.Conv3d(8, 8, 3, padding=1, groups=8), nn.Conv3d(8, 6, 1)
        self.head = nn.Linear(6 * 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool3d(self.dw(F.relu(self.bn(self.a(x)))), 2)
        return self.head(F.relu(self.b(x)).flatten(1))
