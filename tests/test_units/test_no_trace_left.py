"""Tracing reads a model and leaves it, and the process around it, exactly as they were."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from mmprune_ext.errors import PruningError, TraceError
from mmprune_ext.units import Reason, slim, trace_units
from mmprune_ext.units.tracing.trace import _restored
from tests.test_units.toy_base import Wrapped
from tests.test_units.toy_nets import TOYS, toy_code, toy_layers

HOOKS = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks',
         '_state_dict_hooks', '_load_state_dict_pre_hooks')


def snapshot(model):
    """Return everything about a model that tracing might change."""
    state = {}
    for path, module in model.named_modules():
        state[path, 'flag'] = module.training
        state[path, 'hooks'] = [dict(getattr(module, name)) for name in HOOKS]
        state[path, 'type'] = type(module)
        state[path, 'attributes'] = {key: value for key, value in vars(module).items()
                                     if not key.startswith('_')}
        state[path, 'names'] = sorted(vars(module))
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        state[name, 'object'] = id(value)
        state[name, 'values'] = value.detach().clone().tolist()
        state[name, 'version'] = value._version
        state[name, 'requires_grad'] = value.requires_grad
        state[name, 'grad'] = value.grad
        state[name, 'extra'] = sorted(vars(value)) if hasattr(value, '__dict__') else []
    return state


def random_state():
    """Return the states of all random number generators as comparable values."""
    numpy_state = np.random.get_state()
    return (torch.get_rng_state().tolist(), numpy_state[1].tolist(), numpy_state[2],
            random.getstate())


@pytest.mark.parametrize('name', ['Chain', 'RefreezingTrain', 'TrainingBranch', 'NoisyForward',
                                  'TokensWithEmbedding', 'InPlace', 'OptionA', 'PlainBN'])
def test_model_and_random_state(name):
    model = TOYS[name].build()
    for number, module in enumerate(model.modules()):
        module.training = number % 2 == 0  # a mixture that no train() or eval() would leave
    next(model.parameters()).grad = None
    torch.manual_seed(3), np.random.seed(4), random.seed(5)
    before, state = snapshot(model), random_state()
    trace_units(model, TOYS[name].example(1))
    assert random_state() == state
    assert snapshot(model) == before


def test_input_and_gradients():
    """The demo input, gradients in flight and the gradient mode are untouched."""
    model, x = toy_layers.Chain.build(), toy_layers.Chain.example(1)
    model(x).sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    values, version = x.clone(), x._version
    trace_units(model, x)
    assert torch.equal(x, values)
    assert x._version == version
    assert not vars(x)
    assert torch.is_grad_enabled()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_autograd_function_is_restored():
    original = torch.autograd.Function.__dict__['apply']
    trace_units(toy_code.CustomFunction.build(), toy_code.CustomFunction.example(1))
    assert torch.autograd.Function.__dict__['apply'] is original


def test_state_after_training_passes():
    """What training writes is put back: values, tensors that it replaces, and buffers that it makes."""
    net = TOYS['OwnLoading'].build()
    objects = {name: id(value) for name, value in [*net.named_parameters(), *net.named_buffers()]}
    values = {name: value.clone() for name, value in net.state_dict().items()}
    with _restored(net):
        net.stem[1].running_mean += 1
        net.a[1].running_var = torch.ones(6)
        net.calls = torch.ones(3)
        net.register_buffer('more', torch.ones(3))
        net.scale.data = torch.zeros(2)
    assert {name: id(value) for name, value in [*net.named_parameters(), *net.named_buffers()]} == objects
    assert net.calls is None
    assert all(torch.equal(value, values[name]) for name, value in net.state_dict().items())


class Failing(Wrapped):
    """Runs up to the head, then fails."""

    def make(self) -> None:
        self.width = 8

    def middle(self, x):
        raise RuntimeError('the moon is not full')


def test_after_a_failure():
    """A model that fails in the middle of tracing is left as it was too."""
    model = Failing.build()
    original = torch.autograd.Function.__dict__['apply']
    before, state = snapshot(model), random_state()
    with pytest.raises(TraceError, match=r'Failing does not run on its demo inputs: RuntimeError: '
                                         r'the moon is not full\. Give demo_inputs'):
        trace_units(model, Failing.example(1))
    assert snapshot(model) == before
    assert random_state() == state
    assert torch.autograd.Function.__dict__['apply'] is original


class WithoutTensors(Wrapped):
    """What comes out cannot be compared."""

    def forward(self, x):
        return {'mean': float(super().forward(x).mean())}

    def middle(self, x):
        return x


def test_output_without_tensors():
    with pytest.raises(TraceError, match='WithoutTensors returned no tensor'):
        trace_units(WithoutTensors.build(), WithoutTensors.example(1))


def test_wrong_demo_inputs():
    model = toy_layers.Chain.build()
    with pytest.raises(PruningError, match=r'demo_inputs should be a tensor .* got \(1, 2, 3, 4\)'):
        trace_units(model, (1, 2, 3, 4))
    with pytest.raises(TraceError, match='Chain does not run on its demo inputs'):
        trace_units(model, torch.randn(1, 4, 8, 8))


@pytest.mark.parametrize('inputs', [(8, 8), (3, 8, 8), {'x': toy_layers.Chain.example(1)},
                                    lambda model: model(toy_layers.Chain.example(1))])
def test_kinds_of_demo_inputs(inputs):
    model = toy_layers.Chain.build()
    assert list(trace_units(model, inputs).prunable) == ['conv1', 'conv2']


class Whole(nn.Module):
    """Backbone, neck and head."""

    def __init__(self):
        super().__init__()
        self.backbone = toy_layers.Chain()
        self.neck, self.head = nn.Conv2d(5, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        return self.head(self.neck(self.backbone(x)).relu())


def test_scope():
    whole, x = Whole(), toy_layers.Chain.example(1)
    reasons = {name: unit.reason for name, unit in trace_units(whole, x).items()}
    assert reasons == {'backbone.conv1': None, 'backbone.conv2': None, 'backbone.head': None,
                       'neck': Reason.OUT_OF_SCOPE, 'head': Reason.OUTPUT}
    assert list(trace_units(whole, x, scope='neck').prunable) == ['neck']
    assert list(trace_units(whole, x, scope='all').prunable) == [
        'backbone.conv1', 'backbone.conv2', 'backbone.head', 'neck']
    with pytest.raises(PruningError, match='scope: Whole has no submodule "nek"; choose from all, '
                                           'backbone, neck, head'):
        trace_units(whole, x, scope='nek')


def test_tracing_twice_gives_the_same():
    net, x = TOYS['ProjectedBlocks'].build(), TOYS['ProjectedBlocks'].example(1)
    assert trace_units(net, x).to_json() == trace_units(copy.deepcopy(net), x).to_json()


def test_slimmed_model_can_be_traced_and_slimmed_again():
    """A compact model is a model like any other."""
    toy = TOYS['DenseConcat']
    net = toy.build()
    for expected in (8, 5, 3):
        units = trace_units(net, toy.example(1))
        assert units['stem.0'].num_channels == expected
        if expected > 3:
            units['stem.0'].choose(range({8: 5, 5: 3}[expected]))
            slim(net, units)
    assert net.stem[0].weight.shape[0] == 3
