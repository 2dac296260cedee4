"""Toy nets: vectors that become maps. A channel of a map is several rows of the layer that gave the vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.test_units.toy_base import F, Reason, ToyNet, conv

OUT = (3, Reason.OUTPUT)


class Decoder(ToyNet):
    """A linear layer whose outputs are maps of 4 x 4, read by a transposed convolution."""

    shape = (16,)
    units = {'fc': (8, None), 'up': (6, None), 'out': OUT}
    members = {'fc': 'fc[0:128/16] |  | up[0:8]', 'up': 'up[0:6] |  | out[0:6]'}

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.up = nn.Linear(16, 128), nn.ConvTranspose2d(8, 6, 4, 2, 1)
        self.out = nn.ConvTranspose2d(6, 3, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc(x)).view(-1, self.up.in_channels, 4, 4)
        return self.out(F.relu(self.up(x)))


class DecoderOfConv(ToyNet):
    """A 1x1 convolution in the place of the linear layer; normalised and enlarged before a layer reads the maps."""

    shape = (6, 1, 1)
    units = {'fc': (8, None), 'a': (5, None), 'head': OUT}
    members = {'fc': 'fc[0:32/4] | bn[0:8] | a[0:8]'}

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.bn, self.a, self.head = nn.Conv2d(6, 32, 1), nn.BatchNorm2d(8), conv(8, 5), conv(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.fc(x).reshape(len(x), -1, 2, 2))
        return self.head(F.relu(self.a(F.interpolate(x, scale_factor=2.0))))


class DecoderOfRows(ToyNet):
    """Sequences: a channel is 5 places of one dimension, and the maps are added to others first."""

    shape = (7,)
    units = {'fc': (6, None), 'a': (4, None), 'head': OUT}
    members = {'fc': 'fc[0:30/5] same[0:30/5] |  | a[0:6]'}

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.same = nn.Linear(7, 30), nn.Linear(7, 30)
        self.a, self.head = nn.Conv1d(6, 4, 3), nn.Conv1d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.fc(x).unflatten(1, (-1, 5)) + self.same(x).view(len(x), -1, 5)
        return self.head(F.relu(self.a(torch.tanh(rows))))


class DecoderOfNumbers(ToyNet):
    """The number of channels is a number of the code."""

    shape = (16,)
    units = {'fc': (8, Reason.FIXED_SIZE), 'a': (6, None), 'head': OUT}

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.a, self.head = nn.Linear(16, 32), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.a(self.fc(x).view(len(x), 8, 2, 2))))


class HeadsBesideMaps(ToyNet):
    """Heads of attention, whose channels lie along the last dimension, beside maps."""

    shape = (12,)
    units = {'fc': (4, None), 'qkv': (3, Reason.FIXED_SIZE), 'proj': (5, None), 'a': (6, None), 'head': OUT}

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.qkv, self.proj = nn.Linear(12, 16), nn.Linear(4, 18), nn.Linear(6, 5)
        self.a, self.head = nn.Conv1d(5, 6, 1), nn.Conv1d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x).view(len(x), -1, 2, 2)
        x = self.qkv(F.max_pool2d(x, 1).flatten(2).transpose(1, 2))
        q, k, v = x.view(len(x), 4, 3, 2, 3).permute(2, 0, 3, 1, 4)
        x = torch.softmax(q @ k.transpose(-2, -1), -1) @ v
        x = self.proj(x.transpose(1, 2).flatten(2))
        return self.head(F.relu(self.a(x.transpose(1, 2))))


class DecoderOfModules(ToyNet):
    """The view is a module, which states the number of channels."""

    shape = (7,)
    units = {'net.0': (6, None), 'net.3': (4, None), 'net.5': OUT}
    members = {'net.0': 'net.0[0:54/9] |  | net.3[0:6]'}

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(7, 54), nn.Tanh(), nn.Unflatten(1, (6, 3, 3)),
                                 nn.ConvTranspose2d(6, 4, 2, 2), nn.ReLU(), nn.Conv2d(4, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)
