"""Toy nets: code that computes with a layer's weight instead of calling the layer."""

from __future__ import annotations

from typing import Any

import torch
from mmcv.ops import RoIAlign
from mmdet.models.backbones.trident_resnet import TridentConv
from torch import Tensor, nn

from tests.test_units.toy_base import F, Reason, ToyNet, Wrapped, conv

OUT = (5, Reason.OUTPUT)


class FunctionalConv(Wrapped):
    """Weight and bias of one layer, called twice in two ways."""

    units = {'stem.0': (8, None), 'a': (6, None), 'head': OUT}
    members = {'a': 'a[0:6] |  | head[0:6]', 'stem.0': 'stem.0[0:8] | stem.1[0:8] | a[0:8]'}
    head_inputs = 6

    def make(self) -> None:
        self.a = conv(8, 6)

    def middle(self, x: Tensor) -> Tensor:
        wide = F.conv2d(x, self.a.weight, self.a.bias, padding=2, dilation=2)
        return F.relu(wide + F.conv2d(bias=None, weight=self.a.weight, input=x, padding=1))


class BiasOfParts(ToyNet):
    """BEiT: the weight of one layer, with a bias put together from parameters beside it and zeros."""

    units = {'patch': (8, None), 'qkv': (8, Reason.VALUES), 'proj': (6, None), 'head': OUT}
    members = {'qkv': 'qkv[0:24/3]~ | q_bias[0:8] v_bias[0:8] | proj[0:8]',
               'patch': 'patch[0:8] |  | qkv[0:8]'}

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.qkv = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 24, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(8))
        self.proj, self.head = nn.Linear(8, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        q, k, v = F.linear(input=x, weight=self.qkv.weight, bias=bias).chunk(3, -1)
        attention = torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, -1)
        return self.head(F.relu(self.proj(attention @ v)))


class BiasOfNumbers(Wrapped):
    """A bias that is no parameter has a fixed size."""

    units = {'stem.0': (8, None), 'a': (6, Reason.FIXED_SIZE), 'head': OUT}
    head_inputs = 6

    def make(self) -> None:
        self.a = conv(8, 6, bias=False)

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(F.conv2d(x, self.a.weight, torch.ones(6), padding=1))


class PartOfAWeight(Wrapped):
    """A slice of a weight is no layer's weight: where it is cut is a number."""

    units = {'stem.0': (8, Reason.OPERATOR), 'head': OUT}

    def make(self) -> None:
        self.a = conv(8, 12)

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(F.conv2d(x, self.a.weight[:8], self.a.bias[:8], padding=1))


class WeightInAProduct(Wrapped):
    """TOOD: code multiplies by the weight of a layer that is never called. What that reads stays, nothing else."""

    units = {'stem.0': (8, None), 'b': (8, Reason.OUTER), 'head': OUT}
    head_inputs = 6

    def make(self) -> None:
        self.b, self.a = conv(8, 8), conv(8, 6, 1, bias=False)

    def middle(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(x))
        weight = self.a.weight.view(1, 6, 8).expand(len(x), -1, -1)
        return F.relu(torch.bmm(weight, x.flatten(2))).unflatten(2, x.shape[2:])


class Tripling(torch.autograd.Function):
    """What it does with its input is unknown to tracing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 3


class TriplingWithSetup(Tripling):
    """The newer form, whose forward takes no context."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * 3

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass


tripling, tripling_with_setup = Tripling.apply, TriplingWithSetup.apply


class BoundFunctions(Wrapped):
    """Custom autograd functions by names that were bound to their `apply` at import."""

    units = {'stem.0': (8, Reason.FUNCTION), 'a': (8, Reason.FUNCTION), 'b': (6, None), 'head': OUT}
    head_inputs = 6

    def make(self) -> None:
        self.a, self.b = conv(8, 8), conv(8, 6)

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(self.b(tripling_with_setup(self.a(tripling(x)))))


class BoundRoIAlign(ToyNet):
    """GRoIE: mmcv's RoIAlign calls its function so. It treats every channel by itself."""

    units = {'stem': (8, None), 'fc': (6, None), 'head': OUT}
    members = {'stem': 'stem[0:8] |  | fc[0:32/4]'}

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.align = conv(3, 8), RoIAlign(2)
        self.fc, self.head = nn.Linear(32, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        boxes = x.new_tensor([[0, 0, 0, 4, 4], [0, 1, 2, 7, 6]])
        return self.head(F.relu(self.fc(self.align(self.stem(x), boxes).flatten(1))))


class Trident(Wrapped):
    """TridentNet: one weight for several branches, of which one runs in inference."""

    units = {'stem.0': (8, None), 'trident': (6, None), 'head': OUT}
    members = {'stem.0': 'stem.0[0:8] | stem.1[0:8] | trident[0:8]', 'trident': 'trident[0:6] | norm[0:6] | head[0:6]'}
    head_inputs = 6

    def make(self) -> None:
        self.trident = TridentConv(8, 6, 3, trident_dilations=(1, 2, 3), test_branch_idx=1)
        nn.init.normal_(self.trident.weight)
        self.norm = nn.BatchNorm2d(6)

    def middle(self, x: Tensor) -> Tensor:
        outs = self.trident([x] * 3 if self.training else [x])
        return sum(F.relu(self.norm(out)) for out in outs)
