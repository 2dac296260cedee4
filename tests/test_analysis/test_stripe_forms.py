"""The choice of forms: by what, in which order, and that nothing stays changed."""
from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from mmprune_ext.analysis.stripe_forms import FEWEST, FormTimes, fastest_forms
from mmprune_ext.errors import PruningError
from mmprune_ext.ops import StripeConv2d


class Clock:
    """A clock that only the layers move: the machine may be busy.

    Attributes:
        now: In seconds.
        costs: Milliseconds of a call, by form, of each layer by the number of its filters.
        calls: Number of filters, form and input shape of each call.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.costs: dict[int, dict[str, float]] = {}
        self.calls: list[tuple[int, str, tuple[int, ...]]] = []


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    forward = StripeConv2d.forward

    def timed(layer: StripeConv2d, x: Tensor) -> Tensor:
        assert not layer.training and not torch.is_grad_enabled()
        clock.calls.append((layer.out_channels, layer.form, tuple(x.shape)))
        clock.now += clock.costs[layer.out_channels][layer.form] / 1e3
        return forward(layer, x)
    monkeypatch.setattr(StripeConv2d, 'forward', timed)
    for module in ('stripe_forms', 'latency'):
        monkeypatch.setattr(importlib.import_module(f'mmprune_ext.analysis.{module}'), 'time',
                            SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def layer(inputs: int, outputs: int, form: str = 'dense', kept: bool = True) -> StripeConv2d:
    keep = torch.zeros(outputs, 3, 3, dtype=torch.bool)
    keep[:, 1] = kept
    return StripeConv2d.from_conv(nn.Conv2d(inputs, outputs, 3, padding=1), keep, form)


def model(*outputs: int) -> nn.Sequential:
    sizes = [3, *outputs]
    return nn.Sequential(*(layer(a, b) for a, b in zip(sizes, outputs, strict=False)))


def test_the_clearly_faster_form_of_each_layer(clock):
    clock.costs = {4: dict(dense=2, stripes=1.5), 5: dict(dense=2, stripes=1.96), 6: dict(dense=2, stripes=5)}
    forms = fastest_forms(model(4, 5, 6), (3, 8, 8), batch_size=2)
    assert {path: times.form for path, times in forms.items()} == {'0': 'stripes', '1': 'dense', '2': 'dense'}
    for path, outputs in (('0', 4), ('1', 5), ('2', 6)):
        costs = clock.costs[outputs]
        assert forms[path].dense_ms == pytest.approx(costs['dense'])
        assert forms[path].stripes_ms == pytest.approx(costs['stripes'])
    assert forms['0'].to_dict() == {'form': 'stripes', 'dense_ms': forms['0'].dense_ms,
                                    'stripes_ms': forms['0'].stripes_ms}
    assert {shape for _, _, shape in clock.calls} == {(2, 3, 8, 8), (2, 4, 8, 8), (2, 5, 8, 8)}


def test_both_forms_take_turns(clock):
    clock.costs = {4: dict(dense=2, stripes=3)}
    fastest_forms(model(4), (3, 8, 8), repeats=4)
    order = ''.join(form[0] for _, form, _ in clock.calls)
    assert order == 'ds' + 'sddssdds'  # once each before, untimed; none is always the first


def test_all_stay_dense_if_the_whole_model_is_not_faster(clock):
    class Whole(nn.Module):
        """Loses more between the layers than these gain, if some are in stripes and some are not."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = model(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            if len({layer.form for layer in self.layers}) == 2:
                clock.now += 1
            return self.layers(x)
    clock.costs = {4: dict(dense=2, stripes=1), 5: dict(dense=2, stripes=3)}
    forms = fastest_forms(Whole(), (3, 8, 8))
    assert [times.form for times in forms.values()] == ['dense', 'dense']
    assert forms['layers.0'].stripes_ms == pytest.approx(1)


def test_calls_of_one_layer_add_up(clock):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused, self.empty = layer(4, 4), layer(4, 5), layer(4, 4, kept=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.empty(self.used(self.used(x)[:, :, ::2]))
    clock.costs = {4: dict(dense=2, stripes=1)}
    forms = fastest_forms(Twice(), lambda net: net(torch.zeros(1, 4, 8, 8)))
    assert forms['unused'] == forms['empty'] == FormTimes('dense', 0, 0)
    assert forms['used'].form == 'stripes'
    assert (forms['used'].dense_ms, forms['used'].stripes_ms) == pytest.approx((4, 2))


@pytest.mark.parametrize('build', [lambda: nn.Conv2d(3, 4, 3), lambda: nn.Sequential(layer(3, 4, kept=False))],
                         ids=['no layer', 'no stripe'])
def test_nothing_to_measure(clock, build: Callable[[], nn.Module]):
    net = build()
    assert fastest_forms(net) == ({} if isinstance(net, nn.Conv2d) else {'0': FormTimes('dense', 0, 0)})
    assert clock.calls == []


def test_large_models_run_fewer_times(clock):
    clock.costs = {4: dict(dense=60_000, stripes=1)}
    assert fastest_forms(model(4), (3, 8, 8), repeats=50)['0'].form == 'stripes'
    # Before the measurement once, timed, and in the comparison of the whole models: once before, timed.
    assert sum(form == 'dense' for _, form, _ in clock.calls) == 1 + FEWEST + 1 + FEWEST


def test_the_model_stays_as_it_was(clock):
    clock.costs = {4: dict(dense=2, stripes=1), 5: dict(dense=2, stripes=3)}
    net = nn.Sequential(layer(3, 4, 'dense'), nn.BatchNorm2d(4), layer(4, 5, 'stripes')).train()
    net[1].eval()
    state, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    fastest_forms(net, (3, 8, 8))
    assert [module.training for module in net] == [True, False, True]
    assert [net[0].form, net[2].form] == ['dense', 'stripes']
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in state.items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_a_model_that_does_not_run_on_the_input():
    with pytest.raises(PruningError, match='does not run on an input of shape'):
        fastest_forms(model(4), (5, 8, 8))


def test_real_times():
    net = nn.Sequential(layer(3, 4), nn.ReLU(), layer(4, 5, 'stripes'))
    forms = fastest_forms(net, (3, 16, 16), repeats=3)
    assert all(times.dense_ms > 0 and times.stripes_ms > 0 for times in forms.values())
