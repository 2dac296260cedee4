"""Weights made of other parameters, masks, activations kept on modules: traced, or refused with what mends it."""
import copy
import re
import threading
import warnings
from collections import deque

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

from mmprune_ext.compact import CompactModel
from mmprune_ext.errors import TraceError
from mmprune_ext.mutators.l1_mutator import L1Mutator
from mmprune_ext.units import Reason, UnitSet, slim, trace_units
from tests.test_units.reference import assert_close, choose, outputs_of, silenced

KINDS = {'conv': lambda: nn.Conv2d(8, 8, 3, padding=1), 'depthwise': lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8),
         'grouped': lambda: nn.Conv2d(8, 8, 3, padding=1, groups=2), 'transposed': lambda: nn.ConvTranspose2d(8, 8, 1)}


class Plain(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.a, self.b, self.bn = nn.Conv2d(3, 8, 3, padding=1), layer, nn.BatchNorm2d(8)
        self.c, self.head = nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x):
        x = F.relu(self.bn(self.b(F.relu(self.a(x)))))
        return self.head(F.relu(self.c(x.movedim(1, -1))))


class Doubled(nn.Module):
    """Each place by itself."""

    def forward(self, weight):
        return weight.tanh() * 2

    def right_inverse(self, weight):
        return (weight / 2).atanh()


class Centred(nn.Module):
    """The mean of all channels goes."""

    def forward(self, weight):
        return weight - weight.mean((0, 1), keepdim=True)


class Equalised:
    """A hook of one's own that computes the weight before each pass."""

    name = 'weight'

    def __call__(self, module, inputs):
        module.weight = module.weight_orig * 0.5


def by_hook(layer):
    layer.weight_orig = layer.weight
    del layer.weight
    hook = Equalised()
    layer.register_forward_pre_hook(hook)
    hook(layer, None)
    return layer


def masked(layer):
    prune.random_unstructured(layer, 'weight', 0.3)
    prune.random_unstructured(layer, 'bias', 0.2)
    return prune.random_unstructured(layer, 'weight', 0.2)


def old_weight_norm(layer, **options):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return nn.utils.weight_norm(layer, **options)


def masked_parts(layer):
    old_weight_norm(layer)
    prune.random_unstructured(layer, 'weight_v', 0.3)
    return prune.random_unstructured(layer, 'weight_g', 0.2)


def masked_parametrization(layer):
    prune.random_unstructured(parametrizations.weight_norm(layer).parametrizations.weight, 'original1', 0.3)
    return layer


TRACED = {
    'weight_norm': old_weight_norm, 'weight_norm of inputs': lambda layer: old_weight_norm(layer, dim=1),
    'weight_norm of all': lambda layer: old_weight_norm(layer, dim=None),
    'parametrized': parametrizations.weight_norm, 'masks': masked, 'masks of a weight norm': masked_parts,
    'masks of a parametrization': masked_parametrization,
    'by place': lambda layer: parametrize.register_parametrization(layer, 'weight', Doubled())}


def build(wrap, kind='conv'):
    torch.manual_seed(0)
    return Plain(wrap(KINDS[kind]())).eval()


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('wrap', TRACED)
def test_slimmed_equals_silenced(wrap, kind):
    model, x = build(TRACED[wrap], kind), torch.randn(2, 3, 6, 6)
    model(x).sum().backward()  # what a hook has computed is then no leaf
    units = trace_units(model, (6, 6))
    assert {'a', 'c', *(() if kind == 'depthwise' else 'b')} <= set(units.prunable), [u.why() for u in units.values()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    choose(units, 1, fewest=2)
    with torch.no_grad():
        model(x)
        wanted = outputs_of(silenced(model, units)(x))
        names = [name for name, _ in model.named_parameters()]
        slimmed = slim(model, units)
        assert_close(outputs_of(slimmed(x)), wanted, 1e-5)
        assert [name for name, _ in slimmed.named_parameters()] == names
        shapes = {name: value.shape for name, value in slimmed.state_dict().items()}
        assert any(shapes[name] != value.shape for name, value in state.items() if name.startswith('b.'))
        # The compact weights load into a model that was built anew.
        again = CompactModel(build(TRACED[wrap], kind), UnitSet.from_dict(units.to_json(), 'file')).eval()
        again.load_state_dict(slimmed.state_dict())
        assert_close(outputs_of(again(x)), wanted, 1e-5)
    slimmed(x).sum().backward()
    assert slimmed.a.weight.grad is not None


REFUSED = {
    'spectral': (parametrizations.spectral_norm, "remove_parametrizations(model.get_submodule('b'), 'weight')"),
    'spectral by hook': (nn.utils.spectral_norm, "remove_spectral_norm(model.get_submodule('b'), 'weight')"),
    'orthogonal': (lambda layer: parametrizations.orthogonal(layer),
                   "remove_parametrizations(model.get_submodule('b'), 'weight')"),
    'centred': (lambda layer: parametrize.register_parametrization(layer, 'weight', Centred()),
                "remove_parametrizations(model.get_submodule('b'), 'weight')"),
    'hook': (by_hook, "model.get_submodule('b').weight = torch.nn.Parameter(")}


@pytest.mark.parametrize('wrap', REFUSED)
def test_refused_with_the_remedy(wrap):
    function, remedy = REFUSED[wrap]
    model, x = build(function), torch.randn(2, 3, 6, 6)
    units = trace_units(model, (6, 6))
    assert {name: unit.reason for name, unit in units.items()} == {
        'a': Reason.WEIGHT, 'b': Reason.WEIGHT, 'c': None, 'head': Reason.OUTPUT}
    assert remedy in units['a'].detail and ' of b' in units['a'].detail, units['a'].detail
    wanted = model(x)
    exec(re.search(r'; (.*) makes it plain', units['a'].detail)[1])  # the line does what it says
    assert_close(outputs_of(model(x)), outputs_of(wanted), 1e-4)
    assert set(trace_units(model, (6, 6)).prunable) == {'a', 'b', 'c'}


class Keeps(nn.Module):
    """Stores activations on itself, alone and in containers."""

    def __init__(self):
        super().__init__()
        self.a, self.head, self.seen, self.by_name = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1), [], {}

    def forward(self, x):
        self.feature = F.relu(self.a(x))
        self.seen, self.by_name['last'] = [self.feature, (self.feature * 2,)], self.feature
        return self.head(self.feature)


def test_activations_kept_on_modules():
    model, x = Keeps(), torch.randn(2, 3, 6, 6)
    model(x).sum().backward()
    with pytest.raises(RuntimeError):
        copy.deepcopy(model)
    feature = model.feature
    units = trace_units(model, (6, 6))
    assert model.feature is feature and list(units.prunable) == ['a']
    units['a'].choose([0, 3])
    with torch.no_grad():
        model(x)
        wanted = outputs_of(silenced(model, units)(x))
        assert_close(outputs_of(slim(model, units)(x)), wanted, 1e-6)


def test_scores_are_of_the_weights_as_they_are():
    """Weights were loaded since the last pass: what a hook computed then is not what it computes now."""
    model = build(old_weight_norm)
    mutator = L1Mutator('all', (6, 6))
    mutator.prepare(model)
    with torch.no_grad():
        model.b.weight_g.copy_(torch.arange(1.0, 9.0).view(-1, 1, 1, 1))
    weights = model.b.weight_g * model.b.weight_v / model.b.weight_v.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(mutator.scores(model)['b'].float(), weights.detach().abs().sum((1, 2, 3)))


ATTENTION = {
    'masks': lambda layer: prune.random_unstructured(layer, 'in_proj_weight', 0.3),
    'weight norm': lambda layer: old_weight_norm(layer, name='in_proj_weight'),
    'parametrized': lambda layer: parametrizations.spectral_norm(layer, 'in_proj_weight')}


@pytest.mark.parametrize('kind', ATTENTION)
def test_attention_whose_weight_is_computed_is_refused_with_the_remedy(kind):
    model = nn.Sequential(nn.Linear(3, 8), OfItself(), nn.Linear(8, 2))
    ATTENTION[kind](model[1].attention)
    units = trace_units(model, torch.randn(1, 5, 3))
    assert units['0'].reason is Reason.WEIGHT
    exec(re.search(r'; (.*) makes it plain', units['0'].detail)[1])
    assert {'0', '1.attention.out_proj'} <= set(trace_units(model, torch.randn(1, 5, 3)).prunable)


class OfItself(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]


class Kept:
    """An object of a user's own, with and without a place for what it holds."""

    __slots__ = ('__dict__', 'value')

    def __init__(self, value, other):
        self.value, self.other = value, {'more': (other,)}


def test_activations_kept_in_objects():
    model, x = Keeps(), torch.randn(2, 3, 6, 6)
    feature = model.a(x)
    model.queue, model.kept = deque([feature * 2]), Kept(Kept(feature, feature * 3), feature)
    units = trace_units(model, (6, 6))
    assert list(units.prunable) == ['a'] and model.kept.value.value is feature


def test_what_cannot_be_copied_is_named_with_the_line_that_helps():
    model = nn.Sequential(Keeps(), nn.Conv2d(2, 2, 1))
    model[0].lock = threading.Lock()
    with pytest.raises(TraceError, match='"lock" of 0 is a lock .*cannot pickle') as caught:
        trace_units(model, (6, 6))
    exec(re.search(r'; (.*) before helps', str(caught.value))[1])
    assert '0.a' in trace_units(model, (6, 6)).prunable
