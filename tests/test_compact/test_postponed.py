"""Random initialisation that is put off until a network is slim."""

import pytest
import torch
from torch import nn

from mmprune_ext.compact import CompactModel
from mmprune_ext.compact.compact_model import postponed_initialisation
from mmprune_ext.units import trace_units


class Net(nn.Module):
    """Layers with default values, and one that the network itself gives special ones."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 64, 3)
        self.special = nn.Linear(64, 32)
        nn.init.constant_(self.special.bias, 7.)
        self.last = nn.Linear(32, 4)

    def forward(self, x):
        return self.last(self.special(self.first(x).mean((2, 3))).relu())


def test_layers_are_left_without_values_and_get_them_after():
    with postponed_initialisation() as postponed:
        net = Net()
    assert postponed == [net.first, net.last]
    for layer in postponed:
        layer.reset_parameters()
    # The bounds of PyTorch's default: 1 / sqrt(fan in)
    assert 0.9 * 27 ** -0.5 < float(net.first.weight.abs().max()) <= 27 ** -0.5
    assert 0.8 * 32 ** -0.5 < float(net.last.weight.abs().max()) <= 32 ** -0.5


def test_special_values_stay():
    with postponed_initialisation():
        net = Net()
    assert net.special.bias.tolist() == [7.] * 32
    assert 0.9 / 8 < float(net.special.weight.abs().max()) <= 1 / 8


def test_layers_initialise_as_usual_afterwards():
    with pytest.raises(ZeroDivisionError), postponed_initialisation():
        raise ZeroDivisionError
    assert float(nn.Conv2d(3, 64, 3).weight.abs().max()) <= 27 ** -0.5


def test_compact_model_draws_for_the_slim_widths():
    from mmprune_ext.registry import MODELS
    MODELS.register_module('PostponedNet', module=Net, force=True)
    units = trace_units(Net(), (16, 16))
    units['special'].choose(range(8))
    torch.manual_seed(0)
    model = CompactModel({'type': 'mmprune_ext.PostponedNet'}, units)
    # Four of 32 inputs are left: the bound is that of the layer as it is now.
    assert model.last.weight.shape == (4, 8)
    assert 32 ** -0.5 < float(model.last.weight.abs().max()) <= 8 ** -0.5
    assert model.special.bias.tolist() == [7.] * 8


def test_a_compact_config_resumes_exactly():
    from mmengine.config import Config

    from mmprune_ext.compact.export import compact_config
    seeded = {'type': 'mmprune_ext.EpochSeedHook'}
    for hooks in ([], [seeded], [{'type': 'mmprune_ext.PruningHook'}]):
        config = compact_config(Config({'custom_hooks': hooks}), {'type': 'Net'})
        assert config.custom_hooks == [seeded]
