"""Toy nets: what drawn networks (test_drawn_networks.py) have found, made smaller."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.test_units.toy_base import F, Reason, ToyNet, Wrapped, conv

OUT = (5, Reason.OUTPUT)


class RolledByOne(Wrapped):
    """The last channel becomes the first: the number of those that do so is the code's."""

    units = {'stem.0': (7, None), 'stem.0#2': (1, Reason.VALUES), 'head': OUT}
    members = {'stem.0': 'stem.0[0:7] | stem.1[0:7] | head[1:8]'}

    def middle(self, x: Tensor) -> Tensor:
        return x.roll(1, 1)


class RolledByHalf(Wrapped):
    """Halves that swap their places are equally long."""

    units = {'stem.0': (4, None), 'head': OUT}

    def middle(self, x: Tensor) -> Tensor:
        return x.roll(x.shape[1] // 2, 1)


class OneHalf(Wrapped):
    """The half of all channels is taken, and the other one never: where it ends depends on both."""

    units = {'stem.0': (4, Reason.FIXED_SIZE), 'stem.0#2': (4, Reason.FIXED_SIZE), 'a': (6, None), 'head': OUT}
    head_inputs = 6

    def make(self) -> None:
        self.a = conv(4, 6)

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(self.a(x[:, :x.shape[1] // 2]))


class HalfOfEverySecond(Wrapped):
    """The second half of every other channel: pairs of both halves go together, others than these would shift them."""

    units = {'stem.0': (2, None), 'head': OUT}
    members = {'stem.0': 'stem.0[0:8/4]~ | stem.1[0:8/4]~ | head[0:2]'}
    head_inputs = 2

    def middle(self, x: Tensor) -> Tensor:
        return x[:, 1::2].chunk(2, 1)[1]


class ScaleOfShape(Wrapped):
    """Attention whose scale comes from the channels of its queries: it changes with their number, by little here."""

    units = {'stem.0': (8, None), 'q': (6, Reason.VALUES), 'v': (7, None), 'head': OUT}
    head_inputs = 7

    def make(self) -> None:
        self.q, self.k, self.v = conv(8, 6, 1), conv(8, 6, 1), conv(8, 7, 1)

    def middle(self, x: Tensor) -> Tensor:
        q, k, v = (layer(0.2 * x).flatten(2) for layer in (self.q, self.k, self.v))
        weights = torch.softmax(q.transpose(1, 2) @ k * q.shape[1] ** -0.5, -1)
        return (v @ weights.transpose(1, 2)).unflatten(2, x.shape[2:])


class DepthwiseOfImage(ToyNet):
    """Each channel of the image makes four: the image stays, and each group loses the same of its own."""

    units = {'a': (4, None), 'b': (6, None), 'head': OUT}
    members = {'a': 'a[0:12/3]~ | bn[0:12/3]~ | b[0:12/3]~'}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.b, self.head = conv(3, 12, groups=3), nn.BatchNorm2d(12), conv(12, 6), conv(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(F.relu(self.bn(self.a(x))))))


class NegativeZeroed(Wrapped):
    """A value is written to the places of a mask."""

    units = {'stem.0': (8, None), 'a': (6, None), 'head': OUT}
    head_inputs = 6

    def make(self) -> None:
        self.a = conv(8, 6)

    def middle(self, x: Tensor) -> Tensor:
        x = self.a(x).clone()
        x[x < 0.1] = 0
        return x


class OwnBatchNorm(Wrapped):
    """Batch normalisation as a function, of statistics and weights that no layer owns, and of none."""

    units = {'stem.0': (8, None), 'a': (6, None), 'head': OUT}
    members = {'a': 'a[0:6] | gain[0:6] mean[0:6] shift[0:6] var[0:6] | head[0:6]'}
    head_inputs = 6

    def make(self) -> None:
        self.a, self.gain, self.shift = conv(8, 6), nn.Parameter(torch.rand(6) + 0.5), nn.Parameter(torch.randn(6))
        self.register_buffer('mean', torch.randn(6))
        self.register_buffer('var', torch.rand(6) + 0.5)

    def middle(self, x: Tensor) -> Tensor:
        x = F.batch_norm(self.a(F.instance_norm(x)), self.mean, self.var, self.gain, self.shift, self.training)
        return F.relu(x)
