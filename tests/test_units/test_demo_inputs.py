"""Demo inputs: sizes from configs, hooks of the user's own, regions of two-stage detectors."""
import sys
from types import ModuleType

import pytest
import torch
from mmengine.registry import FUNCTIONS
from torch import nn

from mmprune_ext.analysis import complexity, latency
from mmprune_ext.errors import PruningError, TraceError
from mmprune_ext.units import slim, trace_units
from mmprune_ext.units.demo_inputs import (
    counting_inputs,
    image_shape,
    image_size_from_config,
    tracing_inputs,
)
from mmprune_ext.units.passes.regions import spread_boxes
from mmprune_ext.units.task_samples import (
    Regions,
    _pose,
    data_samples,
    regions_of,
    tensor_pass,
)

# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize(('transform', 'size'), [
    # mmcv and mmpose name the width first, crops the height.
    (dict(type='Resize', scale=(64, 32)), (32, 64)),
    (dict(type='mmpose.TopdownAffine', input_size=(192, 256), use_udp=True), (256, 192)),
    (dict(type='BottomupResize', input_size=(640, 512)), (512, 640)),
    (dict(type='BottomupRandomAffine', input_size=(640, 512)), (512, 640)),
    (dict(type='CenterCrop', crop_size=224), (224, 224)),
    (dict(type='RandomCrop', crop_size=(30, 40)), (30, 40)),
    (dict(type='RandomResizedCrop', scale=96), (96, 96)),
    (dict(type='Pad', size=(48, 80)), (48, 80)),
    (dict(type='Resize', scale=(0, 32)), None),
    (dict(type='RandomFlip', size=(1, 2)), None),
])
def test_size_of_a_pipeline(transform, size):
    config = dict(test_dataloader=dict(dataset=dict(pipeline=[transform])))
    assert image_size_from_config(config) == size


def detection(**settings):
    pipeline = [dict(type='Resize', scale=(1333, 800), keep_ratio=True)]
    return dict(default_scope='mmdet', test_dataloader=dict(dataset=dict(pipeline=pipeline)),
                **settings)


@pytest.mark.parametrize('place', ['model', 'architecture', 'top'])
def test_size_is_padded_as_batches_are(place):
    padded = dict(data_preprocessor=dict(pad_size_divisor=32))
    model = {'model': padded, 'architecture': dict(architecture=padded), 'top': {}}[place]
    config = detection(model=model, **(padded if place == 'top' else {}))
    assert image_size_from_config(config) == (800, 1344)


def test_small_images_trace_and_full_ones_count():
    config = detection(model=dict(mutator=dict(demo_inputs=[96, 128])))
    assert (tracing_inputs(config), counting_inputs(config)) == ((96, 128), (800, 1333))
    assert tracing_inputs(config, (64, 64)) == counting_inputs(config, [64, 64]) == (64, 64)
    assert tracing_inputs(detection()) == (192, 320)
    assert tracing_inputs({}) is counting_inputs({}) is None
    assert counting_inputs(dict(demo_inputs=[32, 48])) == (32, 48)


@pytest.mark.parametrize('config', [
    dict(demo_inputs=dict(type='tokens')), dict(model=dict(mutator=dict(demo_inputs=dict(type='tokens'))))])
def test_a_hook_is_needed_at_every_size(config):
    config = detection(**config)
    assert tracing_inputs(config, (64, 64)) == counting_inputs(config, (64, 64)) == dict(type='tokens')


def test_the_size_of_a_codec():
    model = nn.Module()
    model.head = nn.Module()
    model.head.decoder = type('Codec', (), {'input_size': (192, 256)})()
    model.forward = lambda inputs, data_samples, mode: None
    assert image_shape(model) == (3, 256, 192)


def test_targets_of_a_head_that_finds_several_people_and_holds_no_codec():
    """They are instances, as mmpose packs them: a box that holds the keypoints, area, label."""
    pytest.importorskip('mmpose')
    model = PoseEstimator()
    model.head.num_keypoints = 5
    samples = _pose(model, torch.zeros(2, 3, 96, 64))
    assert len(samples) == 2
    for sample in samples:
        labels = sample.gt_instance_labels
        assert labels.bboxes.tolist() == [[0, 0, 64, 96]] and labels.areas.tolist() == [64 * 96 / 2]
        assert labels.labels.tolist() == [0] and labels.keypoints.shape == (1, 5, 2)
        assert (labels.keypoints > 0).all() and (labels.keypoints < torch.tensor([64, 96])).all()


@pytest.mark.parametrize(('forward', 'mode'), [
    (lambda feats: None, 'tensor'), (lambda feats, batch_data_samples: None, 'predict'),
    (lambda feats, batch_data_samples=None: None, 'predict')])
def test_heads_that_run_on_data_samples_alone(forward, mode):
    model = PoseEstimator()
    model.head.forward = forward
    modes = []
    model.forward = lambda inputs, data_samples, mode: modes.append(mode)
    tensor_pass(model, None)(model, torch.zeros(1, 3, 8, 8))
    assert modes == [mode]


def test_a_head_without_the_usual_names_asks_for_the_hook():
    pytest.importorskip('mmpose')
    with pytest.raises(TraceError, match='no demo ground truth can be made for PoseEstimator on images of '
                                         r"\(3, 64, 64\): .*'out_channels'.*Give demo_inputs: a function"):
        data_samples(PoseEstimator(), torch.zeros(1, 3, 64, 64))


class PoseEstimator(nn.Module):
    """Of mmpose, as far as its module tells."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Module()


PoseEstimator.__module__ = 'mmpose.models'


# ---------------------------------------------------------------- hooks


class NeedsText(nn.Module):
    """A network that images alone do not run."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1))
        self.words = nn.Linear(5, 4)

    def forward(self, images, text):
        return self.backbone(images).mean((2, 3)) + self.words(text)


def run_with_text(model, length=1):
    return model(torch.ones(1, 3, 8, 8), torch.ones(length, 5))


@pytest.fixture
def module(monkeypatch):
    """A module of the user's own with a hook in it."""
    own = ModuleType('users_own')
    own.run_with_text = run_with_text
    own.number = 3
    monkeypatch.setitem(sys.modules, 'users_own', own)
    return own


@pytest.fixture
def registered():
    FUNCTIONS.register_module('text_demo', module=run_with_text)
    yield 'text_demo'
    FUNCTIONS.module_dict.pop('text_demo')


@pytest.mark.usefixtures('module')
@pytest.mark.parametrize('hook', ['users_own.run_with_text', 'text_demo', run_with_text])
def test_hook_traces_counts_and_times(hook, registered):
    model, inputs = NeedsText(), dict(type=hook, length=2)
    units = trace_units(model, inputs)
    assert list(units.prunable) == ['backbone.0']
    dense = complexity(model, inputs)
    assert dense.per_layer == {'backbone.0': 64 * 27 * 6, 'backbone.2': 64 * 24, 'words': 2 * 20}
    assert dense.flops is not None and dense.input_shape is None
    units['backbone.0'].choose([0, 4])
    slim(model, units)
    assert complexity(model, inputs).per_layer['backbone.0'] == 64 * 27 * 2
    assert latency(model, inputs, repeats=1, warmup=0).input_shape is None


@pytest.mark.usefixtures('module')
@pytest.mark.parametrize(('name', 'message'), [
    ('no_such_hook', 'there is no function "no_such_hook"'),
    ('users_own.no_such', 'there is no function "users_own.no_such"'),
    ('users_own.number', 'should name a function of the model'),
])
@pytest.mark.parametrize('use', [trace_units, complexity, latency])
def test_unknown_hooks(name, message, use):
    with pytest.raises(PruningError, match=message):
        use(NeedsText(), dict(type=name))


@pytest.mark.parametrize('use', [trace_units, complexity, latency])
def test_a_model_that_needs_more_names_the_hook(use):
    with pytest.raises(PruningError, match=r"NeedsText does not run on .*'text'.*dict\(type=\.\.\.\)"):
        use(NeedsText(), (8, 8))


# ---------------------------------------------------------------- regions


def test_boxes_fill_the_image():
    boxes = spread_boxes(1000, (80, 120))
    assert boxes.shape == (1000, 4) and torch.equal(boxes, spread_boxes(1000, (80, 120)))
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert boxes.min() >= 0 and boxes[:, 2].max() <= 120 and boxes[:, 3].max() <= 80
    # A tenth of the centres lies in each tenth of the width.
    inside = boxes[(boxes[:, 0] > 0) & (boxes[:, 2] < 120)]
    assert len(inside) > 500
    assert len({tuple(box) for box in boxes.tolist()}) == 1000


def test_models_without_regions():
    assert regions_of(NeedsText()) is None


def small_detector(kind, **test_cfg):
    """Return a two-stage detector of toy widths, from mmdet's own base model."""
    package = pytest.importorskip('mmdet')
    from pathlib import Path

    from mmdet.registry import MODELS
    from mmengine.config import Config
    from mmengine.registry import DefaultScope
    folder = Path(package.__file__).parent / '.mim' / 'configs' / '_base_' / 'models'
    model = Config.fromfile(folder / f'{kind}_r50_fpn.py').model
    model.backbone.update(depth=18, base_channels=8, init_cfg=None)
    model.neck.update(in_channels=[8, 16, 32, 64], out_channels=8)
    model.rpn_head.update(in_channels=8, feat_channels=8)
    model.roi_head.bbox_roi_extractor.out_channels = 8
    heads = model.roi_head.bbox_head
    for head in heads if isinstance(heads, list) else [heads]:
        head.update(in_channels=8, fc_out_channels=16)
    if 'mask_head' in model.roi_head:
        model.roi_head.mask_roi_extractor.out_channels = 8
        model.roi_head.mask_head.update(in_channels=8, conv_out_channels=8)
    for stage, settings in test_cfg.items():
        model.test_cfg[stage].update(settings)
    with DefaultScope.overwrite_default_scope('mmdet'):
        import mmdet.models  # noqa: F401
        return MODELS.build(model)


@pytest.mark.parametrize('kind', ['faster-rcnn', 'mask-rcnn', 'cascade-mask-rcnn'])
def test_regions_of_two_stage_detectors(kind):
    """The heads' costs, by hand: fully connected layers a proposal, 28 x 28 masks a detection."""
    model = small_detector(kind, rpn=dict(max_per_img=30), rcnn=dict(max_per_img=20))
    stages = 3 if 'cascade' in kind else 1
    has_mask = 'mask' in kind
    assert regions_of(model) == Regions(30, 20 if has_mask else 0)
    result = complexity(model, (64, 96), flops=False)
    assert (result.proposals, result.masks) == (30, 20 if has_mask else None)
    words = 'one sample of 3 x 64 x 96 with 30 proposals' + (' and 20 masks' if has_mask else '')
    assert result.sample == words
    costs = {}
    for path, macs in result.per_layer.items():
        kind_of_head = path.split('.')[1] if path.startswith('roi_head') else ''
        costs[kind_of_head] = costs.get(kind_of_head, 0) + macs
    # Classes 80 and background; boxes a class, or one for all in a cascade.
    outputs = 81 + (4 if stages == 3 else 320)
    assert costs['bbox_head'] == stages * 30 * (8 * 49 * 16 + 16 * 16 + 16 * outputs)
    if has_mask:
        mask = 4 * 14 ** 2 * 9 * 64 + 14 ** 2 * 4 * 64 + 28 ** 2 * 8 * 80
        assert costs['mask_head'] == stages * 20 * mask
    assert not any('predict_by_feat' in vars(m) or '_mask_forward' in vars(m) for m in model.modules())


def test_batches_of_a_two_stage_detector():
    model = small_detector('mask-rcnn', rpn=dict(max_per_img=30), rcnn=dict(max_per_img=20))
    result = latency(model, (64, 96), batch_size=2, repeats=1, warmup=0)
    assert (result.proposals, result.batch_size) == (30, 2)


def test_regions_that_the_config_does_not_state():
    model = small_detector('mask-rcnn')
    model.test_cfg = None
    assert regions_of(model) == Regions(1000, 100)


def test_a_detector_whose_data_preprocessor_gives_a_dict():
    """CLRNet, of mmdet: its own code looks for the images under their name."""
    class CLRNet(nn.Module):
        def forward(self, inputs, data_samples=None, mode='tensor'):
            return inputs['img'] * 2

    class Other(nn.Module):
        def forward(self, inputs, data_samples=None, mode='tensor'):
            return inputs * 2
    images = torch.ones(1, 3, 4, 4)
    for model in (CLRNet(), Other()):
        assert torch.equal(tensor_pass(model, None)(model, images), images * 2)
