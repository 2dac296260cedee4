"""What is exported of a model: its shapes, fixed and dynamic, and what is refused."""
from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmprune_ext.deploy import exporting
from mmprune_ext.deploy.checking import check_shapes, compare_outputs, shapes_to_check
from mmprune_ext.deploy.exporting import export_program, require_backend, write_onnx
from mmprune_ext.deploy.passes import InferencePass, Plan, plan_of
from mmprune_ext.deploy.runtimes import open_runtime
from mmprune_ext.errors import ConfigError, PruningError

DATA = Path(__file__).resolve().parents[1] / 'data'


def build(settings: dict, scope: str) -> nn.Module:
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(settings).eval()


def model_of(name: str, scope: str) -> nn.Module:
    config = Config.fromfile(DATA / f'scenes_{name}.py')
    return build({**config.model, 'data_preprocessor': config.data_preprocessor}, scope)


def exported(model: nn.Module, folder: Path, images: torch.Tensor, dynamic=(), plan: Plan | None = None):
    plan = plan or plan_of(model, images)
    module = InferencePass(model, plan, images).eval()
    write_onnx(export_program(module, images, dynamic), list(plan.outputs), folder / 'model.onnx')
    return module, open_runtime('onnxruntime', folder), list(plan.outputs)


class Wide(nn.Module):
    """A layer for images of one size: where it is flattened, that size is fixed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(4 * 8 * 8, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(images).flatten(1))


def test_a_dynamic_batch_keeps_a_fixed_size(tmp_path):
    module, runtime, names = exported(Wide().eval(), tmp_path, torch.randn(2, 3, 8, 8), ['batch'])
    found = compare_outputs(module, runtime, [(1, 3, 8, 8), (5, 3, 8, 8)], names)
    assert max(shape['difference'] for shape in found) < 1e-5


def test_a_fixed_size_is_not_dynamic():
    """torch.export takes it for one of any height and width whose product is right."""
    images = torch.randn(2, 3, 8, 8)
    model = Wide().eval()
    module = InferencePass(model, plan_of(model, images), images)
    check_shapes(module, [(1, 3, 8, 8), (3, 3, 8, 8)])
    with pytest.raises(PruningError, match='does not run on images 1x3x40x72, in PyTorch either: .*its size is fixed'):
        check_shapes(module, shapes_to_check((1, 3, 8, 8), ['size'], 1))


def test_weights_that_are_not_used_stay_behind():
    """Auxiliary heads train a segmentor, and infer nothing."""
    model = model_of('segmentation', 'mmseg')
    images = torch.randn(1, 3, 64, 64)
    module = InferencePass(model, plan_of(model, images), images)
    assert not hasattr(module.model, 'auxiliary_head') and hasattr(model, 'auxiliary_head')
    assert {id(value) for value in module.parameters()}.isdisjoint({id(value) for value in model.parameters()})


def test_ssd_keeps_its_normalisation(tmp_path):
    """SSD scales one map by its length over the channels, which exporters have got wrong."""
    settings = dict(
        type='SingleStageDetector', backbone=dict(type='ResNet', depth=18, base_channels=8, out_indices=(1, )),
        neck=dict(type='SSDNeck', in_channels=(16, ), out_channels=(16, 32), level_strides=(2, ), level_paddings=(1, ),
                  l2_norm_scale=20),
        bbox_head=dict(type='SSDHead', in_channels=(16, 32), num_classes=3, anchor_generator=dict(
            type='SSDAnchorGenerator', scale_major=False, input_size=64, basesize_ratio_range=(0.15, 0.9),
            strides=[8, 16], ratios=[[2], [2]], min_sizes=[20, 40], max_sizes=[40, 60]),
            bbox_coder=dict(type='DeltaXYWHBBoxCoder')),
        train_cfg=dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5)),
        test_cfg=dict(nms_pre=10, nms=dict(type='nms', iou_threshold=0.45), score_thr=0.02, max_per_img=20))
    model = build(settings, 'mmdet')
    nn.init.uniform_(model.neck.l2_norm.weight, 10, 20)
    module, runtime, names = exported(model, tmp_path, torch.randn(2, 3, 64, 64), ['batch', 'size'])
    assert names == ['scores_0', 'boxes_0', 'scores_1', 'boxes_1']
    compare_outputs(module, runtime, [(1, 3, 64, 64), (3, 3, 96, 128)], names)


def test_a_two_stage_detector_is_refused_with_the_reason():
    model = model_of('detection', 'mmdet')
    with pytest.raises(ConfigError, match='FasterRCNN is a two-stage detector.*Not possible: a file of fixed or'):
        plan_of(model, torch.randn(1, 3, 64, 64))


def test_outputs_that_have_no_decoding_are_raw():
    model = model_of('retinanet', 'mmdet')
    model.test_cfg.nms.type = 'soft_nms'
    plan = plan_of(model, torch.randn(1, 3, 64, 64))
    assert plan.decoding['type'] == 'raw' and 'RetinaNet with RetinaHead' in plan.decoding['reason']
    assert len(plan.outputs) == 8  # scores and boxes of four levels


def test_an_operator_that_onnx_lacks_is_named(tmp_path):
    class Bessel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(images * self.scale)

    with pytest.raises(PruningError, match='no translation of the operator prims.bessel_j0'):
        exported(Bessel().eval(), tmp_path, torch.randn(1, 3, 8, 8))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('backend', ['onnxruntime', 'openvino'])
def test_a_backend_that_is_not_there_says_what_to_install(backend, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(exporting.importlib.util, 'find_spec', lambda name: None if name == backend else found(name))
    with pytest.raises(ConfigError, match=f'--backend {backend}: {backend} not installed; .*pip install {backend}'):
        require_backend(backend)


@pytest.mark.parametrize('broken', [
    lambda images: [images.sum(1) * 1.001], lambda images: [images.sum(1)[..., :-1]], lambda images: [],
    lambda images: [images.sum(1)] if len(images) == 1 else [images[:1].sum(1)],
    lambda images: [images.sum(1) * np.nan]], ids=['values', 'shape', 'outputs', 'batch', 'nan'])
def test_outputs_that_differ_are_found(broken):
    class Sum(nn.Module):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
            return (images.sum(1), )

    compare_outputs(Sum(), lambda images: [images.sum(1)], [(1, 3, 4, 4), (3, 3, 4, 4)], ['sum'])
    with pytest.raises(PruningError, match='not the model in PyTorch'):
        compare_outputs(Sum(), broken, [(1, 3, 4, 4), (3, 3, 4, 4)], ['sum'])


def test_a_dynamic_model_is_compared_on_other_batches_and_sizes():
    assert shapes_to_check((2, 3, 64, 96), [], 1) == [(2, 3, 64, 96)]
    assert shapes_to_check((1, 3, 64, 96), ['batch'], 1) == [(1, 3, 64, 96), (3, 3, 64, 96)]
    assert shapes_to_check((1, 3, 64, 96), ['size'], 64) == [(1, 3, 64, 96), (1, 3, 128, 224)]
