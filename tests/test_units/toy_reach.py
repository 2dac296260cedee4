"""Toy nets: layers that no pass reaches, and what they might have been meant to read."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tests.test_units.toy_base import F, Reason, Wrapped, conv, conv_bn

OUT = (5, Reason.OUTPUT)
IDLE = (8, Reason.NOT_REACHED)


class Branch(nn.Module):
    """Two convolutions, with something of the width of the first between them."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        self.a, self.b = conv_bn(8, 8), conv(8, 8)
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.a(x)) if len(x) < 99 else self.idle(x)


class IdleInOneBranch(Wrapped):
    """A layer that never ran is inside the second branch: the inside of the first is not in its reach."""

    units = {'stem.0': IDLE, 'first.a.0': (8, None), 'second.a.0': IDLE, 'head': OUT}

    def make(self) -> None:
        self.first, self.second = Branch(), Branch(idle=conv(8, 4))

    def middle(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class IdleAroundBranches(Wrapped):
    """Beside the branches it might read what they give, not what they hold."""

    units = {'stem.0': IDLE, 'first.a.0': (8, None), 'c': (6, None), 'head': OUT}
    head_inputs = 6

    def make(self) -> None:
        self.first, self.idle, self.c = Branch(), conv(8, 4), conv(8, 6)

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(self.c(self.first(x))) if len(x) < 99 else self.idle(x)


class DeadLayer(Wrapped):
    """DeiT III: a layer that is made, and that no code names."""

    units = {'stem.0': (8, None), 'first.a.0': (8, None), 'head': OUT}

    class Dead(nn.Module):
        """A branch with more layers than it calls."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm = conv_bn(8, 8), conv(8, 8), nn.BatchNorm2d(8)
            self.parts = nn.ModuleDict({'c': conv(8, 8)})

        def forward(self, x: Tensor) -> Tensor:
            return x + self.b(self.a(x))

    def make(self) -> None:
        self.first = self.Dead()

    def middle(self, x: Tensor) -> Tensor:
        return self.first(x)


class NamelessUse(DeadLayer):
    """Code that gets at its modules without their names might call any."""

    units = {'stem.0': IDLE, 'first.a.0': IDLE, 'head': OUT}

    class Dead(DeadLayer.Dead):
        """Chooses by a number."""

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x)) + x if len(x) < 99 else getattr(self, f'{"no"}rm')(x)


class NamedByAnother(DeadLayer):
    """Code of another class names the layer."""

    units = NamelessUse.units

    def middle(self, x: Tensor) -> Tensor:
        first = self.first
        return first(x) if len(x) < 99 else first.parts['c'](x)


class Decoder(nn.Module):
    """Looks at what it has computed by layers of another module that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(8, 8), conv(8, 8)

    def forward(self, x: Tensor, branches: nn.ModuleList, steps: int) -> list[Tensor]:
        inner = F.relu(self.a(x))
        return [self.b(inner), *(branch(inner) for branch in branches[:steps])]


class LentLayers(Wrapped):
    """One of the layers that a decoder is given does not run; the others read what is inside the decoder."""

    units = {'stem.0': IDLE, 'decoder.a': IDLE, 'decoder.b': IDLE, 'first.a.0': (8, None), 'head': OUT,
             'branches.0': (3, Reason.OUTPUT), 'branches.1': (3, Reason.OUTPUT)}

    def make(self) -> None:
        self.decoder, self.first = Decoder(), Branch()
        self.branches = nn.ModuleList(conv(8, 3) for _ in range(3))

    def forward(self, x: Tensor) -> Any:
        x, *others = self.decoder(self.stem(x), self.branches, 2)
        return [self.head(self.first(x)), *others]
