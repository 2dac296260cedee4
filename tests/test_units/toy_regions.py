"""Toy nets: torchvision's operators on regions of maps, on boxes, and on the weights of layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision import ops

from tests.test_units.toy_base import Reason, ToyNet, Wrapped, conv, conv_bn

OUT = (5, Reason.OUTPUT)


def boxes_of(x: Tensor) -> list[Tensor]:
    """Return two boxes in each image."""
    return [x.new_tensor([[0., 0., 4., 5.], [2., 1., 7., 7.]])] * len(x)


class RegionsOfAMap(Wrapped):
    units = {'stem.0': (8, None), 'head': OUT}
    members = {'stem.0': 'stem.0[0:8] | stem.1[0:8] | head[0:8]'}

    def middle(self, x: Tensor) -> Tensor:
        return ops.roi_align(x, boxes_of(x), 3, sampling_ratio=2) + ops.roi_pool(x, boxes_of(x), 3)


class PositionSensitiveRegions(Wrapped):
    """Four channels of ``maps`` fill the places of one."""

    units = {'stem.0': (8, None), 'maps': (3, None), 'head': OUT}
    members = {'maps': 'maps[0:12/4] |  | head[0:3]'}
    head_inputs = 3

    def make(self) -> None:
        self.maps = conv(8, 12)

    def middle(self, x: Tensor) -> Tensor:
        x = self.maps(x)
        return ops.ps_roi_align(x, boxes_of(x), 2, sampling_ratio=2) + ops.ps_roi_pool(x, boxes_of(x), 2)


class RegionsOfAPyramid(Wrapped):
    """All boxes lie on one level, and the other is as wide."""

    units = {'stem.0': (8, None), 'low': (6, None), 'head': OUT}
    members = {'low': 'high[0:6] low[0:6] |  | head[0:6]'}
    head_inputs = 6

    def make(self) -> None:
        self.low, self.high = conv(8, 6), conv(8, 6, stride=2)
        self.pool = ops.MultiScaleRoIAlign(['low', 'high'], 3, 2)

    def middle(self, x: Tensor) -> Tensor:
        levels = {'low': self.low(x), 'high': self.high(x), 'unused': x}
        return self.pool(levels, boxes_of(x), [tuple(x.shape[-2:])])


class SuppressedBoxes(ToyNet):
    """Which places are looked at is decided by boxes and scores, whose channels stay."""

    # Two corners and two sizes, which meet in the sum.
    units = {'stem.0': (8, None), 'boxes': (2, Reason.DECISION), 'scores': (1, Reason.DECISION), 'head': OUT}
    members = {'stem.0': 'stem.0[0:8] | stem.1[0:8] | boxes[0:8] head[0:8] scores[0:8]'}

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.boxes, self.scores = conv_bn(3, 8), conv(8, 4), conv(8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        maps, boxes, scores = (each[0].flatten(1).t() for each in (x, self.boxes(x), self.scores(x)))
        boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:].exp()], 1)
        return self.head(maps[ops.nms(boxes, scores[:, 0], 0.3)[:3]])


class DeformedByAFunction(Wrapped):
    """The offsets come from one layer, and the weight is another's, which is never called."""

    units = {'stem.0': (4, None), 'places': (36, Reason.LAYER), 'mid': (3, None), 'head': OUT}
    members = {'stem.0': 'stem.0[0:8/2]~ | stem.1[0:8/2]~ | mid[0:8/2]~ places[0:8/2]~',
               'mid': 'mid[0:6/2]~ |  | head[0:6/2]~'}
    head_inputs = 6

    def make(self) -> None:
        self.places, self.mid = conv(8, 36), conv(8, 6, groups=2)

    def middle(self, x: Tensor) -> Tensor:
        return ops.deform_conv2d(x, 0.3 * self.places(x), self.mid.weight, self.mid.bias, padding=1)


class FrozenStatistics(Wrapped):
    """All that such a layer holds are buffers."""

    units = {'stem.0': (8, None), 'mid': (6, None), 'head': OUT}
    members = {'mid': 'mid[0:6] | bn.bias[0:6] bn.running_mean[0:6] bn.running_var[0:6] bn.weight[0:6] | head[0:6]'}
    head_inputs = 6

    def make(self) -> None:
        self.mid, self.bn = conv(8, 6), ops.FrozenBatchNorm2d(6)
        for value in (self.bn.weight, self.bn.bias):
            value.uniform_(0.5, 1.5)

    def middle(self, x: Tensor) -> Tensor:
        return self.bn(self.mid(x)).relu()
