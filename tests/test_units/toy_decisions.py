"""Toy nets: code that chooses places, rows or a way by the values of channels."""

from __future__ import annotations

import torch
from mmcv.ops import nms
from torch import Tensor, nn

from tests.test_units.toy_base import F, Reason, ToyNet, Wrapped, conv

OUT = (5, Reason.OUTPUT)
CHOSEN = (1, Reason.DECISION)


def at(x: Tensor, places: Tensor) -> Tensor:
    """Return the features ``(N, C, K, 1)`` of a map at places ``(K,)`` of its rows in a row."""
    return x.flatten(2)[:, :, places].unsqueeze(-1)


class RootMap(Wrapped):
    """CID: one of several maps says where instances are; the others are made for the loss."""

    units = {'stem.0': (8, None), 'maps': (3, None), 'maps#2': CHOSEN, 'head': OUT}
    members = {'maps': 'maps[0:3] |  | ', 'maps#2': 'maps[3:4] |  | '}

    def make(self) -> None:
        self.maps = conv(8, 4, 1)

    def middle(self, x: Tensor) -> Tensor:
        root = torch.sigmoid(self.maps(x)).narrow(1, -1, 1)
        root = root * torch.eq(F.max_pool2d(root, 3, 1, 1), root).float()
        scores, places = root[0].reshape(-1).topk(6)
        return at(x, places[(scores > 0.01).nonzero().squeeze(1)])


class BestPlaces(Wrapped):
    """The last of three maps decides. Each is a sum over all channels, without one of which it is the same."""

    units = {'stem.0': (8, None), 'maps': (2, None), 'maps#2': CHOSEN, 'head': OUT}
    members = {'stem.0': 'stem.0[0:8] | stem.1[0:8] | head[0:8] maps[0:8]'}

    def make(self) -> None:
        self.maps = conv(8, 3)

    def score(self, x: Tensor) -> Tensor:
        """Return the map ``(N, 1, H, W)`` that decides."""
        return self.maps(x)[:, -1:]

    def middle(self, x: Tensor) -> Tensor:
        return at(x, self.score(x)[0].flatten().topk(6).indices)


class SortedTokens(BestPlaces):
    """Tokens in the order of their scores (token pruning), read by ``gather``."""

    units = BestPlaces.units

    def middle(self, x: Tensor) -> Tensor:
        order = self.score(x).flatten(2).argsort(-1)[..., :6]
        return x.flatten(2).gather(2, order.expand(-1, x.shape[1], -1)).unsqueeze(-1)


class MaskedPlaces(BestPlaces):
    """A mask as an index."""

    units = BestPlaces.units

    def middle(self, x: Tensor) -> Tensor:
        mask = (self.score(x[:1]) > 0).flatten()
        return x.flatten(2)[:, :, mask].mean(2)[..., None, None]


class HardGumbel(BestPlaces):
    """One place of each sample, as a mask of ones and zeros made from an index."""

    units = BestPlaces.units

    def middle(self, x: Tensor) -> Tensor:
        score = self.score(x)
        return x * F.gumbel_softmax(score.flatten(1), hard=True).view_as(score)


class DynamicNumber(BestPlaces):
    """Dynamic k assignment: how many places are taken is a sum of scores."""

    units = BestPlaces.units

    def middle(self, x: Tensor) -> Tensor:
        number = int(self.score(x).sigmoid().sum().clamp(1, 60))
        return at(x, torch.arange(number))


class NumbersOfPython(BestPlaces):
    """An assignment outside torch (scipy, numpy)."""

    units = BestPlaces.units

    def middle(self, x: Tensor) -> Tensor:
        best = self.score(x)[0].flatten().detach().numpy().argsort()[:6]
        return at(x, torch.from_numpy(best.copy()))


class Suppression(Wrapped):
    """Boxes that overlap a better one go, by a compiled operator."""

    units = {'stem.0': (8, None), 'boxes': (2, Reason.FUNCTION), 'scores': (1, Reason.FUNCTION), 'head': OUT}

    def make(self) -> None:
        self.boxes, self.scores = conv(8, 4, 1), conv(8, 1, 1)

    def middle(self, x: Tensor) -> Tensor:
        sides = self.boxes(x)[0].flatten(1).t().sigmoid()
        boxes = torch.cat([sides[:, :2], sides[:, :2] + sides[:, 2:]], 1)
        return at(x, nms(boxes, self.scores(x)[0].flatten(), 0.5)[1])


class BranchOnChannel(Wrapped):
    """Which way the code takes is up to the first channel."""

    units = {'stem.0': CHOSEN, 'stem.0#2': (7, None), 'head': OUT}

    def middle(self, x: Tensor) -> Tensor:
        return x * 2 if x[:, 0].mean() > 0.3 else x


class Routing(ToyNet):
    """A mixture of experts: the router's channels are experts, what is inside each can be pruned."""

    units = {'patch': (8, None), 'router': (3, Reason.DECISION), 'experts.0.0': (6, None),
             'experts.1.0': (6, None), 'experts.2.0': (6, None), 'head': OUT}
    members = {'patch': 'experts.0.2[0:8] experts.1.2[0:8] experts.2.2[0:8] patch[0:8] |  | '
                        'experts.0.0[0:8] experts.1.0[0:8] experts.2.0[0:8] head[0:8] router[0:8]'}

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.router, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 3), nn.Linear(8, 5)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2).flatten(0, 1)
        gates, out = torch.sigmoid(self.router(tokens)), tokens.clone()
        for number, expert in enumerate(self.experts):
            rows = (gates[:, number] > 0.4).nonzero().squeeze(1)
            out[rows] += expert(tokens[rows])
        return self.head(out)


class BestExpert(Routing):
    """The best of the experts is a statistic over the router's channels. Some experts get no token."""

    units = {**Routing.units, 'router': (3, Reason.STATISTICS)}

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2).flatten(0, 1)
        best, out = self.router(tokens).topk(1, -1).indices[:, 0], tokens.clone()
        for number, expert in enumerate(self.experts):
            out[best == number] += expert(tokens[best == number])
        return self.head(out)


class ChannelMask(Wrapped):
    """A mask that is a factor, not an index, is a value of its own channel."""

    units = {'stem.0': (8, None), 'head': OUT}
    members = {'stem.0': 'a[0:8] stem.0[0:8] | stem.1[0:8] | a[0:8] head[0:8]'}

    def make(self) -> None:
        self.a = conv(8, 8)

    def middle(self, x: Tensor) -> Tensor:
        mask = torch.logical_and(x > 0.5, x < 2)
        return torch.where(mask, self.a(x), torch.zeros(())) * mask.float()


class PeakPlaces(ToyNet):
    """Where each channel is largest, is one more value of that channel."""

    units = {'conv': (8, None), 'head': OUT}
    members = {'conv': 'conv[0:8] |  | head[0:8]'}

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = conv(3, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x)).flatten(2)
        return self.head(x.argmax(2) / x.shape[2])
