"""Toy nets: channels that are padded, split, moved, gated, or shared by several calls."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmprune_ext.ops import ZeroPadShortcut
from tests.test_units.toy_base import F, Reason, ToyNet, Wrapped, conv, conv_bn

OUT = (5, Reason.OUTPUT)


class PaddedShortcut(Wrapped):
    """Option A written as a plain pad: the pad sizes are numbers, so the outer channels stay."""

    units = {'stem.0': (8, None), 'a.0': (6, None), 'b.0': (4, Reason.FIXED_SIZE), 'head': OUT}
    members = {'stem.0': 'b.0[2:10] stem.0[0:8] | b.1[2:10] stem.1[0:8] | a.0[0:8] head[2:10]',
               'b.0': 'b.0[0:12]~ | b.1[0:12]~ | head[0:12]~'}
    head_inputs = 12

    def make(self) -> None:
        self.a, self.b = conv_bn(8, 6, stride=2), conv_bn(6, 12)

    def middle(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Shuffle channels, as ShuffleNet does."""
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class ChannelShuffle(Wrapped):
    """Position c of both rows is one channel; after the shuffle they are neighbours."""

    units = {'stem.0': (4, None), 'head': OUT}
    members = {'stem.0': 'stem.0[0:8/2]~ | dw.0[0:8/2] dw.1[0:8/2] stem.1[0:8/2]~ | head[0:8/2]'}

    def make(self) -> None:
        self.dw = conv_bn(8, 8, groups=8)

    def middle(self, x: Tensor) -> Tensor:
        return self.dw(shuffle(x, 2))


class NativeShuffle(Wrapped):
    units = {'stem.0': (4, None), 'head': OUT}

    def make(self) -> None:
        self.shuffle = nn.ChannelShuffle(2)

    def middle(self, x: Tensor) -> Tensor:
        return self.shuffle(x)


class ChunkHalves(Wrapped):
    units = {'stem.0': (4, None), 'a.0': (4, None), 'head': OUT}
    members = {'stem.0': 'stem.0[0:8/2]~ | stem.1[0:8/2]~ | a.0[0:4] head[0:4]'}

    def make(self) -> None:
        self.a = conv_bn(4, 4)

    def middle(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        return torch.cat([left, self.a(right)], 1)


class ShapeSlices(Wrapped):
    """The cut comes from the shape, so it moves with it."""

    units = {'stem.0': (4, None), 'a.0': (4, None), 'head': OUT}
    members = {'stem.0': 'stem.0[0:8/2]~ | stem.1[0:8/2]~ | a.0[0:4] head[0:4]'}

    def make(self) -> None:
        self.a = conv_bn(4, 4)

    def middle(self, x: Tensor) -> Tensor:
        c = x.shape[1] // 2
        return torch.cat([x[:, :c], self.a(x[:, c:])], 1)


class ConstantSlices(Wrapped):
    """The cut is a number: the first 2 channels must stay where they are."""

    units = {'stem.0': (2, Reason.FIXED_SIZE), 'stem.0#2': (6, None), 'a.0': (4, None),
             'head': OUT}
    members = {'stem.0#2': 'stem.0[2:8] | stem.1[2:8] | a.0[0:6]'}
    head_inputs = 6

    def make(self) -> None:
        self.a = conv_bn(6, 4)

    def middle(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :2], self.a(x[:, 2:])], 1)


class ConstantSplit(Wrapped):
    """``split(x, 4)`` cuts at a number."""

    units = {'stem.0': (4, Reason.FIXED_SIZE), 'head': OUT}
    head_inputs = 4

    def middle(self, x: Tensor) -> Tensor:
        left, right = torch.split(x, 4, dim=1)
        return left * torch.tanh(right)


class SqueezeExciteConv(Wrapped):
    units = {'stem.0': (8, None), 'down': (4, None), 'head': OUT}
    members = {'stem.0': 'stem.0[0:8] up[0:8] | stem.1[0:8] | down[0:8] head[0:8]'}

    def make(self) -> None:
        self.down, self.up = conv(8, 4, 1), conv(4, 8, 1)

    def middle(self, x: Tensor) -> Tensor:
        gate = self.up(F.relu(self.down(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


class SqueezeExciteLinear(Wrapped):
    units = {'stem.0': (8, None), 'down': (4, None), 'head': OUT}
    members = {'stem.0': 'stem.0[0:8] up[0:8] | stem.1[0:8] | down[0:8] head[0:8]'}

    def make(self) -> None:
        self.down, self.up = nn.Linear(8, 4), nn.Linear(4, 8)

    def middle(self, x: Tensor) -> Tensor:
        gate = self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1).flatten(1))))
        return x * torch.sigmoid(gate)[:, :, None, None].expand_as(x)


class MaskGate(Wrapped):
    """A mask has the channels that it was made from."""

    units = {'stem.0': (8, None), 'head': OUT}
    members = {'stem.0': 'a[0:8] stem.0[0:8] | stem.1[0:8] | a[0:8] head[0:8]'}

    def make(self) -> None:
        self.a = conv(8, 8)

    def middle(self, x: Tensor) -> Tensor:
        return self.a(x) * (x > 0.5)


class LayerScale(Wrapped):
    units = {'stem.0': (8, None), 'a': (6, None), 'head': OUT}
    members = {'stem.0': 'b[0:8] stem.0[0:8] | gamma[0:8] stem.1[0:8] | a[0:8] head[0:8]'}

    def make(self) -> None:
        self.a, self.b = conv(8, 6, 1), conv(6, 8, 1)
        self.gamma = nn.Parameter(torch.ones(8))

    def middle(self, x: Tensor) -> Tensor:
        return x + self.gamma.view(1, -1, 1, 1) * self.b(F.gelu(self.a(x)))


class TokensWithEmbedding(ToyNet):
    """Class token and position embedding are followers, their other dimensions are not."""

    shape = (3, 8, 8)
    units = {'patch': (8, None), 'fc1': (12, None), 'head': OUT}
    members = {'patch': 'fc2[0:8] patch[0:8] | norm[0:8] position[0:8] token[0:8] | '
                        'fc1[0:8] head[0:8]'}

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.position = nn.Parameter(torch.randn(1, 5, 8))
        self.fc1, self.fc2, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        x = x + self.fc2(F.gelu(self.fc1(x)))
        return self.head(self.norm(x)[:, 0])


class SharedOverPyramid(Wrapped):
    """One head for two levels: both levels must keep the same channels."""

    units = {'stem.0': (8, None), 'p1': (6, None), 'tower': (6, None), 'head': OUT}
    members = {'p1': 'p1[0:6] p2[0:6] |  | tower[0:6]', 'tower': 'tower[0:6] |  | head[0:6]'}
    head_inputs = 6

    def make(self) -> None:
        self.p1, self.p2, self.tower = conv(8, 6), conv(8, 6, stride=2), conv(6, 6)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        return [self.head(F.relu(self.tower(F.relu(p(x))))) for p in (self.p1, self.p2)]


class CalledTwice(Wrapped):
    """A layer behind itself reads its own output: input and output channels are one unit."""

    units = {'stem.0': (8, None), 'head': OUT}
    members = {'stem.0': 'stem.0[0:8] twice[0:8] | stem.1[0:8] | head[0:8] twice[0:8]'}

    def make(self) -> None:
        self.twice = conv(8, 8)

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(self.twice(F.relu(self.twice(x))))


class CalledOnOtherInputs(Wrapped):
    """The second call reads the image padded to 8 channels, which cannot shrink along."""

    units = {'stem.0': (8, Reason.LAYER), 'a': (6, None), 'head': OUT}
    head_inputs = 6

    def make(self) -> None:
        self.a = conv(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        image = torch.cat([x, x, x[:, :2]], 1)
        return self.head(F.relu(self.a(self.stem(x))) + F.relu(self.a(image)))


class WeightOfTwo(Wrapped):
    """Two layers own one weight: slimming one would part them."""

    units = {'stem.0': (8, Reason.LAYER), 'a': (8, Reason.LAYER), 'head': OUT}

    def make(self) -> None:
        self.a, self.b = conv(8, 8), conv(8, 8)
        self.b.weight = self.a.weight

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(self.a(x)) + torch.tanh(self.b(x))


class SpatialAttention(Wrapped):
    """A map from the mean and the maximum over channels (CBAM)."""

    units = {'stem.0': (8, Reason.STATISTICS), 'map': (1, Reason.OUTER), 'head': OUT}

    def make(self) -> None:
        self.map = conv(2, 1, 7)

    def middle(self, x: Tensor) -> Tensor:
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.map(pooled))


class LearnedMap(Wrapped):
    """A one-channel map made by a convolution scales all channels and is tied to none."""

    units = {'stem.0': (8, None), 'map': (1, Reason.OUTER), 'head': OUT}
    members = {'stem.0': 'stem.0[0:8] | stem.1[0:8] | head[0:8] map[0:8]'}

    def make(self) -> None:
        self.map = conv(8, 1)

    def middle(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.map(x))


class PyramidPooling(Wrapped):
    units = {'stem.0': (8, None), 'a.0': (4, None), 'head': OUT}
    members = {'stem.0': 'stem.0[0:8] | stem.1[0:8] | a.0[0:8] head[4:28/3]~'}
    head_inputs = 28

    def make(self) -> None:
        self.a = conv_bn(8, 4, 1)

    def middle(self, x: Tensor) -> Tensor:
        pooled = F.interpolate(self.a(F.adaptive_avg_pool2d(x, 2)), size=x.shape[-2:],
                               mode='bilinear', align_corners=False)
        return torch.cat([pooled, x, F.max_pool2d(x, 3, 1, 1), F.max_pool2d(x, 5, 1, 2)], 1)


class PixelShuffle(Wrapped):
    units = {'stem.0': (8, None), 'a': (3, None), 'head': OUT}
    members = {'a': 'a[0:12/4] |  | head[0:3]'}
    head_inputs = 3

    def make(self) -> None:
        self.a = conv(8, 12)

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(F.pixel_shuffle(self.a(x), 2))


class PixelUnshuffle(Wrapped):
    units = {'stem.0': (8, None), 'head': OUT}
    members = {'stem.0': 'stem.0[0:8] | stem.1[0:8] | head[0:32/4]'}
    head_inputs = 32

    def middle(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x, 2)


class OptionA(Wrapped):
    """The zero-pad shortcut as a layer: both of its sides shrink, independently."""

    units = {'stem.0': (8, None), 'a.0': (6, None), 'b.0': (12, None), 'head': OUT}
    members = {'stem.0': 'stem.0[0:8] | stem.1[0:8] | a.0[0:8] shortcut[0:8]',
               'b.0': 'b.0[0:12] shortcut[0:12] | b.1[0:12] | head[0:12]'}
    head_inputs = 12

    def make(self) -> None:
        self.a, self.b = conv_bn(8, 6, stride=2), conv_bn(6, 12)
        self.shortcut = ZeroPadShortcut(8, 12, stride=2)

    def middle(self, x: Tensor) -> Tensor:
        # The shortcut runs first: the unit is still named after a layer with weights.
        return self.shortcut(x) + self.b(self.a(x))


class SeveralScales(Wrapped):
    """Single numbers out of a parameter: what is left has no dimension."""

    units = {'stem.0': (8, None), 'head': OUT}

    def make(self) -> None:
        self.scales = nn.Parameter(torch.ones(2))

    def middle(self, x: Tensor) -> Tensor:
        return x * self.scales[0].exp() + x.flip(2) * self.scales[1] / self.scales[0]


class SliceFromNone(Wrapped):
    """Slices as compiled code writes them: without a start, without an end."""

    units = {'stem.0': (4, None), 'head': OUT}
    head_inputs = 4

    def middle(self, x: Tensor) -> Tensor:
        slice_, half = torch.ops.aten.slice.Tensor, x.shape[1] // 2
        return slice_(x, 1, None, half) * slice_(x, 1, half, None).sigmoid()


class CornerPooling(Wrapped):
    """The maximum so far, along the rows."""

    units = {'stem.0': (8, None), 'head': OUT}

    def middle(self, x: Tensor) -> Tensor:
        return x.flip(2).cummax(2)[0].flip(2) + x.cummin(3)[0]


class NormWithoutLabels(Wrapped):
    """A layer that reads nothing prunable has run all the same (queries of a decoder)."""

    units = {'stem.0': (8, None), 'head': OUT}

    def make(self) -> None:
        self.norm = nn.LayerNorm(8)

    def middle(self, x: Tensor) -> Tensor:
        return x * self.norm(torch.zeros(1, 8)).mean()
