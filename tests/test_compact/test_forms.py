"""Forms of one model: each is what a slimmed copy is, and the model stays itself."""
from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmprune_ext.compact.forms import Forms
from mmprune_ext.units import slim, trace_units


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU())
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def choice(model: nn.Module, **keeps: int) -> Any:
    units = trace_units(model, (12, 12))
    for name, keep in keeps.items():
        units[f'backbone.{name[1:]}'].choose(range(keep))
    return units


def test_a_form_is_the_slimmed_model(model):
    x, units = torch.rand(2, 3, 12, 12), [choice(model, _0=5), choice(model, _3=2)]
    expected = [slim(copy.deepcopy(model), chosen)(x) for chosen in units]
    forms, dense = Forms(model), model(x)
    made = [forms.make(lambda m, u=u: slim(m, u)) for u in units]
    assert torch.equal(model(x), dense)
    for place in (0, 1, 0):
        forms.take(made[place])
        assert torch.equal(model(x), expected[place])
    forms.take(None)
    assert torch.equal(model(x), dense)


def test_only_what_differs_is_held(model):
    forms = Forms(model)
    form = forms.make(lambda m: slim(m, choice(m, _3=2)))
    assert form.modules == {model.backbone[3], model.head}
    assert sorted(tuple(tensor.shape) for tensor in form.tensors) == [(2,), (2, 2, 1, 1), (2, 8, 3, 3)]


def test_what_was_replaced_by_the_same_does_not_differ(model):
    def clone(m: nn.Module) -> None:
        norm = m.backbone[1]
        norm.running_mean, norm.running_var = norm.running_mean.clone(), norm.running_var.clone() + 1
    form = Forms(model).make(clone)
    assert [name for _, _, name in form.values] == ['running_var']


def test_a_change_that_fails_leaves_the_model(model):
    before, x = copy.deepcopy(model), torch.rand(2, 3, 12, 12)

    def fail(m: nn.Module) -> None:
        slim(m, choice(m, _0=5))
        raise RuntimeError('failed')
    with pytest.raises(RuntimeError, match='failed'):
        Forms(model).make(fail)
    assert torch.equal(model(x), before(x))


def test_attributes_come_and_go(model):
    forms = Forms(model)
    form = forms.make(lambda m: setattr(m.head, 'note', 'slim'))
    assert not hasattr(model.head, 'note')
    forms.take(form)
    assert model.head.note == 'slim'
    forms.take(None)
    assert not hasattr(model.head, 'note')
