"""Stored sizes are renewed in the modules that are meant, and in no others; the networks are among the toys."""
import copy
import pickle

import pytest
import torch
from mmpose.models.heads.heatmap_heads.cid_head import ChannelAttention as OfCID
from mmpretrain.models.backbones.hivit import Attention as OfHiViT
from torch import nn

from mmprune_ext.compact.forms import Forms
from mmprune_ext.sizes import STORED, renew_sizes
from mmprune_ext.sizes.stored import Widths
from mmprune_ext.units import slim, trace_units
from tests.test_units.test_timm import PARTS
from tests.test_units.test_torchvision import small_vit
from tests.test_units.toy_nets import TOYS

SIZED = [name for name, toy in TOYS.items() if toy.__module__.endswith('toy_sizes')]


def plain_sizes(model):
    """Return all numbers and lists of numbers that modules hold, by path and name."""
    return {(path, name): value for path, module in model.named_modules() for name, value in vars(module).items()
            if isinstance(value, int) or (isinstance(value, list) and all(isinstance(v, int) for v in value))}


@pytest.mark.parametrize('name', SIZED)
def test_sizes_of_a_dense_model_stay(name):
    """What is renewed without pruning has the values that the library's own constructor gave it."""
    model = TOYS[name].build()
    before = plain_sizes(model)
    renew_sizes(model)
    after = plain_sizes(model)
    # Equal parts are given to torch.split as one number or as a list of them.
    assert {key: value for key, value in after.items() if key[1] != 'conv_channels'} == {
        key: value for key, value in before.items() if key[1] != 'conv_channels'}


def test_all_kinds_are_among_the_toys():
    """But DaViT, whose sizes are those of Swin, and Attention2d, whose are those of AttentionCl."""
    toys = (TOYS[name].build() for name in (*SIZED, 'DecoderOfModules'))
    networks = [small_vit(), *toys, *(build() for build, *_ in PARTS.values())]
    kinds = {type(module).__name__ for network in networks for module in network.modules()}
    assert set(STORED) - {'DaViT', 'Attention2d'} <= kinds


@pytest.mark.parametrize('module', [OfHiViT(input_size=2, dim=8, num_heads=2), OfCID(8, 8)],
                         ids=['Attention', 'ChannelAttention'])
def test_other_classes_of_that_name_are_left_alone(module):
    assert type(module).__name__ in STORED
    before = dict(vars(module))
    renew_sizes(module)
    assert vars(module) == before


def test_a_form_leaves_the_lists_of_the_model():
    """Forms exchange what modules hold by name: a list that was written into would be that of all forms."""
    model = TOYS['SwinOutputs'].build()
    units = trace_units(model, TOYS['SwinOutputs'].example(1))
    units['body.stages.0.downsample.reduction'].choose(range(10))
    x = TOYS['SwinOutputs'].example()
    dense = model(x)
    forms = Forms(model)
    form = forms.make(lambda m: slim(m, units))
    assert model.body.num_features == [12, 24]
    forms.take(form)
    assert model.body.num_features == [12, 10]
    assert not torch.equal(model(x)[1], dense[1])
    forms.take(None)
    assert all(torch.equal(a, b) for a, b in zip(model(x), dense, strict=True))


def test_one_width_for_several():
    width = Widths([6, 4])
    for same in (width, copy.deepcopy(width), pickle.loads(pickle.dumps(width))):
        assert 4 == same == 6
        assert same != 5
        assert (same != 4) is False
        assert isinstance(same, int)


def test_channels_that_are_padded_like_columns():
    """DaViT pads an odd number of channels to an even one, of which its norm knows nothing."""
    net = TOYS['ChannelGroups'].build()
    units = trace_units(net, TOYS['ChannelGroups'].example(1))
    units['patch'].choose(range(7))
    assert slim(net, units).down.adaptive_padding is None
    assert isinstance(TOYS['ChannelGroups'].build().down.adaptive_padding, nn.Module)
