"""torchvision's networks, pruned whole: what is left computes what the dense one computes without the channels."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models.densenet import DenseNet
from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.ssd import SSD
from torchvision.models.vision_transformer import VisionTransformer
from torchvision.ops import FrozenBatchNorm2d

from mmprune_ext.analysis import complexity
from mmprune_ext.units import Reason, slim, trace_units
from tests.test_units.reference import assert_close, choose, outputs_of, silenced, training_step
from tests.test_units.toy_base import randomise

SIZE = (64, 64)


def stages(norm: type[nn.Module] = nn.BatchNorm2d) -> nn.Module:
    """Return two stages, of 6 and 10 channels, at a quarter and an eighth of the image."""
    def stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), norm(outputs), nn.ReLU())
    return nn.Sequential(OrderedDict(low=stage(3, 6, 4), high=stage(6, 10, 2)))


def pyramid(norm: type[nn.Module] = nn.BatchNorm2d) -> BackboneWithFPN:
    """Return a pyramid of two levels of 8 channels and a pooled one."""
    return BackboneWithFPN(stages(norm), {'low': '0', 'high': '1'}, [6, 10], 8)


class TwoMaps(nn.Module):
    """What SSD takes: maps of several widths by name."""

    out_channels = (6, 10)

    def __init__(self) -> None:
        super().__init__()
        self.stages = stages()

    def forward(self, x):
        low = self.stages.low(x)
        return OrderedDict({'0': low, '1': self.stages.high(low)})


def anchors() -> AnchorGenerator:
    return AnchorGenerator(((8,), (16,), (32,)), ((0.5, 1.0, 2.0),) * 3)


def two_stages(**others):
    return dict(rpn_anchor_generator=anchors(), box_head=TwoMLPHead(8 * 49, 12), box_predictor=FastRCNNPredictor(12, 3),
                min_size=64, max_size=64, **others)


# By name: the detector, and the channels of each unit that can be pruned, worked out by hand. The levels of a pyramid
# are one, as one head reads them all.
FPN = {'backbone.body.low.0': 6, 'backbone.body.high.0': 10, 'backbone.fpn.inner_blocks.1.0': 8}
FPN['backbone.fpn.layer_blocks.1.0'] = 8
RCNN = {**FPN, 'rpn.head.conv.0.0': 8, 'roi_heads.box_head.fc6': 12,
        'roi_heads.box_head.fc7': 12}
DETECTORS = {
    'Faster R-CNN': (lambda: FasterRCNN(pyramid(FrozenBatchNorm2d), **two_stages()), RCNN),
    'Mask R-CNN': (lambda: MaskRCNN(pyramid(), **two_stages(
        mask_head=MaskRCNNHeads(8, (6,), 1), mask_predictor=MaskRCNNPredictor(6, 5, 3))),
        {**RCNN, 'roi_heads.mask_head.0.0': 6, 'roi_heads.mask_predictor.conv5_mask': 5}),
    'Keypoint R-CNN': (lambda: KeypointRCNN(pyramid(), **two_stages(
        keypoint_head=KeypointRCNNHeads(8, (6,)), keypoint_predictor=KeypointRCNNPredictor(6, 4))),
        {**RCNN, 'roi_heads.keypoint_head.0': 6}),
    'RetinaNet': (lambda: RetinaNet(pyramid(), 3, anchor_generator=anchors(), min_size=64, max_size=64),
                  {**FPN, **{f'head.{kind}_head.conv.{i}.0': 8
                             for kind in ('classification', 'regression') for i in range(4)}}),
    'SSD': (lambda: SSD(TwoMaps(), DefaultBoxGenerator([[2], [2]]), SIZE, 3),
            {'backbone.stages.low.0': 6, 'backbone.stages.high.0': 10})}


@pytest.fixture(params=DETECTORS)
def detector(request):
    torch.manual_seed(0)
    build, units = DETECTORS[request.param]
    model = build()
    randomise(model)
    return model.eval(), units


def heads_of(model, images):
    """Return what the first heads compute in an inference as users run it."""
    seen = []
    head = model.rpn.head if hasattr(model, 'rpn') else model.head
    handle = head.register_forward_hook(lambda module, args, out: seen.append(out))
    with torch.no_grad():
        found = model(images)
    handle.remove()
    assert all({'boxes', 'labels', 'scores'} <= each.keys() for each in found)
    return outputs_of(seen)


def targets_of(images):
    return [{'boxes': torch.tensor([[4., 5., 30., 40.]]), 'labels': torch.tensor([1]),
             'masks': torch.ones(1, *SIZE, dtype=torch.uint8), 'keypoints': torch.full((1, 4, 3), 10.)} for _ in images]


def test_detectors(detector):
    """Slimmed equals silenced up to the first decision; it finds something, and learns."""
    model, expected = detector
    units = trace_units(model, SIZE, 'all')
    assert {name: unit.num_channels for name, unit in units.prunable.items()} == expected
    assert {unit.reason for unit in units.values()} <= {None, Reason.OUTPUT, Reason.DECISION}
    choose(units, 1, fewest=2)
    images = [torch.rand(3, *SIZE), torch.rand(3, 64, 48)]
    want = heads_of(silenced(model, units), images)
    slimmed = slim(copy.deepcopy(model), units)
    assert_close(heads_of(slimmed, images), want, 1e-4)
    training_step(slimmed, sum(slimmed.train()(images, targets_of(images)).values()))


def test_regions_of_a_detector_are_counted():
    """A box head of two linear layers and two outputs, on as many proposals as the detector keeps."""
    torch.manual_seed(0)
    model = FasterRCNN(pyramid(), rpn_post_nms_top_n_test=30, **two_stages())
    count = complexity(model, SIZE, flops=False)
    assert count.proposals == 30
    a_region = 8 * 49 * 12 + 12 * 12 + 12 * 3 + 12 * 12
    assert sum(macs for path, macs in count.per_layer.items() if path.startswith('roi_heads')) == 30 * a_region


def test_layers_of_training_are_reached():
    """GoogLeNet's auxiliary heads read what is pruned, in training alone."""
    torch.manual_seed(0)
    model = models.googlenet(init_weights=False, num_classes=5).eval()
    randomise(model)
    units = trace_units(model, SIZE)
    assert {name for name, unit in units.items() if not unit.prunable} == {'fc', 'aux1.fc2', 'aux2.fc2'}
    assert 'aux1.conv.conv' in {member.module for member in units['inception4a.branch1.conv'].consumers}
    choose(units, 1, fewest=2)
    slimmed = slim(model, units).train()
    training_step(slimmed, sum(out.square().mean() for out in slimmed(torch.randn(2, 3, *SIZE))))


def test_checkpointed_features():
    """DenseNet's layers read all before them, in training within a checkpoint: 8, two times 2 * 4 and 4, half of 16."""
    torch.manual_seed(0)
    model = DenseNet(4, (2, 1), 8, 2, num_classes=5, memory_efficient=True).eval()
    randomise(model)
    units = trace_units(model, SIZE)
    layers = [f'features.denseblock{i}.denselayer{j}' for i, j in ((1, 1), (1, 2), (2, 1))]
    expected = {'features.conv0': 8, 'features.transition1.conv': 8, **{f'{layer}.conv1': 8 for layer in layers},
                **{f'{layer}.conv2': 4 for layer in layers}}
    assert {name: unit.num_channels for name, unit in units.prunable.items()} == expected
    choose(units, 1)
    x = torch.randn(2, 3, *SIZE)
    want = silenced(model, units)(x)
    slimmed = slim(model, units)
    assert_close([slimmed(x)], [want], 1e-4)
    training_step(slimmed, slimmed.train()(x.requires_grad_()).square().mean())


def small_vit() -> nn.Module:
    """Return two layers of 8 channels, with 2 heads of 4 and 12 hidden channels."""
    model = VisionTransformer(32, 16, 2, 2, 8, 12, num_classes=5).eval()
    nn.init.normal_(model.heads.head.weight)
    return model


def test_vision_transformer():
    """The embedding and, in each layer, queries with keys, values, and what is hidden."""
    torch.manual_seed(0)
    model = small_vit()
    units = trace_units(model)
    assert sorted(unit.num_channels for unit in units.prunable.values()) == sorted([8, *2 * [4, 4, 12]])
    choose(units, 1)
    x = torch.randn(2, 3, 32, 32)
    want = silenced(model, units)(x)
    assert_close([slim(model, units)(x)], [want], 1e-4)
