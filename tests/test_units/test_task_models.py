"""Detectors, segmentors and pose estimators, from the configs that their libraries ship."""

import copy
import importlib
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch.nn.modules.batchnorm import _BatchNorm

from mmprune_ext.units import slim, trace_units
from mmprune_ext.units.decisions import Decisions
from mmprune_ext.units.demo_inputs import eval_pass
from mmprune_ext.units.task_samples import data_samples
from mmprune_ext.units.tracer import tensors_in
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
}
# Pose codecs fix their image size; the others run on any.
SIZES = {'mmdet': (128, 160), 'mmseg': (64, 128), 'mmpose': (256, 192)}


def task_model(library, path):
    """Build a model from a config that its library ships."""
    package = pytest.importorskip(library)
    importlib.import_module(f'{library}.utils').register_all_modules(init_default_scope=True)
    init_default_scope(library)
    config = Config.fromfile(Path(package.__file__).parent / '.mim' / 'configs' / path)
    if 'data_preprocessor' in config and 'data_preprocessor' not in config.model:
        config.model.data_preprocessor = config.data_preprocessor
    return MODELS.build(config.model)


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
    forward = eval_pass(model, size)
    settle(model, forward)
    choose(units, 1, fewest=2)
    decisions = Decisions()
    with torch.no_grad():
        with decisions.recorded():
            want = tensors_in(forward(silenced(model, units)))
        slimmed = slim(copy.deepcopy(model), units)
        del model
        with decisions.replayed():
            got = tensors_in(forward(slimmed))
    real = [i for i, tensor in enumerate(want) if tensor.is_floating_point() and tensor.numel()]
    assert len(want) == len(got)
    assert_close([got[i] for i in real], [want[i] for i in real], 1e-4)
    check_runs(slimmed, size)


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
