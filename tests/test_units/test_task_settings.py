"""Settings of task configs: frozen stages, norm_eval, SyncBN, checkpointing, pretrained weights."""

import copy
import socket

import pytest
import torch
from mmengine.registry import MODELS
from mmengine.runner import checkpoint
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmprune_ext.compact import CompactModel
from mmprune_ext.units import slim, trace_units
from mmprune_ext.units.demo_inputs import eval_pass
from mmprune_ext.units.task_samples import data_samples
from tests.test_units.reference import choose, silenced, training_step
from tests.test_units.test_task_models import SIZES, compare_modes, settle, task_config

pytestmark = pytest.mark.e2e

NETWORKS = {'detector': ('mmdet', 'retinanet/retinanet_r18_fpn_1x_coco.py'),
            'segmentor': ('mmseg', 'fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py')}
# A stem of three convolutions lies in the first stage of ResNet-V1c.
FROZEN = {'detector': ('backbone.conv1', 'backbone.bn1', 'backbone.layer1'),
          'segmentor': ('backbone.stem', 'backbone.layer1')}


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    """Fail where anything is fetched."""
    def refuse(*args, **kwargs):
        raise AssertionError('the network was asked')
    monkeypatch.setattr(socket.socket, 'connect', refuse)
    monkeypatch.setattr(checkpoint, 'load_url', refuse)


def network(kind, **backbone):
    """Return a small detector's or segmentor's config, a model of it, and its image size."""
    library, path = NETWORKS[kind]
    model = task_config(library, path)
    if kind == 'segmentor':
        model.backbone.depth = 18
        for head in (model.decode_head, model.auxiliary_head):
            head.in_channels, head.channels = head.in_channels // 4, 32
        if 'init_cfg' in backbone:
            model.pretrained = None  # mmseg takes only one of the two
    model.backbone.update(backbone)
    torch.manual_seed(0)
    return model, MODELS.build(copy.deepcopy(model)), SIZES[library]  # mmseg changes its config


def compact_forms(config, model, size):
    """Return the model slimmed in place, and the compact model that its unit file builds."""
    units = trace_units(model, size)
    assert units.prunable
    choose(units, 1, fewest=2)
    return slim(copy.deepcopy(model), units), CompactModel(config, units.to_json())


def step_with_truth(model, images):
    """Do one training step with ground truth, in the modes that the modules are in."""
    losses = model(images, data_samples(model, images), mode='loss')
    training_step(model, sum(torch.stack(tuple(value)).sum() if isinstance(value, list) else value
                             for key, value in losses.items() if 'loss' in key))


def gradient_flags(model):
    return {name: p.requires_grad for name, p in model.named_parameters()}


def norm_modes(model):
    return {name: m.training for name, m in model.named_modules() if isinstance(m, _BatchNorm)}


@pytest.mark.parametrize('kind', NETWORKS)
def test_frozen_stages(kind):
    """What is frozen in the dense model is frozen in the compact one, and train() keeps it so."""
    config, model, size = network(kind, frozen_stages=1, norm_eval=False)
    forms = compact_forms(config, model, size)
    for compact in forms:  # before train(), which freezes anew
        assert gradient_flags(compact) == gradient_flags(model)
    model.train()
    for compact in forms:
        compact.train()
        assert gradient_flags(compact) == gradient_flags(model)
        assert norm_modes(compact) == norm_modes(model)
        for name, trainable in gradient_flags(compact).items():
            assert trainable != name.startswith(FROZEN[kind]), name
        for name, training in norm_modes(compact).items():
            assert training != name.startswith(FROZEN[kind]), name


@pytest.mark.parametrize('kind', NETWORKS)
def test_frozen_values_stay(kind):
    """A training step moves what is not frozen, and nothing that is."""
    config, model, size = network(kind, frozen_stages=1, norm_eval=True)
    compact = compact_forms(config, model, size)[1]
    compact.train()
    before = {name: value.clone() for name, value in compact.state_dict().items()}
    images = torch.randn(2, 3, *size)
    step_with_truth(compact, images)
    after = compact.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert not [name for name in moved if name.startswith(FROZEN[kind])]
    # norm_eval: the backbone's statistics are those that were loaded
    assert not [name for name in moved if name.startswith('backbone.') and 'running' in name]


@pytest.mark.parametrize('kind', NETWORKS)
def test_synchronised_batch_norm(kind):
    """Without a process group it is traced, pruned and compared like plain batch normalisation."""
    config, model, size = network(kind, norm_cfg=dict(type='SyncBN', requires_grad=True))
    units = trace_units(model, size)
    plain = trace_units(network(kind, norm_cfg=dict(type='BN', requires_grad=True))[1], size)
    assert list(units.prunable) == list(plain.prunable)
    settle(model, eval_pass(model, size))
    choose(units, 1, fewest=2)
    slimmed = slim(copy.deepcopy(model), units)
    compare_modes(silenced(model, units), slimmed, size)
    for compact in (slimmed, CompactModel(config, units.to_json())):
        norms = [m for m in compact.backbone.modules() if isinstance(m, _BatchNorm)]
        assert norms
        assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
        assert [n.num_features for n in norms] == [len(n.running_mean) for n in norms]


@pytest.mark.parametrize('kind', NETWORKS)
def test_checkpointed_blocks(kind):
    """``with_cp`` changes neither the units nor that the compact model trains."""
    config, model, size = network(kind, with_cp=True, frozen_stages=-1)
    units = trace_units(model, size)
    plain = trace_units(network(kind, with_cp=False, frozen_stages=-1)[1], size)
    assert units.to_json()['units'] == plain.to_json()['units']
    choose(units, 1, fewest=2)
    compact = CompactModel(config, units.to_json())
    for module in compact.modules():
        module.training = True
    images = torch.randn(2, 3, *size)
    step_with_truth(compact, images)


@pytest.mark.parametrize('init_cfg', [
    None,  # as it ships: torchvision's weights, in mmseg by the key ``pretrained``
    dict(type='Pretrained', checkpoint='torchvision://resnet18'),
    [dict(type='Pretrained', checkpoint='https://download.openmmlab.com/r18.pth', prefix='backbone.'),
     dict(type='Constant', val=1, layer='BatchNorm2d')],
])
@pytest.mark.parametrize('kind', NETWORKS)
def test_pretrained_weights_are_not_fetched(kind, init_cfg):
    """Neither when tracing nor when a compact model is built and initialised: sizes differ there."""
    config, model, size = network(kind, **({} if init_cfg is None else {'init_cfg': init_cfg}))
    _, compact = compact_forms(config, model, size)
    compact.init_weights()
    assert 'Pretrained' not in str(compact.backbone.init_cfg)
    with pytest.raises(AssertionError, match='the network was asked'):
        model.init_weights()
