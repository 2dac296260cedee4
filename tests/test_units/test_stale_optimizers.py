"""What would train nothing is warned of: optimizers from before slimming, frozen models."""
import copy
import warnings

import pytest
import torch
from torch import nn

from mmprune_ext.units import slim, trace_units
from mmprune_ext.units.parameters.optimizers import TrainingWarning
from tests.test_units.toy_layers import Chain


@pytest.fixture
def model():
    return Chain.build()


@pytest.fixture
def units(model):
    found = trace_units(model, Chain.example())
    found['conv1'].choose(range(4))
    return found


OPTIMIZERS = {
    'SGD': lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
    'Adam': lambda model: torch.optim.Adam([dict(params=[model.conv1.weight], lr=0.1), dict(params=[model.head.bias])]),
    'AdamW': lambda model: torch.optim.AdamW(list(model.conv2.parameters()), lr=0.1)}


@pytest.mark.parametrize('kind', OPTIMIZERS)
def test_an_optimizer_from_before(model, units, kind):
    optimizer = OPTIMIZERS[kind](model)
    first = {'SGD': 'conv1.weight', 'Adam': 'conv1.weight', 'AdamW': 'conv2.weight'}[kind]
    message = (rf'an optimizer \({kind}\) was built before slim\(\): it holds \d parameters .* the first is {first}.*'
               rf'{kind}\(model\.parameters\(\), \.\.\.\)')
    with pytest.warns(TrainingWarning, match=message) as caught:
        slim(model, units)
    # What is collected as garbage may warn of files that other tests left open.
    own = [warning for warning in caught if warning.category is TrainingWarning]
    assert len(own) == 1 and own[0].filename == __file__
    assert optimizer.param_groups


def test_in_an_optim_wrapper(model, units):
    from mmengine.optim import OptimWrapper
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.warns(UserWarning, match='SGD'):
        slim(model, units)
    assert wrapper.param_groups


def test_nothing_to_warn_of(model, units):
    """One of another model, one that is gone, one of parameters that stay, one from after."""
    other = torch.optim.SGD(copy.deepcopy(model).parameters(), lr=0.1)
    torch.optim.SGD(model.parameters(), lr=0.1)
    head = torch.optim.SGD(model.head.parameters(), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        slim(model, units)
        after = torch.optim.SGD(model.parameters(), lr=0.1)
        trace_units(model, Chain.example())
    assert other.param_groups and head.param_groups and after.param_groups


def test_a_frozen_model(model, units):
    with pytest.warns(UserWarning, match=r'all \d+ parameters of the slimmed Chain are frozen .*nothing of it will be'):
        slim(model.requires_grad_(False), units)


def test_a_model_that_is_frozen_but_for_its_head(model, units):
    model.requires_grad_(False)
    nn.Module.requires_grad_(model.head, True)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        slim(model, units)
