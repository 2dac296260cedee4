"""Passes that are answered from a record in part: exactly what the whole pass gives, whatever the network does."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmprune_ext.compact.forms import Form, Forms
from mmprune_ext.evaluation.replay import Replay


class Pair(nn.Module):
    """Two convolutions; subclasses say what lies between and around them. ``late`` is what differs between forms."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.late = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.relu(self.late(self.relu(self.norm(self.early(x))))))


class InPlaceStatement(Pair):
    """What a module writes into its argument counts, and not what it returns."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.early(x))
        self.relu(x)
        return self.late(x)


class InPlaceSum(Pair):
    def forward(self, x: Tensor) -> Tensor:
        y = self.early(x)
        z = self.norm(y)
        z += y
        return self.late(z) + z


class WrittenBehind(Pair):
    """An early output is written to only after what differs."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.early(x)
        z = self.late(y)
        y.add_(1)
        return z + y


class Shared(Pair):
    """One module is called before and after what differs."""

    def forward(self, x: Tensor) -> Tensor:
        return self.early(self.late(self.early(self.early(x))))


class Borrowed(Pair):
    """The weights of what differs are read before its own call."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(F.conv2d(self.early(x), self.late.weight, padding=1))
        return self.late(self.last(x))


class BorrowedView(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.late(self.last(self.early(x) * self.late.weight.detach()[0, 0, 0, 0]))


class Appending(nn.Module):
    def forward(self, maps: list[Tensor]) -> Tensor:
        maps.append(maps[-1] * 2)
        return maps[0]


class GrowingList(Pair):
    """A module changes the list that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.append = Appending()

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.early(x)]
        self.append(maps)
        return self.late(sum(maps))


class Levels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {'maps': [x, self.conv(x)], 'size': x.shape, 'scale': 2}


class Containers(Pair):
    """A dict with a list goes from module to module, and the list is changed on its way."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = Levels()

    def forward(self, x: Tensor) -> Tensor:
        found = self.levels(self.early(x))
        found['maps'].append(found['maps'][0] + 1)
        return self.late(sum(found['maps']))


class Popping(Containers):
    """A plain value is taken out of what a module gave."""

    def forward(self, x: Tensor) -> Tensor:
        found = self.levels(self.early(x))
        return self.late(found['maps'][1] * found.pop('scale', 3))


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class Drawing(Pair):
    """Random numbers are drawn before and after what differs."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = Noise()

    def forward(self, x: Tensor) -> Tensor:
        return self.noise(self.late(self.noise(self.early(x))))


class Attention(nn.Module):
    """The layer that differs is never called: attention reads its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Linear(4, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.late = self.attention.out_proj
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.early(x.flatten(2).transpose(1, 2))
        return self.last(self.norm(self.attention(x, x, x)[0]))


NETWORKS = [Pair, InPlaceStatement, InPlaceSum, WrittenBehind, Shared, Borrowed, BorrowedView, GrowingList, Containers,
            Popping, Drawing, Attention]


def scaled(factor: float) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        model.late.weight = nn.Parameter(model.late.weight * factor)
    return change


def made(kind: type[nn.Module]) -> tuple[nn.Module, Forms, list[Form], Callable[[], Any]]:
    torch.manual_seed(0)
    model = kind().eval()
    forms = Forms(model)

    def run() -> Any:
        return model(torch.linspace(-1, 1, 2 * 4 * 6 * 6).reshape(2, 4, 6, 6))
    return model, forms, [forms.make(scaled(factor)) for factor in (2, 3, 4)], run


def answers(replay: Replay, forms: Forms, made_forms: list[Form], run: Callable[[], Any]) -> list[Tensor]:
    found = []
    for place, form in enumerate(made_forms):
        forms.take(form)
        torch.manual_seed(1)
        found.append(replay.replay(run) if place else replay.record(run, form.modules, form.tensors))
        assert replay.trusted
    return found


@pytest.mark.parametrize('kind', NETWORKS)
@torch.no_grad()
def test_each_form_gives_what_it_gives_alone(kind):
    model, forms, made_forms, run = made(kind)
    alone = []
    for form in made_forms:
        forms.take(form)
        torch.manual_seed(1)
        alone.append(run())
    with Replay(model).installed() as replay:
        found = answers(replay, forms, made_forms, run)
    assert all(map(torch.equal, found, alone))
    assert not torch.equal(alone[0], alone[1])


@torch.no_grad()
def test_only_what_lies_behind_is_computed_again():
    model, forms, made_forms, run = made(Pair)
    calls = []
    for name in ('early', 'late', 'last'):
        original = getattr(model, name).forward
        getattr(model, name).forward = lambda x, name=name, f=original: calls.append(name) or f(x)
    with Replay(model).installed() as replay:
        answers(replay, forms, made_forms, run)
    assert [calls.count(name) for name in ('early', 'late', 'last')] == [1, 3, 3]


@torch.no_grad()
def test_outputs_beyond_the_memory_are_computed_again():
    model, forms, made_forms, run = made(Shared)
    for bytes_held, held in ((2 * 4 * 6 * 6 * 4, 1), (2 * 2 * 4 * 6 * 6 * 4, 2), (100, 0)):
        with Replay(model, bytes_held).installed() as replay:
            forms.take(made_forms[0])
            replay.record(run, made_forms[0].modules, made_forms[0].tensors)
            assert len(replay._calls) == held


@pytest.mark.parametrize('ways', [('early last', 'last early'), ('early last', 'last early last'),
                                  ('early norm last', 'early last'), ('early', 'last')])
@torch.no_grad()
def test_a_pass_that_goes_another_way_is_reported(ways):
    class Changing(Pair):
        way = ways[0]

        def forward(self, x: Tensor) -> Tensor:
            for name in self.way.split():
                x = getattr(self, name)(x)
            return self.late(x)

    model, forms, made_forms, run = made(Changing)
    with Replay(model).installed() as replay:
        forms.take(made_forms[0])
        replay.record(run, made_forms[0].modules, made_forms[0].tensors)
        replay.replay(run)
        assert replay.trusted
        model.way = ways[1]
        replay.replay(run)
    assert not replay.trusted


def test_nothing_is_left_on_the_model():
    model, forms, made_forms, run = made(Pair)
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    with torch.no_grad(), Replay(model).installed() as replay:
        answers(replay, forms, made_forms, run)
    forms.take(None)
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == before
