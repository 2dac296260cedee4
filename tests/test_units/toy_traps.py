"""Toy nets: rarer ways in which channels meet, each of which once misled some tracer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.test_units.toy_base import F, Reason, ToyNet, Wrapped, conv, conv_bn

OUT = (5, Reason.OUTPUT)


class FlippedBatch(Wrapped):
    """A layer sees the channels in order for some samples and reversed for others."""

    units = {'stem.0': (4, None), 'head': OUT}

    def middle(self, x: Tensor) -> Tensor:
        return torch.cat([x, x.flip(1)], 0)


class RolledSum(Wrapped):
    """Each channel is added to its neighbour: all are tied into one, with the one that goes around the end."""

    units = {'stem.0': (1, Reason.VALUES), 'head': OUT}

    def middle(self, x: Tensor) -> Tensor:
        return x + x.roll(1, 1)


class FixedOrder(Wrapped):
    """An index list holds the numbers of the channels."""

    units = {'stem.0': (8, Reason.FIXED_SIZE), 'head': OUT}

    def middle(self, x: Tensor) -> Tensor:
        return x[:, [1, 0, 3, 2, 5, 4, 7, 6]]


class EvenAndOdd(Wrapped):
    """Which channels are even changes with every removed one, and not with a pair."""

    units = {'stem.0': (4, None), 'head': OUT}
    members = {'stem.0': 'stem.0[0:8/2] | stem.1[0:8/2] | head[0:8/2]~'}

    def middle(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, ::2], x[:, 1::2]], 1)


class BilinearPooling(Wrapped):
    """Every channel times every other."""

    units = {'stem.0': (8, Reason.OUTER), 'fc': OUT}

    def __init__(self) -> None:
        super().__init__()
        del self.head
        self.fc = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2)
        return self.fc((x @ x.transpose(1, 2)).flatten(1))


class Similarity(ToyNet):
    """Two embeddings are compared: their channels are tied, the result has none."""

    units = {'a': (8, None), 'fc': OUT}
    members = {'a': 'a[0:8] b[0:8] |  | '}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = conv(3, 8), conv(3, 8), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.cosine_similarity(self.a(x), self.b(x), dim=1).flatten(1))


class WeightUsedTwice(Wrapped):
    """TridentNet: the weight of a layer is also used by a function, with another dilation."""

    units = {'stem.0': (8, None), 'a': (6, None), 'b': (4, None), 'head': OUT}
    head_inputs = 4

    def make(self) -> None:
        self.a, self.b = conv(8, 6), conv(6, 4)

    def middle(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) + self.b(F.conv2d(x, self.a.weight, padding=2, dilation=2))


class BufferScale(Wrapped):
    """A buffer of one value per channel is cut along; a list of parameters too."""

    units = {'stem.0': (8, None), 'head': OUT}
    members = {'stem.0': 'stem.0[0:8] | gains.0[0:8] scale[0:8] stem.1[0:8] | head[0:8]'}

    def make(self) -> None:
        self.register_buffer('scale', torch.rand(1, 8, 1, 1) + 0.5)
        self.gains = nn.ParameterList([nn.Parameter(torch.rand(8, 1, 1))])

    def middle(self, x: Tensor) -> Tensor:
        return x * self.scale * self.gains[0]


class FrozenBatchNorm(nn.Module):
    """Batch normalisation whose statistics and weights are plain buffers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer('scale', torch.rand(width) + 0.5)
        self.register_buffer('shift', torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.reshape(1, -1, 1, 1) + self.shift.reshape(1, -1, 1, 1)


class FrozenNorm(Wrapped):
    units = {'stem.0': (8, None), 'a': (6, None), 'head': OUT}
    members = {'a': 'a[0:6] | norm.scale[0:6] norm.shift[0:6] | head[0:6]'}
    head_inputs = 6

    def make(self) -> None:
        self.a, self.norm = conv(8, 6, bias=False), FrozenBatchNorm(6)

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.a(x)))


class Maxout(Wrapped):
    """The maximum of two layers, once stacked and once element by element."""

    units = {'stem.0': (8, None), 'a': (6, None), 'head': OUT}
    members = {'a': 'a[0:6] b[0:6] c[0:6] d[0:6] |  | head[0:6]'}
    head_inputs = 6

    def make(self) -> None:
        self.a, self.b, self.c, self.d = (conv(8, 6) for _ in range(4))

    def middle(self, x: Tensor) -> Tensor:
        first = torch.stack([self.a(x), self.b(x)], 1).amax(1)
        second = torch.where(first > 0, torch.maximum(self.c(x), first), self.d(x))
        return first + second


class NeighbourMaxout(Wrapped):
    """Pairs of neighbours: their maximum runs over what is taken for a row."""

    units = {'stem.0': (2, Reason.STATISTICS), 'head': OUT}
    head_inputs = 4

    def middle(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, c // 2, 2, h, w).amax(2)


class Coordinates(Wrapped):
    """CoordConv: channels that no layer makes stand beside those that one makes."""

    units = {'stem.0': (8, None), 'a': (6, None), 'head': OUT}
    members = {'stem.0': 'stem.0[0:8] | stem.1[0:8] | a[0:8] head[0:8]'}

    def make(self) -> None:
        self.a = conv(10, 6)

    def middle(self, x: Tensor) -> Tensor:
        grid = torch.linspace(-1, 1, x.shape[-1]).expand(x.shape[0], 2, *x.shape[2:])
        y = torch.cat([x, grid], 1)
        return y[:, :-2] * F.relu(self.a(y)).sum(1, keepdim=True)


class SharedNorm(Wrapped):
    """One normalisation behind two layers ties them."""

    units = {'stem.0': (8, None), 'a': (6, None), 'head': OUT}
    members = {'a': 'a[0:6] b[0:6] | norm[0:6] | head[0:12/2]~'}
    head_inputs = 12

    def make(self) -> None:
        self.a, self.b, self.norm = conv(8, 6), conv(8, 6), nn.BatchNorm2d(6)

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(torch.cat([self.norm(self.a(x)), self.norm(self.b(x))], 1))


class GroupedOverConcat(Wrapped):
    """Groups cut through the parts of a concatenation: channels of two layers are tied by place."""

    units = {'stem.0': (2, None), 'a.0': (4, None), 'mid': (3, None), 'head': OUT}
    members = {'stem.0': 'stem.0[0:8/2]~ | stem.1[0:8/2]~ | a.0[0:8/2]~ mid[0:8/2]~'}
    head_inputs = 6

    def make(self) -> None:
        self.a, self.mid = conv_bn(8, 4), conv(12, 6, groups=2)

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(self.mid(torch.cat([x, self.a(x)], 1)))


class OutArguments(Wrapped):
    """Results are written into a tensor that was there before."""

    units = {'stem.0': (8, None), 'a': (6, None), 'head': OUT}
    head_inputs = 14

    def make(self) -> None:
        self.a = conv(8, 6)

    def middle(self, x: Tensor) -> Tensor:
        a = self.a(x)
        if torch.is_grad_enabled():  # autograd does not support out=
            return torch.cat([x, a * a], 1)
        square = torch.mul(a, a, out=torch.empty_like(a))
        room = x.new_empty(len(x), x.shape[1] + a.shape[1], *x.shape[2:])
        torch.cat([x, square], 1, out=room)
        return room


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    """Swish as a compiled function."""
    return (x * torch.sigmoid(x)).relu()


class Scripted(Wrapped):
    units = {'stem.0': (8, None), 'head': OUT}

    def middle(self, x: Tensor) -> Tensor:
        return scripted(x)


class DetachedData(Wrapped):
    """What is taken out of the graph of gradients is still a channel."""

    units = {'stem.0': (8, None), 'a': (6, None), 'head': OUT}
    head_inputs = 6

    def make(self) -> None:
        self.a = conv(8, 6)

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(self.a(x.data))


class Recurrent(Wrapped):
    units = {'stem.0': (8, None), 'rnn': (6, Reason.LAYER), 'fc': OUT}

    def __init__(self) -> None:
        super().__init__()
        del self.head
        self.rnn, self.fc = nn.GRU(8, 6, batch_first=True), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.rnn(self.stem(x).flatten(2).transpose(1, 2))[0][:, -1])


class LearnedSampling(Wrapped):
    """Offsets of a sampling grid are positions, the sampled channels pass through."""

    units = {'stem.0': (8, None), 'offset': (2, Reason.SPACE), 'head': OUT}
    members = {'stem.0': 'stem.0[0:8] | stem.1[0:8] | head[0:8] offset[0:8]'}

    def make(self) -> None:
        self.offset = conv(8, 2)

    def middle(self, x: Tensor) -> Tensor:
        grid = torch.tanh(self.offset(x)).permute(0, 2, 3, 1)
        return F.grid_sample(x, grid, align_corners=False)


class BestChannels(Wrapped):
    """The three strongest channels are chosen by their values."""

    units = {'stem.0': (8, Reason.STATISTICS), 'head': OUT}
    head_inputs = 3

    def middle(self, x: Tensor) -> Tensor:
        return x.topk(3, dim=1).values


class Forgiving(Wrapped):
    """Code that swallows the error computes something else instead."""

    units = {'stem.0': (8, Reason.VALUES), 'head': OUT}

    def middle(self, x: Tensor) -> Any:
        try:
            return x.view(-1, 8, *x.shape[2:]) * 3
        except RuntimeError:
            return x


class TokenMixer(ToyNet):
    """MLP-Mixer: linear layers over positions and over channels in turn, without bias."""

    units = {'patch': (8, None), 'mix1': (6, Reason.SPACE), 'mix2': (4, Reason.SPACE),
             'fc1': (12, None), 'head': OUT}

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.mix1, self.mix2 = nn.Linear(4, 6, bias=False), nn.Linear(6, 4, bias=False)
        self.fc1, self.fc2, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2)
        x = x + self.mix2(F.gelu(self.mix1(x)))
        x = x.transpose(1, 2)
        return self.head((x + self.fc2(F.gelu(self.fc1(x)))).mean(1))
