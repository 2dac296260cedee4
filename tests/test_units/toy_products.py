"""Toy nets: attention, products of activations, layers over positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.test_units.toy_base import F, Reason, ToyNet, Wrapped, conv, conv_bn

OUT = (5, Reason.OUTPUT)


class UnfoldMerging(Wrapped):
    """Patch merging by unfold: one channel is four consecutive inputs."""

    units = {'stem.0': (8, None), 'merge': (6, None), 'head': OUT}
    members = {'stem.0': 'stem.0[0:8] | norm[0:32/4] stem.1[0:8] | merge[0:32/4]'}
    head_inputs = 6

    def make(self) -> None:
        self.norm, self.merge = nn.LayerNorm(32), nn.Linear(32, 6, bias=False)

    def middle(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, 2, stride=2).transpose(1, 2)
        x = self.merge(self.norm(patches)).transpose(1, 2)
        return x.unflatten(2, (4, 4))


class SlicedMerging(Wrapped):
    """Patch merging by strided slices and a concatenation: one channel is every eighth input."""

    units = {'stem.0': (8, None), 'merge': (6, None), 'head': OUT}
    members = {'stem.0': 'stem.0[0:8] | stem.1[0:8] | merge[0:32/4]~'}
    head_inputs = 6

    def make(self) -> None:
        self.merge = nn.Linear(32, 6)

    def middle(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = torch.cat([x[:, i::2, j::2] for j in range(2) for i in range(2)], -1)
        return self.merge(x).permute(0, 3, 1, 2)


class LinearOverSpace(Wrapped):
    """SimCC-like: a linear layer over positions; positions are not channels."""

    units = {'stem.0': (8, None), 'over': (10, Reason.SPACE), 'fc': OUT}
    members = {'stem.0': 'stem.0[0:8] | stem.1[0:8] | fc[0:80/10]'}
    bias = False

    def make(self) -> None:
        self.over, self.fc = nn.Linear(64, 10, bias=self.bias), nn.Linear(80, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.over(self.stem(x).flatten(2))).flatten(1))

    def __init__(self) -> None:
        super().__init__()
        del self.head


class BiasOverSpace(LinearOverSpace):
    """The bias over positions speaks for a silenced channel too."""

    units = {'stem.0': (8, Reason.VALUES), 'over': (10, Reason.SPACE), 'fc': OUT}
    members = {}
    bias = True


class Einsum(Wrapped):
    """A 1x1 convolution written as einsum. Of its outputs the first two are taken by their number."""

    units = {'stem.0': (8, None), 'weight': (2, Reason.FIXED_SIZE), 'weight#2': (4, None), 'a': (4, None), 'head': OUT}
    members = {'stem.0': 'stem.0[0:8] | stem.1[0:8] weight[0:8] | '}
    head_inputs = 6

    def make(self) -> None:
        self.weight, self.a = nn.Parameter(torch.randn(6, 8)), conv(6, 4)

    def middle(self, x: Tensor) -> Tensor:
        y = torch.einsum('nchw,dc->ndhw', x, self.weight)
        return torch.cat([F.relu(self.a(y)), y[:, :2]], 1)


class SelfAttention(ToyNet):
    """Reshaped heads: queries and keys share channels; heads and sizes are numbers."""

    units = {'patch': (8, None), 'qkv': (4, Reason.FIXED_SIZE), 'head': OUT}

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.qkv = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 24)
        self.proj, self.norm, self.head = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        n, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = (q @ k.transpose(-2, -1) * 4 ** -0.5).softmax(-1) @ v
        x = x + self.proj(mixed.transpose(1, 2).reshape(n, length, 8))
        return self.head(self.norm(x).mean(1))


class NonLocal(Wrapped):
    """theta and phi are contracted with each other, g passes to the output projection."""

    units = {'stem.0': (8, None), 'theta': (4, None), 'g': (6, None), 'head': OUT}
    members = {'theta': 'phi[0:4] theta[0:4] |  | ', 'g': 'g[0:6] |  | out[0:6]',
               'stem.0': 'out[0:8] stem.0[0:8] | stem.1[0:8] | '
                         'g[0:8] head[0:8] phi[0:8] theta[0:8]'}

    def make(self) -> None:
        self.theta, self.phi, self.g = conv(8, 4, 1), conv(8, 4, 1), conv(8, 6, 1)
        self.out = conv(6, 8, 1)

    def middle(self, x: Tensor) -> Tensor:
        theta = self.theta(x).flatten(2).transpose(1, 2)
        weights = torch.softmax(theta @ self.phi(x).flatten(2), -1)
        y = (weights @ self.g(x).flatten(2).transpose(1, 2)).transpose(1, 2)
        return x + self.out(y.unflatten(2, x.shape[-2:]))


class NonLocalFixedView(NonLocal):
    """The same with the width of the view taken from a stored number."""

    units = {'stem.0': (8, None), 'theta': (4, None), 'g': (6, Reason.FIXED_SIZE), 'head': OUT}
    members = {}

    def middle(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        theta = self.theta(x).flatten(2).transpose(1, 2)
        weights = torch.softmax(theta @ self.phi(x).flatten(2), -1)
        y = (weights @ self.g(x).view(n, 6, -1).transpose(1, 2)).transpose(1, 2)
        return x + self.out(y.reshape(n, 6, *x.shape[-2:]))


class SplitAttention(Wrapped):
    """ResNeSt: radix 2, softmax over the radix, sum; sizes from the shape."""

    units = {'stem.0': (8, None), 'a.0': (6, None), 'fc1': (4, None), 'head': OUT}
    members = {'a.0': 'a.0[0:12/2]~ fc2[0:12/2]~ | a.1[0:12/2]~ | fc1[0:6] head[0:6]'}
    head_inputs = 6

    def make(self) -> None:
        self.a, self.fc1, self.fc2 = conv_bn(8, 12), conv(6, 4, 1), conv(4, 12, 1)

    def middle(self, x: Tensor) -> Tensor:
        x = self.a(x)
        n, c, h, w = x.shape
        splits = x.view(n, 2, c // 2, h, w)
        gap = F.adaptive_avg_pool2d(splits.sum(1), 1)
        weights = self.fc2(F.relu(self.fc1(gap))).view(n, 1, 2, -1).transpose(1, 2)
        weights = F.softmax(weights, dim=1).reshape(n, -1, 1, 1)
        return (weights.view(n, 2, c // 2, 1, 1) * splits).sum(1)


class SplitAttentionGrouped(SplitAttention):
    """Radix 2 with a convolution in two groups, as ResNeSt has it (groups * radix)."""

    units = {'stem.0': (4, None), 'a.0': (6, None), 'fc1': (4, None), 'head': OUT}
    members = {}

    def make(self) -> None:
        super().make()
        self.a = conv_bn(8, 12, groups=2)


class DotProductAttention(ToyNet):
    """The fused operator: its scale comes from the width of the queries, the values pass."""

    units = {'patch': (8, None), 'q': (8, Reason.ATTENTION), 'v': (8, None), 'head': OUT}
    members = {'q': 'k[0:8] q[0:8] |  | ', 'v': 'v[0:8] |  | head[0:8]'}

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 5)
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)[:, None]
        return self.head(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))


class DotProductByParts(DotProductAttention):
    """Values of another width are not fused: the parts are followed, the check finds the scale."""

    units = {'patch': (8, None), 'q': (8, Reason.VALUES), 'v': (6, None), 'head': OUT}
    members = {'q': 'k[0:8] q[0:8] |  | '}

    def __init__(self) -> None:
        super().__init__()
        self.v, self.head = nn.Linear(8, 6), nn.Linear(6, 5)
