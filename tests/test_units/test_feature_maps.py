"""Which tensor is a layer's feature map: each toy notes, in its own code, what it should be."""
from __future__ import annotations

import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmprune_ext.units.tracing.feature_maps import FeatureMaps


class Toy(nn.Module):
    """A network that notes the feature map of each layer, by name, in the order of the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: dict[str, list[Tensor]] = {}

    def note(self, value: Tensor, *names: str) -> Tensor:
        for name in names:
            self.noted.setdefault(name, []).append(value.detach().clone())
        return value


def conv(inputs: int, outputs: int, kernel: int = 3, **options: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


class Plain(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm, self.pool = conv(3, 4), conv(4, 5), nn.BatchNorm2d(4), nn.MaxPool2d(2)
        self.act, self.fc = nn.ReLU(inplace=True), nn.Linear(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.note(self.act(self.norm(self.a(x))), 'a'))
        x = self.note(F.relu(self.b(x)), 'b')
        return self.note(torch.relu(self.fc(x.mean((2, 3)))), 'fc')


class Residual(Toy):
    """The sum's activation counts, of the block's convolution and, at first, of the shortcut's."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.short = conv(3, 4), conv(4, 4), conv(3, 4, 1)
        self.c, self.d, self.norm = conv(4, 6), conv(6, 4), nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.b(self.note(F.relu(self.a(x)), 'a'))
        out += self.short(x)
        x = self.note(self.act(out), 'b', 'short')
        out = self.norm(self.d(self.note(F.relu(self.c(x)), 'c')))
        return self.note(self.act(out + x), 'd')


class PreActivation(Toy):
    """What adds to the stream is seen where the next block activates it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.c = conv(3, 4), conv(4, 4), conv(4, 4), conv(4, 4)
        self.first, self.second, self.third = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out = self.a(self.note(F.relu(self.first(x)), 'stem'))
        x = x + self.b(self.note(F.relu(self.second(out)), 'a'))
        return F.relu(self.c(self.note(F.relu(self.third(x)), 'b'))).sum((2, 3))


class Bottleneck(Toy):
    """MobileNetV2: the last convolution is linear; the next layer, depthwise or not, reads its map."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depth, self.project = conv(3, 6, 1), conv(6, 6, groups=6), conv(6, 4, 1)
        self.norm, self.again, self.second = nn.BatchNorm2d(4), conv(4, 8, 1), conv(8, 4, 1)
        self.last, self.act = conv(4, 4, groups=4), nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.depth(self.note(self.act(self.expand(x)), 'expand')))
        x = self.note(self.norm(self.project(x)), 'project')
        x = self.note(x + self.second(self.note(self.act(self.again(x)), 'again')), 'second')
        return F.relu(self.last(x))


class SqueezeExcite(Toy):
    """The map is not ended by being pooled for the gate, nor by the sigmoid of the gate."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.squeeze, self.gate, self.b = conv(3, 4), conv(4, 2, 1), conv(2, 4, 1), conv(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        pooled = F.adaptive_avg_pool2d(x, 1) + F.adaptive_max_pool2d(x, 1)
        small = self.note(F.relu(self.squeeze(pooled)), 'squeeze')
        gate = self.note(torch.sigmoid(self.gate(small)), 'gate')
        return self.note(F.relu(self.b(self.note(F.relu(x * gate), 'a'))), 'b')


class Swish(Toy):
    """``x * sigmoid(x)`` is an activation, in either order and written out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 4), conv(4, 4), conv(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = self.b(self.note(x * torch.sigmoid(x), 'a').clone() * 2)
        x = self.c(self.note(x.sigmoid() * x, 'b') + 1)
        return self.note(F.silu(x), 'c') * 3


class Concat(Toy):
    """Each layer has its own rows of what is activated together."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.norm = conv(3, 4), conv(3, 5), conv(9, 2), nn.BatchNorm2d(9)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm(torch.cat([self.b(x), self.a(x)], 1)))
        self.note(out[:, :5], 'b')
        self.note(out[:, 5:], 'a')
        return self.note(F.relu(self.c(out)), 'c')


class Halves(Toy):
    """The halves of one layer's channels go different ways and are two maps."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 8), conv(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.a(x).chunk(2, 1)
        left = self.note(F.relu(left), 'a')
        return self.note(F.relu(self.b(self.note(right + left, 'a'))), 'b')


class Shared(Toy):
    """A layer that is called twice has two maps."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norms = conv(3, 3), conv(3, 4), nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3)])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outs = []
        for norm in self.norms:
            x = self.note(F.relu(norm(self.a(x))), 'a')
            outs.append(self.note(F.gelu(self.b(x)), 'b'))
            x = F.avg_pool2d(x, 2)
        return tuple(outs)


class Linear(Toy):
    """No activation at all: read after a flatten; and the output of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc, self.out = conv(3, 4), nn.Linear(4 * 16 * 16, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.note(self.a(x), 'a').flatten(1)
        return self.note(self.out(self.note(F.prelu(self.fc(x), torch.full((1, ), 0.25)), 'fc')), 'out')


class Pooled(Toy):
    """No activation before global pooling: the map before it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.act, self.b, self.fc = conv(3, 4), nn.PReLU(4), conv(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.note(self.act(F.max_pool2d(self.a(x), 2)), 'a')
        return self.fc(self.note(self.b(x * 2), 'b').mean((2, 3)))


class Again(Toy):
    """A shared layer whose maps nothing takes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = conv(3, 3), conv(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.note(self.a(x).clamp(min=0), 'a') * 2
        first = self.note(self.b(x), 'b').mean((2, 3))
        return self.fc(first + self.note(self.b(x + 1), 'b').mean((2, 3)))


class Grouped(Toy):
    """Channels of a grouped convolution are tied, and still stand in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 8), conv(8, 8, groups=2), conv(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.note(F.leaky_relu(self.b(self.note(F.elu(self.a(x)), 'a'))), 'b')
        return self.note(F.relu(self.c(x)), 'c')


class Aside(Toy):
    """A sum that is formed first does not take an addend's own activation away."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = conv(3, 4), conv(3, 4), conv(4, 2), conv(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.a(x), self.b(x)
        total = first + second
        self.note(F.relu(self.c(self.note(F.relu(first), 'a'))), 'c')
        return self.d(self.note(F.hardswish(total), 'b'))


class Tokens(Toy):
    """Channels last, as in transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.c = conv(3, 4), nn.LayerNorm(4), nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.a(x).flatten(2).transpose(1, 2))
        self.note(x.transpose(1, 2), 'a')
        self.note(F.gelu(self.b(x)).transpose(1, 2), 'b')
        return self.c(F.gelu(self.b(x)))


TOYS = [Plain, Residual, PreActivation, Bottleneck, SqueezeExcite, Swish, Concat, Halves, Shared, Linear,
        Pooled, Again, Grouped, Aside]


def seen_maps(model: nn.Module, image: Tensor, layers: list[str]) -> dict[str, list[tuple[Tensor, list[int]]]]:
    found: dict[str, list[tuple[Tensor, list[int]]]] = {}

    def on_map(values: Tensor, channels: dict[str, np.ndarray]) -> None:
        for path, places in channels.items():
            found.setdefault(path, []).append((values.clone(), places.tolist()))
    FeatureMaps(model, layers, on_map).run(lambda m: m(image))
    return found


@pytest.mark.parametrize('make', TOYS, ids=lambda toy: toy.__name__)
def test_feature_map(make: Callable[[], Toy]):
    torch.manual_seed(0)
    model = make().eval()
    image = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected_output = model(image)
    expected = model.noted
    model.noted = {}
    found = seen_maps(model, image, list(expected))
    assert found.keys() == expected.keys()
    for name, maps in expected.items():
        assert len(found[name]) == len(maps), name
        for (values, _), wanted in zip(found[name], maps):
            wanted = wanted.flatten(2) if wanted.dim() > 2 else wanted[:, :, None]
            torch.testing.assert_close(values, wanted, rtol=0, atol=0, msg=lambda text, n=name: f'{n}: {text}')
    with torch.no_grad():
        torch.testing.assert_close(model(image), expected_output)


def test_channels_last():
    model, image = Tokens().eval(), torch.randn(2, 3, 6, 6)
    found = seen_maps(model, image, ['a', 'b'])
    torch.testing.assert_close(found['a'][0][0], model.noted['a'][0])
    torch.testing.assert_close(found['b'][0][0], model.noted['b'][0])


def test_channels_of_the_parts():
    found = seen_maps(Halves().eval(), torch.randn(1, 3, 8, 8), ['a'])
    assert [channels for _, channels in found['a']] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    found = seen_maps(Concat().eval(), torch.randn(1, 3, 8, 8), ['a', 'b'])
    assert [channels for _, channels in found['a']] == [[0, 1, 2, 3]]
    assert [channels for _, channels in found['b']] == [[0, 1, 2, 3, 4]]


def test_shuffled_channels():
    class Shuffled(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(3, 6), conv(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.b(F.relu(x.unflatten(1, (2, 3)).transpose(1, 2).flatten(1, 2)))

    model, image = Shuffled().eval(), torch.randn(2, 3, 8, 8)
    (values, channels), = seen_maps(model, image, ['a'])['a']
    with torch.no_grad():
        own = F.relu(model.a(image)).flatten(2)
    torch.testing.assert_close(values, own[:, channels])


def test_a_map_is_not_kept():
    """When a map has been handed out, nothing but the network holds it."""
    held: list[weakref.ref] = []
    alive: list[int] = []

    def on_map(values: Tensor, channels: dict[str, np.ndarray]) -> None:
        alive.append(sum(ref() is not None for ref in held))
        held.append(weakref.ref(values._base if values._base is not None else values))

    model = nn.Sequential(*[layer for _ in range(6) for layer in (nn.Conv2d(3, 3, 1), nn.ReLU())]).eval()
    FeatureMaps(model, [str(2 * i) for i in range(6)], on_map).run(lambda m: m(torch.randn(1, 3, 8, 8)))
    assert len(alive) == 6
    assert max(alive) <= 1
    assert all(ref() is None for ref in held)


def test_a_map_that_nothing_took_is_not_kept_either():
    held: list[weakref.ref] = []
    maps = FeatureMaps(Pooled().eval(), ['a', 'b'], lambda values, _: held.append(weakref.ref(values._base)))
    maps.run(lambda m: m(torch.randn(1, 3, 8, 8)).sum())
    assert [ref() for ref in held] == [None, None]


def test_the_model_is_left_alone():
    model = Residual().eval()
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    seen_maps(model, torch.randn(1, 3, 8, 8), ['a'])
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
