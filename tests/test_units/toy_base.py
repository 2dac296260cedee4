"""What every toy net carries: its example input and the channel units that it should have."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmprune_ext.units import ChannelUnit, Member, Reason

Expected = dict[str, 'tuple[int, Reason | None]']

TOYS: dict[str, type[ToyNet]] = {}


class ToyNet(nn.Module):
    """One topology.

    Attributes:
        shape: Shape of one input, without the batch dimension.
        units: Channels of every unit by name, and why it is not prunable (None: it is).
        members: Members of units by name, as :func:`member_text` writes them, where worth stating.
        deterministic: Whether two runs in train mode, on the same input, agree.
    """

    shape: ClassVar[tuple[int, ...]] = (3, 8, 8)
    units: ClassVar[Expected] = {}
    members: ClassVar[dict[str, str]] = {}
    deterministic: ClassVar[bool] = True

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if 'units' in vars(cls):
            TOYS[cls.__name__] = cls

    @classmethod
    def build(cls, seed: int = 0) -> nn.Module:
        """Return the net in eval mode with weights and statistics that hide no mistake."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = cls()
            randomise(net)
        for module in net.modules():
            module.training = False
        return net

    @classmethod
    def example(cls, batch: int = 2, seed: int = 1) -> Tensor:
        """Return an input."""
        return torch.randn(batch, *cls.shape, generator=torch.Generator().manual_seed(seed))

    def forward(self, x: Tensor) -> Any:
        raise NotImplementedError


def randomise(net: nn.Module) -> None:
    """Give normalisation layers and free parameters values of order one, none of them special."""
    for parameter in net.parameters():
        if parameter.dim() < 2 or parameter.shape[0] == 1:
            parameter.data = torch.empty_like(parameter).uniform_(0.5, 1.5)
    for name, buffer in net.named_buffers():
        if name.endswith('running_mean'):
            buffer.normal_(0, 0.3)
        elif name.endswith('running_var'):
            buffer.uniform_(0.5, 2)


def text_of(member: Member) -> str:
    """Return ``path[start:end]``, with ``/block`` where above 1 and ``~`` where irregular."""
    block = f'/{member.block}' if member.block > 1 else ''
    irregular = '~' if member.index is not None else ''
    return f'{member.module}[{member.start}:{member.end}{block}]{irregular}'


def member_text(unit: ChannelUnit) -> str:
    """Return a unit's producers | followers | consumers."""
    return ' | '.join(' '.join(sorted(map(text_of, members)))
                      for members in (unit.producers, unit.followers, unit.consumers))


def conv(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    """Return a convolution that keeps the size."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def conv_bn(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Sequential:
    """Return convolution, batch normalisation and ReLU (paths ``0``, ``1``, ``2``)."""
    return nn.Sequential(conv(inputs, outputs, kernel, bias=False, **options),
                         nn.BatchNorm2d(outputs), nn.ReLU())


class Wrapped(ToyNet):
    """Stem, something in the middle, head: what most toy nets need around their topology."""

    channels: ClassVar[int] = 8
    head_inputs: ClassVar[int | None] = None

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(self.shape[0], self.channels)
        self.make()
        self.head = conv(self.head_inputs or self.channels, 5)

    def make(self) -> None:
        """Add the layers of the middle."""

    def middle(self, x: Tensor) -> Tensor:
        """Run the middle."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Any:
        return self.head(self.middle(self.stem(x)))


__all__ = ['TOYS', 'F', 'Reason', 'ToyNet', 'Wrapped', 'conv', 'conv_bn', 'member_text',
           'randomise', 'text_of']
