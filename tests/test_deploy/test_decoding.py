"""Reading images and outputs in numpy, against the libraries that the models come from."""
from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmprune_ext.deploy import decoding
from mmprune_ext.deploy.passes import plan_of
from mmprune_ext.units.task_samples import data_samples

DATA = Path(__file__).resolve().parents[1] / 'data'
INPUT = {'name': 'images', 'size': [64, 96], 'dynamic_size': False, 'channels': 'rgb', 'mean': [10., 20., 30.],
         'std': [2., 4., 5.], 'pad_divisor': 32, 'pad_value': 0., 'resize': 'fit'}


def settings_of(plan, **inputs) -> dict:
    return {'input': {**INPUT, **inputs}, 'outputs': [{'name': name} for name in plan.outputs],
            'decoding': plan.decoding}


FCOS = dict(
    _delete_=True, type='FCOSHead', num_classes=6, in_channels=16, feat_channels=16, stacked_convs=1,
    strides=[8, 16, 32, 64], regress_ranges=((-1, 32), (32, 64), (64, 128), (128, 1e8)), norm_cfg=None,
    norm_on_bbox=True)


def model_of(name: str, scope: str, head: dict | None = None):
    config = Config.fromfile(DATA / f'scenes_{name}.py')
    if head:
        config.merge_from_dict({'model.type': 'FCOS', 'model.bbox_head': head})
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build({**config.model, 'data_preprocessor': config.data_preprocessor}).eval()


def test_the_file_needs_numpy_alone(tmp_path):
    """It runs from any folder; torch and the libraries are not there for it."""
    (tmp_path / 'decoding.py').write_text(Path(decoding.__file__).read_text())
    code = ("import sys; before = set(sys.modules); import decoding; "
            "assert not {'torch', 'mmengine', 'cv2', 'mmprune_ext'} & set(sys.modules), 'more than numpy'")
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('align', [False, True])
@pytest.mark.parametrize('size', [(5, 7), (40, 33), (12, 9)])
def test_resize_is_torchs(size, align):
    values = np.random.RandomState(0).rand(12, 9, 4).astype(np.float32)
    wanted = torch.nn.functional.interpolate(torch.from_numpy(values).permute(2, 0, 1)[None], size=size,
                                             mode='bilinear', align_corners=align)[0].permute(1, 2, 0)
    np.testing.assert_allclose(decoding.resize(values, size, align), wanted, atol=1e-5)
    np.testing.assert_allclose(decoding.resize(values[..., 0], size, align), wanted[..., 0], atol=1e-5)


def test_no_kept_box_overlaps_a_better_one_of_its_class():
    random = np.random.RandomState(0)
    corners = random.rand(60, 2) * 40
    boxes = np.concatenate([corners, corners + 5 + random.rand(60, 2) * 20], 1)
    scores, groups = random.rand(60), random.randint(0, 3, 60)
    kept = decoding.suppress(boxes, scores, groups, 0.4)

    def overlap(first, second):
        sides = [min(first[i + 2], second[i + 2]) - max(first[i], second[i]) for i in (0, 1)]
        shared = max(sides[0], 0) * max(sides[1], 0)
        areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
        return shared / (sum(areas) - shared)

    wanted = []
    for place in sorted(range(60), key=lambda i: -scores[i]):
        if all(groups[place] != groups[other] or overlap(boxes[place], boxes[other]) <= 0.4 for other in wanted):
            wanted.append(place)
    assert kept.tolist() == wanted and 3 < len(wanted) < 60


@pytest.mark.parametrize(('old', 'new', 'size'), [((32, 32), (64, 64), 'fixed'), ((200, 100), (64, 32), 'fixed'),
                                                  ((200, 100), (96, 48), 'dynamic'), ((100, 200), (48, 96), 'dynamic')])
def test_an_image_fits_into_the_input(old, new, size):
    """Of a fixed size it fits inside; of a dynamic one the scale is turned as the image is, and padded."""
    image = np.random.RandomState(0).randint(0, 256, (*old, 3), dtype=np.uint8)
    values, place = decoding.prepare(image, {'input': {**INPUT, 'dynamic_size': size == 'dynamic'}})
    full = (64, 96) if size == 'fixed' else tuple(-(-side // 32) * 32 for side in new)
    assert values.shape == (1, 3, *full) and values.dtype == np.float32
    assert place['size'] == new and place['original'] == old
    assert place['scale'] == (new[1] / old[1], new[0] / old[0])
    assert (values[0, :, new[0]:] == 0).all() and (values[0, :, :, new[1]:] == 0).all()


def test_channels_are_turned_and_normalised():
    image = np.array([[[1, 2, 3]]], dtype=np.uint8)  # blue, green, red
    inputs = {**INPUT, 'size': [1, 1], 'resize': 'stretch'}
    values, _ = decoding.prepare(image, {'input': inputs})
    assert values[0, :, 0, 0].tolist() == pytest.approx([(3 - 10) / 2, (2 - 20) / 4, (1 - 30) / 5])
    values, _ = decoding.prepare(image, {'input': {**inputs, 'channels': 'bgr'}})
    assert values[0, :, 0, 0].tolist() == pytest.approx([(1 - 10) / 2, (2 - 20) / 4, (3 - 30) / 5])


def test_the_centre_is_cut_out():
    image = np.arange(40, dtype=np.uint8).reshape(4, 10)[..., None].repeat(3, 2)
    inputs = {**INPUT, 'size': [4, 4], 'resize': 'edge', 'edge': 4, 'mean': [0] * 3, 'std': [1] * 3}
    values, _ = decoding.prepare(image, {'input': inputs})
    assert (values[0, 0] == image[:, 3:7, 0]).all()


def test_a_person_is_cut_out_as_mmpose_does():
    """Against its own transforms; OpenCV interpolates in steps of 1/32 pixel."""
    from mmpose.datasets.transforms import GetBBoxCenterScale, TopdownAffine
    random = np.random.RandomState(0)
    image = np.kron(random.randint(0, 256, (12, 10, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    box = [-10., 20., 50., 90.]
    data = GetBBoxCenterScale()({'bbox': np.array([box], np.float32)})
    wanted = TopdownAffine(input_size=(48, 64))({**data, 'img': image, 'img_shape': image.shape[:2]})
    inputs = {**INPUT, 'size': [64, 48], 'resize': 'person', 'padding': 1.25, 'channels': 'bgr', 'mean': [0] * 3,
              'std': [1] * 3}
    values, place = decoding.prepare(image, {'input': inputs}, box)
    np.testing.assert_allclose(place['region'], wanted['input_scale'], rtol=1e-6)
    np.testing.assert_allclose(place['centre'], wanted['input_center'], rtol=1e-6)
    difference = np.abs(values[0].transpose(1, 2, 0) - wanted['img'].astype(float))
    assert difference.mean() < 0.5 and difference.max() < 0.05 * 255


@pytest.mark.parametrize('changes', [{}, {'score_thr': 0.3}, {'min_bbox_size': 20}, {'nms_pre': 5, 'max_per_img': 7},
                                     {'head': FCOS}], ids=lambda changes: ' '.join(changes))
def test_boxes_are_mmdets(changes):
    """Against the head's own ``predict_by_feat``, in pixels of an image that was scaled and padded."""
    model = model_of('retinanet', 'mmdet', changes.get('head'))
    head = model.bbox_head
    if 'head' in changes:
        torch.nn.init.normal_(head.conv_centerness.weight, std=0.5)
    else:
        head.test_cfg.update(changes)
        torch.nn.init.normal_(head.retina_reg.weight, std=0.1)
    torch.nn.init.normal_((head.conv_cls if 'head' in changes else head.retina_cls).weight, std=0.5)
    images = torch.randn(2, 3, 64, 96)
    plan = plan_of(model, images)
    metas = [{'img_shape': (64, 80), 'ori_shape': (32, 20), 'scale_factor': (4., 2.)},
             {'img_shape': (50, 96), 'ori_shape': (50, 96), 'scale_factor': (1., 1.)}]
    with torch.no_grad():
        outputs = [value.numpy() for value in plan.run(model, images)]
        wanted = model.bbox_head.predict_by_feat(*model.bbox_head(model.extract_feat(images)), batch_img_metas=metas,
                                                 rescale=True)
    places = [{'size': meta['img_shape'], 'scale': meta['scale_factor']} for meta in metas]
    found = decoding.decode(outputs, settings_of(plan), places)
    assert max(len(image['boxes']) for image in found) > 1
    for image, expected in zip(found, wanted):
        np.testing.assert_allclose(image['boxes'], expected.bboxes, atol=1e-3)
        np.testing.assert_allclose(image['scores'], expected.scores, atol=1e-5)
        assert image['labels'].tolist() == expected.labels.tolist()


def test_label_maps_are_mmsegs():
    model = model_of('segmentation', 'mmseg')
    images = torch.randn(2, 3, 64, 64)
    samples = data_samples(model, images)
    for sample, size, original in zip(samples, ((64, 50), (64, 64)), ((32, 25), (64, 64))):
        sample.set_metainfo({'ori_shape': original, 'img_padding_size': (0, 64 - size[1], 0, 64 - size[0])})
    plan = plan_of(model, images)
    with torch.no_grad():
        outputs = [value.numpy() for value in plan.run(model, images)]
        wanted = model(images, copy.deepcopy(samples), mode='predict')
    places = [{'size': (64, 50), 'original': (32, 25)}, {'size': (64, 64), 'original': (64, 64)}]
    for found, expected in zip(decoding.decode(outputs, settings_of(plan), places), wanted):
        labels = expected.pred_sem_seg.data[0].numpy()
        assert found['labels'].shape == labels.shape and (found['labels'] != labels).mean() < 1e-3


def test_heatmaps_are_read_as_mmpose_does():
    from mmpose.codecs import MSRAHeatmap
    codec = MSRAHeatmap(input_size=(48, 64), heatmap_size=(12, 16), sigma=1.5)
    maps = np.random.RandomState(0).randn(2, 40, 16, 12).astype(np.float32)
    maps[0, 3] = -1  # nothing is there
    settings = {'decoding': {'type': 'heatmaps', 'stride': [4., 4.]}, 'outputs': [{'name': 'heatmaps'}]}
    for found, map_ in zip(decoding.decode([maps], settings, [{}, {}]), maps):
        keypoints, scores = codec.decode(map_)
        np.testing.assert_array_equal(found['keypoints'], keypoints[0])
        np.testing.assert_array_equal(found['scores'], scores[0])


def test_both_axes_are_read_as_mmpose_does():
    from mmpose.codecs import SimCCLabel
    codec = SimCCLabel(input_size=(48, 64), sigma=(3., 3.), simcc_split_ratio=2., normalize=False, use_dark=False)
    random = np.random.RandomState(0)
    axes = [random.randn(1, 17, steps).astype(np.float32) for steps in (96, 128)]
    settings = {'decoding': {'type': 'simcc', 'split_ratio': 2.}, 'outputs': [{'name': 'simcc_x'}, {'name': 'simcc_y'}]}
    found, = decoding.decode(axes, settings, [{}])
    keypoints, scores = codec.decode(*(axis.copy() for axis in axes))
    np.testing.assert_array_equal(found['keypoints'], keypoints[0])
    np.testing.assert_array_equal(found['scores'], scores[0])


def test_keypoints_come_back_into_the_image():
    """A region of 40 x 80 pixels around (100, 50), seen in 20 x 40: twice as large, from its corner on."""
    settings = {'decoding': {'type': 'simcc', 'split_ratio': 1.}, 'outputs': [{'name': 'simcc_x'}, {'name': 'simcc_y'}]}
    axes = [np.eye(1, 20, 5, dtype=np.float32)[None], np.eye(1, 40, 10, dtype=np.float32)[None]]
    place = {'input': (40, 20), 'region': [40., 80.], 'centre': [100., 50.]}
    found, = decoding.decode(axes, settings, [place])
    assert found['keypoints'].tolist() == [[100 - 20 + 10, 50 - 40 + 20]]


@pytest.mark.parametrize(('activation', 'scores'), [('softmax', [0.25, 0.75]), ('sigmoid', [0.5, 0.75])])
def test_classes(activation, scores):
    settings = {'decoding': {'type': 'class', 'activation': activation}, 'outputs': [{'name': 'logits'}]}
    found, = decoding.decode([np.array([[0, np.log(3)]], np.float32)], settings, [{}])
    assert found['label'] == 1 and found['scores'].tolist() == pytest.approx(scores)


def test_raw_outputs_have_no_meaning_here():
    with pytest.raises(ValueError, match='outputs of this model are raw .YOLOX'):
        decoding.decode([], {'decoding': {'type': 'raw', 'reason': 'YOLOX'}, 'outputs': []}, [])
