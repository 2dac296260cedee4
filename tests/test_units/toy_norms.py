"""Toy nets: normalisation of activations and of weights."""

from __future__ import annotations

from mmcv.cnn.bricks import ConvAWS2d, ConvWS2d
from mmpretrain.models.backbones.hornet import HorNetLayerNorm
from torch import Tensor, nn

from tests.test_units.toy_base import F, Reason, ToyNet, Wrapped, conv

OUT = (5, Reason.OUTPUT)


class SyncBN(Wrapped):
    units = {'stem.0': (8, None), 'head': OUT}
    members = {'stem.0': 'stem.0[0:8] | norm[0:8] stem.1[0:8] | head[0:8]'}

    def make(self) -> None:
        self.norm = nn.SyncBatchNorm(8)

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(x))


class PlainBN(Wrapped):
    """Batch normalisation without weights, without statistics, and instance normalisation."""

    units = {'stem.0': (8, None), 'a': (6, None), 'head': OUT}
    members = {'a': 'a[0:6] | instance[0:6] no_affine[0:6] no_stats[0:6] | head[0:6]'}
    head_inputs = 6

    def make(self) -> None:
        self.a = conv(8, 6)
        self.no_affine = nn.BatchNorm2d(6, affine=False)
        self.no_stats = nn.BatchNorm2d(6, track_running_stats=False)
        self.instance = nn.InstanceNorm2d(6, affine=True)

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(self.instance(self.no_stats(self.no_affine(self.a(x)))))


class GroupNorm(Wrapped):
    """Groups of 4: the same channel of both groups goes."""

    units = {'a': (4, None), 'stem.0': (8, None), 'head': OUT}
    members = {'a': 'a[0:8/2]~ | norm[0:8/2]~ | head[0:8/2]~'}

    def make(self) -> None:
        self.a, self.norm = conv(8, 8), nn.GroupNorm(2, 8)

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.a(x)))


class GroupNormEnds(Wrapped):
    """One group for all channels, and one group for each."""

    units = {'stem.0': (8, None), 'a': (6, None), 'head': OUT}
    members = {'stem.0': 'stem.0[0:8] | one[0:8] stem.1[0:8] | a[0:8]',
               'a': 'a[0:6] | each[0:6] | head[0:6]'}
    head_inputs = 6

    def make(self) -> None:
        self.one, self.a, self.each = nn.GroupNorm(1, 8), conv(8, 6), nn.GroupNorm(6, 6)

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(self.each(self.a(F.relu(self.one(x)))))


class LayerNormTokens(ToyNet):
    units = {'patch': (8, None), 'fc': (12, None), 'head': OUT}
    members = {'patch': 'patch[0:8] | norm[0:8] | fc[0:8]'}

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm = nn.Conv2d(3, 8, 2, 2), nn.LayerNorm(8)
        self.fc, self.head = nn.Linear(8, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        return self.head(F.gelu(self.fc(self.norm(x))).mean(1))


class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation over dimension 1, as mmpretrain and mmcv models have it."""

    def __init__(self, num_channels: int) -> None:
        super().__init__(num_channels)
        self.num_channels = num_channels

    def forward(self, x: Tensor, data_format: str = 'channel_first') -> Tensor:
        if data_format == 'channel_last':
            return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2).contiguous()


class LayerNormOverPlane(Wrapped):
    """Channels, height and width are all 8: only the right dimension may be the channels."""

    units = {'stem.0': (8, None), 'a': (8, None), 'head': OUT}
    members = {'a': 'a[0:8] | norm[0:8] | head[0:8]'}

    def make(self) -> None:
        self.a, self.norm = conv(8, 8), LayerNorm2d(8)

    def middle(self, x: Tensor) -> Tensor:
        return self.norm(self.a(x))


class LayerNormLastFormat(Wrapped):
    """ConvNeXt: the same layer, called with channels last; height and width are 8 too."""

    units = {'stem.0': (8, None), 'a': (8, None), 'head': OUT}
    members = {'a': 'a[0:8] | norm[0:8] | head[0:8]'}

    def make(self) -> None:
        self.a, self.norm = conv(8, 8), LayerNorm2d(8)

    def middle(self, x: Tensor) -> Tensor:
        x = self.norm(self.a(x).permute(0, 2, 3, 1), data_format='channel_last')
        return x.permute(0, 3, 1, 2)


class LayerNormOverWidth(Wrapped):
    """A plain LayerNorm over the last dimension (width), as large as the channels are many."""

    units = {'stem.0': (8, None), 'a': (8, Reason.SPACE), 'head': OUT}

    def make(self) -> None:
        self.a, self.norm = conv(8, 8), nn.LayerNorm(8)

    def middle(self, x: Tensor) -> Tensor:
        return self.norm(self.a(x))


class LayerNormOverAll(Wrapped):
    units = {'stem.0': (8, None), 'a': (8, Reason.STATISTICS), 'head': OUT}

    def make(self) -> None:
        self.a, self.norm = conv(8, 8), nn.LayerNorm((8, 8, 8))

    def middle(self, x: Tensor) -> Tensor:
        return self.norm(self.a(x))


class LayerNormOfAVector(Wrapped):
    """The context block of GCNet: normalised over the channels of a map of one place."""

    units = {'stem.0': (8, None), 'squeeze': (6, None), 'head': OUT}
    members = {'squeeze': 'squeeze[0:6] | norm[0:6] | excite[0:6]'}

    def make(self) -> None:
        self.squeeze, self.norm, self.excite = nn.Conv2d(8, 6, 1), nn.LayerNorm([6, 1, 1]), nn.Conv2d(6, 8, 1)

    def middle(self, x: Tensor) -> Tensor:
        return x + self.excite(F.relu(self.norm(self.squeeze(x.mean((2, 3), keepdim=True)))))


class HorNetNorms(Wrapped):
    """Channels first, in a formula of its own; then last. Height and width are as many as the channels."""

    units = {'stem.0': (8, None), 'a': (8, None), 'b': (8, None), 'head': OUT}
    members = {'a': 'a[0:8] | first[0:8] | b[0:8]', 'b': 'b[0:8] | last[0:8] | head[0:8]'}

    def make(self) -> None:
        self.a, self.first = conv(8, 8), HorNetLayerNorm(8, data_format='channels_first')
        self.b, self.last = conv(8, 8), HorNetLayerNorm(8)

    def middle(self, x: Tensor) -> Tensor:
        x = self.b(F.relu(self.first(self.a(x))))
        return self.last(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class StandardisedConvs(Wrapped):
    """mmcv's weight standardisation: what such a convolution reads stays whole, what it makes need not."""

    units = {'stem.0': (8, Reason.WEIGHT), 'a': (6, Reason.WEIGHT), 'b': (6, None), 'head': OUT}
    members = {'b': 'b[0:6] | norm[0:6] | head[0:6]'}
    head_inputs = 6

    def make(self) -> None:
        self.a, self.b = ConvWS2d(8, 6, 3, padding=1), ConvAWS2d(6, 6, 3, padding=1)
        self.norm = nn.GroupNorm(6, 6)

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.b(F.relu(self.a(x)))))


class PReLUs(Wrapped):
    """One slope per channel is a follower, one slope for all is an activation."""

    units = {'stem.0': (8, None), 'a': (6, None), 'head': OUT}
    members = {'a': 'a[0:6] | each[0:6] | head[0:6]'}
    head_inputs = 6

    def make(self) -> None:
        self.a, self.each, self.one = conv(8, 6), nn.PReLU(6), nn.PReLU()

    def middle(self, x: Tensor) -> Tensor:
        return self.one(self.each(self.a(x)))


class WeightNormed(Wrapped):
    """The weight is computed from two others, a gain and a direction."""

    units = {'stem.0': (8, None), 'a': (6, None), 'head': OUT}
    head_inputs = 6

    def make(self) -> None:
        self.a = nn.utils.parametrizations.weight_norm(conv(8, 6))

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(self.a(x))


class StandardisedConv(nn.Conv2d):
    """Weight standardisation: statistics over the input channels of the weight."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.flatten(1)
        weight = (flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + 1e-5)
        return F.conv2d(x, weight.view_as(self.weight), self.bias, padding=self.padding)


class WeightStandardised(Wrapped):
    """What enters the layer cannot be pruned, what leaves it can."""

    units = {'stem.0': (8, Reason.VALUES), 'a': (6, None), 'head': OUT}
    head_inputs = 6

    def make(self) -> None:
        self.a = StandardisedConv(8, 6, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(self.a(x))
