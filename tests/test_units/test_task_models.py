"""Detectors, segmentors and pose estimators, from the configs that their libraries ship."""

import copy
import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch.nn.modules.batchnorm import _BatchNorm

from mmprune_ext.units import Reason, slim, trace_units
from mmprune_ext.units.checking.decisions import Decisions
from mmprune_ext.units.demo_inputs import eval_pass
from mmprune_ext.units.labels import tensors_in
from mmprune_ext.units.task_samples import data_samples
from tests.test_units.reference import assert_close, choose, silenced, training_step
from tests.test_units.toy_base import randomise

pytestmark = pytest.mark.e2e

# Library, config, channels of the backbone that can be pruned. A ResNet-50 has 11456 (see test_zoo)
# whatever stands on it, V1c's stem of three convolutions 64 more; None where that is not by hand.
POSE = 'body_2d_keypoint'
MODELS_OF_TASKS = {
    # 12 units: 8 inner convolutions, 4 stages
    'RetinaNet-R18': ('mmdet', 'retinanet/retinanet_r18_fpn_1x_coco.py', 2880),
    'FasterRCNN': ('mmdet', 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', 11456),
    'FasterRCNN-DCN': ('mmdet', 'dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py', 11456),
    'MaskRCNN': ('mmdet', 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', 11456),
    'FCOS': ('mmdet', 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', 11456),
    'RTMDet': ('mmdet', 'rtmdet/rtmdet_tiny_8xb32-300e_coco.py', None),
    'YOLOX': ('mmdet', 'yolox/yolox_tiny_8xb8-300e_coco.py', None),
    'FCN': ('mmseg', 'fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py', 11456 + 64),
    'PSPNet': ('mmseg', 'pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py', 11456 + 64),
    'DeepLabV3+': ('mmseg', 'deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024.py',
                   11456 + 64),
    'UPerNet': ('mmseg', 'upernet/upernet_r50_4xb2-40k_cityscapes-512x1024.py', 11456 + 64),
    'PointRend': ('mmseg', 'point_rend/pointrend_r50_4xb2-80k_cityscapes-512x1024.py', 11456 + 64),
    'SegFormer': ('mmseg', 'segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py', None),
    'Pose-R50': ('mmpose', f'{POSE}/topdown_heatmap/coco/td-hm_res50_8xb64-210e_coco-256x192.py',
                 11456),
    'Pose-HRNet': ('mmpose',
                   f'{POSE}/topdown_heatmap/coco/td-hm_hrnet-w32_8xb64-210e_coco-256x192.py', None),
    'SimCC-R50': ('mmpose', f'{POSE}/simcc/coco/simcc_res50_8xb64-210e_coco-256x192.py', 11456),
    'RTMPose': ('mmpose', f'{POSE}/rtmpose/coco/rtmpose-t_8xb256-420e_coco-256x192.py', None),
    # A head of its own, which holds no codec; a head that runs on data samples alone.
    'YOLOXPose': ('mmpose', f'{POSE}/yoloxpose/coco/yoloxpose_tiny_4xb64-300e_coco-416.py', None),
    'MaskFormer': ('mmseg', 'maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512.py', 11456),
}
# Pose codecs fix their image size; the others run on any.
SIZES = {'mmdet': (128, 160), 'mmseg': (64, 128), 'mmpose': (256, 192)}


def task_config(library, path):
    """Return the config of a model that a library ships."""
    package = pytest.importorskip(library)
    importlib.import_module(f'{library}.utils').register_all_modules(init_default_scope=True)
    init_default_scope(library)
    config = Config.fromfile(Path(package.__file__).parent / '.mim' / 'configs' / path)
    if 'data_preprocessor' in config and 'data_preprocessor' not in config.model:
        config.model.data_preprocessor = config.data_preprocessor
    return config.model


def task_model(library, path):
    """Build a model from a config that its library ships."""
    return MODELS.build(task_config(library, path))


def settle(model, forward):
    """Make all layers count, and let batch statistics fit the activations."""
    randomise(model)
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    for module in model.modules():
        module.training = False
    handles = [norm.register_forward_pre_hook(_take) for norm in norms]
    with torch.no_grad():
        forward(model)
    for handle in handles:
        handle.remove()


def _take(norm, args):
    x = args[0].transpose(0, 1).flatten(1)
    if x.shape[1] > 3:
        norm.running_mean.copy_(x.mean(1))
        norm.running_var.copy_(x.var(1).clamp_min(0.1))


@pytest.mark.parametrize('name', MODELS_OF_TASKS)
def test_task_model(name):
    library, path, channels = MODELS_OF_TASKS[name]
    size = SIZES[library]
    torch.manual_seed(0)
    model = task_model(library, path)
    units = trace_units(model, size)
    prunable = units.prunable.values()
    assert prunable
    assert all(unit.name.startswith('backbone.') for unit in prunable)
    if channels is not None:
        assert sum(unit.num_channels for unit in prunable) == channels
    settle(model, eval_pass(model, size))
    choose(units, 1, fewest=2)
    slimmed = slim(copy.deepcopy(model), units)
    compare_modes(silenced(model, units), slimmed, size)
    del model
    check_runs(slimmed, size)


# The first units of neck and heads that are prunable on request: at least these.
BEYOND_THE_BACKBONE = {
    # the four lateral convolutions' sum, one level's output, the shared head's towers
    'RetinaNet-R18': ('neck.lateral_convs.0.conv', 'neck.fpn_convs.0.conv',
                      'bbox_head.cls_convs.0.conv', 'bbox_head.reg_convs.3.conv'),
    'FasterRCNN': ('neck.lateral_convs.0.conv', 'neck.fpn_convs.0.conv', 'rpn_head.rpn_conv',
                   'roi_head.bbox_head.shared_fcs.0', 'roi_head.bbox_head.shared_fcs.1'),
    'FCN': ('decode_head.convs.0.conv', 'decode_head.conv_cat.conv', 'auxiliary_head.convs.0.conv'),
    'PointRend': ('neck.lateral_convs.0.conv', 'decode_head.0.scale_heads.0.0.conv',
                  'decode_head.1.fcs.0.conv'),
    'Pose-R50': ('head.deconv_layers.0', 'head.deconv_layers.6'),
}


@pytest.mark.parametrize('name', BEYOND_THE_BACKBONE)
def test_neck_and_heads_on_request(name):
    library, path, channels = MODELS_OF_TASKS[name]
    size = SIZES[library]
    torch.manual_seed(0)
    model = task_model(library, path)
    units = trace_units(model, size, scope='all')
    assert {unit: units[unit].reason for unit in BEYOND_THE_BACKBONE[name]} == dict.fromkeys(
        BEYOND_THE_BACKBONE[name])
    inside = [u.num_channels for u in units.prunable.values() if u.name.startswith('backbone.')]
    assert sum(inside) == channels
    settle(model, eval_pass(model, size))
    choose(units, 3, fewest=2)
    slimmed = slim(copy.deepcopy(model), units)
    compare_modes(silenced(model, units), slimmed, size)
    check_runs(slimmed, size)


def test_neck_without_heads():
    library, path, _ = MODELS_OF_TASKS['RetinaNet-R18']
    units = trace_units(task_model(library, path), SIZES[library], scope=['backbone', 'neck'])
    prunable = {unit.name.split('.')[0] for unit in units.prunable.values()}
    assert prunable == {'backbone', 'neck'}
    assert units['bbox_head.cls_convs.0.conv'].reason is Reason.OUT_OF_SCOPE


def compare_modes(reference, slimmed, size):
    """Compare forward, prediction and losses: what only training or only inference reads counts too.

    Losses are taken with all normalisation and dropout as in inference, so that they depend on the
    values and the random numbers alone.
    """
    for name, forward in passes(slimmed, size).items():
        decisions = Decisions()
        with torch.no_grad():
            with decisions.recorded():
                want = run(forward, reference)
            with decisions.replayed():
                got = run(forward, slimmed)
        real = [i for i, tensor in enumerate(want) if tensor.is_floating_point() and tensor.numel()]
        assert len(want) == len(got), name
        # Decoded boxes are exponentials of the outputs, of which rounding errors come out larger on some processors.
        assert_close([got[i] for i in real], [want[i] for i in real], 1e-3 if name == 'predict' else 1e-4)


def passes(model, size):
    """Return the forward passes in which two models are compared, by name."""
    images = torch.randn(2, 3, *size)
    samples = data_samples(model, images)

    def mode(name):
        return lambda m: m(images, copy.deepcopy(samples), mode=name)
    return {'tensor': eval_pass(model, size), 'predict': mode('predict'), 'loss': mode('loss')}


def run(forward, model):
    """Return the outputs of a pass with the same random numbers each time."""
    torch.manual_seed(2), np.random.seed(2)
    return tensors_in(forward(model))


def check_runs(model, size):
    """Predict, then train for one step with ground truth."""
    images = torch.randn(2, 3, *size)
    samples = data_samples(model, images)
    with torch.no_grad():
        results = model(images, copy.deepcopy(samples), mode='predict')
    assert len(results) == 2
    for module in model.modules():
        module.training = True
    losses = model(images, samples, mode='loss')
    parts = [v for key, value in losses.items() if 'loss' in key
             for v in (value if isinstance(value, (list, tuple)) else [value])]
    training_step(model, sum(part.mean() for part in parts))
