"""Toy nets: code that a tracer trips over (in-place writes, modes, outputs, unknown operators)."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.test_units.toy_base import F, Reason, ToyNet, Wrapped, conv, conv_bn

OUT = (5, Reason.OUTPUT)


class InPlace(Wrapped):
    """Writes into the activation itself, through views and without."""

    units = {'stem.0': (8, None), 'a': (8, None), 'head': OUT}
    members = {'a': 'a[0:8] b[0:8] |  | head[0:8]'}

    def make(self) -> None:
        self.a, self.b = conv(8, 8), conv(8, 8)

    def middle(self, x: Tensor) -> Tensor:
        y = self.a(x).relu_() * 1.5
        y[:, :, :4] *= 2
        y += self.b(x)
        y.view(y.shape[0], -1).mul_(0.5)
        return y


class InPlaceConstant(Wrapped):
    """The first four channels get a constant: which these are depends on the number."""

    units = {'stem.0': (8, Reason.VALUES), 'head': OUT}

    def middle(self, x: Tensor) -> Tensor:
        x = x.clone()
        x[:, :4] += 1
        return x


class PreallocatedBuffer(Wrapped):
    """Results are copied into slices of a buffer that is made with the sizes of the parts."""

    units = {'stem.0': (8, None), 'a': (4, None), 'b': (6, None), 'head': OUT}
    members = {'a': 'a[0:4] |  | head[0:4]', 'b': 'b[0:6] |  | head[4:10]'}
    head_inputs = 10

    def make(self) -> None:
        self.a, self.b = conv(8, 4), conv(8, 6)

    def middle(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        out = x.new_zeros(x.shape[0], a.shape[1] + b.shape[1], *x.shape[-2:])
        out[:, :a.shape[1]].copy_(a)
        out[:, a.shape[1]:] = b
        return out


class RoIWrite(ToyNet):
    """Detectors: features of regions are added into a buffer by index, then flattened."""

    units = {'p1': (4, None), 'fc': (6, None), 'head': OUT}
    members = {'p1': 'p1[0:4] p2[0:4] |  | fc[0:16/4]'}

    def __init__(self) -> None:
        super().__init__()
        self.p1, self.p2 = conv(3, 4), conv(3, 4, stride=2)
        self.fc, self.head = nn.Linear(16, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        levels = [self.p1(x), self.p2(x)]
        # The buffer's width comes from the features, not from a stored number.
        feats = x.new_zeros(4, levels[0].shape[1], 2, 2)
        for level, inds in zip(levels, (torch.tensor([0, 2]), torch.tensor([1, 3])), strict=True):
            regions = F.adaptive_max_pool2d(level, 2)[:1].expand(2, -1, -1, -1)
            feats[inds] += regions
        return self.head(F.relu(self.fc(feats.flatten(1))))


class FixedRoIWidth(RoIWrite):
    """The same with the width as a number, as SingleRoIExtractor stores it."""

    units = {'p1': (4, Reason.FIXED_SIZE), 'fc': (6, None), 'head': OUT}
    members = {}

    def forward(self, x: Tensor) -> Tensor:
        feats = x.new_zeros(4, 4, 2, 2)
        for level, inds in zip((self.p1(x), self.p2(x)), ([0, 2], [1, 3]), strict=True):
            feats[inds] += F.adaptive_max_pool2d(level, 2)[:1].expand(2, -1, -1, -1)
        return self.head(F.relu(self.fc(feats.flatten(1))))


class TrainingBranch(Wrapped):
    """An auxiliary classifier that runs in training only reads the stem too."""

    units = {'stem.0': (8, None), 'a.0': (6, None), 'aux': (4, None), 'head': OUT,
             'aux_head': OUT}
    members = {'stem.0': 'stem.0[0:8] | stem.1[0:8] | a.0[0:8] aux[0:8]'}
    head_inputs = 6

    def make(self) -> None:
        self.a, self.aux, self.aux_head = conv_bn(8, 6), conv(8, 4), conv(4, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        y = self.head(self.a(x))
        return (y, self.aux_head(F.relu(self.aux(x)))) if self.training else y


class TrainingBranchFixedView(TrainingBranch):
    """A number in code that only training runs breaks only training."""

    units = {'stem.0': (8, Reason.FIXED_SIZE), 'a.0': (6, None), 'aux': (4, None), 'head': OUT,
             'aux_head': OUT}
    members = {}

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        y = self.head(self.a(x))
        if not self.training:
            return y
        return y, self.aux_head(F.relu(self.aux(x.view(x.shape[0], 8, *x.shape[2:]))))


class OwnLoading(TrainingBranch):
    """Weights that are not loaded from a checkpoint (position tables), and a counter that training makes."""

    units = TrainingBranch.units

    def make(self) -> None:
        super().make()
        self.register_buffer('scale', torch.full((1, 6, 1, 1), 2.0))
        self.register_buffer('calls', None)
        self.register_load_state_dict_pre_hook(self._drop)

    @staticmethod
    def _drop(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
        state.pop(f'{prefix}scale', None)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        y = self.head(self.a(x) * self.scale)
        if not self.training:
            return y
        self.calls = torch.zeros(1) if self.calls is None else self.calls + 1
        return y, self.aux_head(F.relu(self.aux(x)))


class TrainingCode(Wrapped):
    """No layer is used in training only, but an operator with a number in it is."""

    units = {'stem.0': (8, Reason.FIXED_SIZE), 'head': OUT}

    def middle(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], 8, *x.shape[2:]) if self.training else x


class UnusedOutput(Wrapped):
    """A layer runs, nobody reads it: it shrinks along with what it reads."""

    units = {'stem.0': (8, None), 'idle': (6, None), 'head': OUT}
    members = {'stem.0': 'stem.0[0:8] | stem.1[0:8] | head[0:8] idle[0:8]',
               'idle': 'idle[0:6] |  | '}

    def make(self) -> None:
        self.idle = conv(8, 6)

    def middle(self, x: Tensor) -> Tensor:
        self.idle(x)
        return x


class NeverReached(Wrapped):
    """A layer that no pass reaches may read anything of its width."""

    units = {'stem.0': (8, Reason.NOT_REACHED), 'a': (6, None), 'head': OUT}
    head_inputs = 6

    def make(self) -> None:
        self.a, self.other = conv(8, 6), conv(8, 6)

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(self.other(x) if len(x) > 99 else self.a(x))


class Frozen(Wrapped):
    """Frozen layers are traced like all others, and stay frozen."""

    units = {'stem.0': (8, None), 'a.0': (6, None), 'head': OUT}
    head_inputs = 6

    def make(self) -> None:
        self.a = conv_bn(8, 6)
        for parameter in self.stem.parameters():
            parameter.requires_grad = False

    def middle(self, x: Tensor) -> Tensor:
        return self.a(x)


class RefreezingTrain(Frozen):
    """train() freezes the stem again and, as mmdet's ResNet did, returns None."""

    units = {'stem.0': (8, None), 'a.0': (6, None), 'head': OUT}

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)
        self.stem.eval()
        for parameter in self.stem.parameters():
            parameter.requires_grad = False


class Checkpointed(Wrapped):
    """with_cp: both kinds of activation checkpointing run the code as usual."""

    units = {'stem.0': (8, None), 'a.0': (6, None), 'b.0': (6, None), 'head': OUT}
    head_inputs = 6

    def make(self) -> None:
        self.a, self.b = conv_bn(8, 6), conv_bn(6, 6)

    def middle(self, x: Tensor) -> Tensor:
        x = checkpoint(self.a, x, use_reentrant=True)
        return checkpoint(self.b, x, use_reentrant=False)


class GlobalResponse(Wrapped):
    """GRN (ConvNeXt V2): the mean over channels enters every channel."""

    units = {'stem.0': (8, Reason.STATISTICS), 'a': (6, None), 'head': OUT}
    head_inputs = 6

    def make(self) -> None:
        self.gamma, self.a = nn.Parameter(torch.ones(1, 8, 1, 1)), conv(8, 6)

    def middle(self, x: Tensor) -> Tensor:
        norm = x.norm(p=2, dim=(2, 3), keepdim=True)
        return self.a(x + self.gamma * x * norm / (norm.mean(1, keepdim=True) + 1e-6))


class L2Normalised(Wrapped):
    """A norm over channels: a removed channel is a missing zero in the sum."""

    units = {'stem.0': (8, None), 'head': OUT}

    def middle(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1)


class ChannelSoftmax(Wrapped):
    units = {'stem.0': (8, Reason.STATISTICS), 'head': OUT}

    def middle(self, x: Tensor) -> Tensor:
        return x.softmax(1)


class ScaledByWidth(Wrapped):
    """A number made from the width enters the values."""

    units = {'stem.0': (8, Reason.VALUES), 'head': OUT}

    def middle(self, x: Tensor) -> Tensor:
        return x * x.shape[1] ** -0.5


class Doubling(torch.autograd.Function):
    """A custom function; the dispatcher does not see inside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 2


class CustomFunction(Wrapped):
    units = {'stem.0': (8, Reason.FUNCTION), 'head': OUT}

    def middle(self, x: Tensor) -> Tensor:
        return Doubling.apply(x)


class UnknownOperator(Wrapped):
    units = {'stem.0': (8, Reason.OPERATOR), 'a': (6, None), 'head': OUT}
    head_inputs = 6

    def make(self) -> None:
        self.a = conv(8, 6)

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(self.a(torch.fft.rfft2(x).abs()))


class SigmoidBetween(Wrapped):
    """sigmoid(0) is not 0: a silenced channel still speaks, a removed one does not."""

    units = {'stem.0': (8, None), 'a': (6, Reason.VALUES), 'head': OUT}
    head_inputs = 6

    def make(self) -> None:
        self.a = conv(8, 6)

    def middle(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.a(x))


class OutputTaps(ToyNet):
    """A backbone that gives out several stages: the last layer of each is fixed."""

    units = {'s1.0': (8, None), 's2.0': (8, Reason.OUTPUT), 's3.0': (6, None),
             's4.0': (8, Reason.OUTPUT)}

    def __init__(self) -> None:
        super().__init__()
        self.s1, self.s2 = conv_bn(3, 8), conv_bn(8, 8)
        self.s3, self.s4 = conv_bn(8, 6), conv_bn(6, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        tap = self.s2(self.s1(x))
        return tap, self.s4(self.s3(tap))


class DictOutput(Wrapped):
    units = {'stem.0': (8, Reason.OUTPUT), 'a': (6, None), 'head': OUT}
    head_inputs = 6

    def make(self) -> None:
        self.a = conv(8, 6)

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = self.stem(x)
        return {'levels': [{'feature': x}], 'logits': self.head(F.relu(self.a(x)))}


@dataclasses.dataclass(slots=True)
class Prediction:
    """An output without ``__dict__``."""

    logits: Tensor


class SlotsOutput(Wrapped):
    units = {'stem.0': (8, None), 'head': OUT}

    def forward(self, x: Tensor) -> Prediction:
        return Prediction(self.head(self.stem(x)))


class IndexOutput(Wrapped):
    """Only the best class comes out: removing classes would shift its number."""

    units = {'stem.0': (8, None), 'head': (5, Reason.STATISTICS)}

    def forward(self, x: Tensor) -> Any:
        logits = self.head(self.stem(x)).mean((2, 3))
        return logits if self.training else logits.argmax(1)


class HardView(Wrapped):
    units = {'stem.0': (8, Reason.FIXED_SIZE), 'a': (6, None), 'head': OUT}
    head_inputs = 6

    def make(self) -> None:
        self.a = conv(8, 6)

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(self.a(x.view(-1, 8, 8, 8)))


class WidthBranch(Wrapped):
    """Code that looks at the width goes another way once it has changed."""

    units = {'stem.0': (8, Reason.VALUES), 'head': OUT}

    def middle(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[1] == 8 else x


class NoisyForward(Wrapped):
    """Randomness in the forward pass must not be taken for an effect of slimming."""

    units = {'stem.0': (8, None), 'a': (6, None), 'head': OUT}
    head_inputs = 6
    deterministic = False

    def make(self) -> None:
        self.a = conv(8, 6)

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(self.a(x)) * torch.rand(x.shape[0], 1, *x.shape[2:])
