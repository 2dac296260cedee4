"""Checks of annotation files and class numbers: what they let pass. Errors are in test_bad_task_inputs.py."""
import json

import pytest

from mmprune_ext.errors import ConfigError
from mmprune_ext.settings import annotations


def dataset_of(library, **metainfo):
    """Return a dataset class as a library has it."""
    return type('Dataset', (), {'__module__': f'{library}.datasets', 'METAINFO': metainfo})


DETECTION, POSE = dataset_of('mmdet', classes=('cat', 'dog')), dataset_of('mmpose')
FULL = {'images': [{'id': 1}], 'annotations': [{'id': 1}],
        'categories': [{'id': 1, 'name': 'cat'}, {'id': 2, 'name': 'cow'}]}


@pytest.mark.parametrize(('content', 'kind', 'split'), [
    (FULL, DETECTION, 'train'),                               # one of two classes is there
    ({**FULL, 'annotations': []}, DETECTION, 'test'),         # a test set without ground truth
    ({**FULL, 'annotations': []}, POSE, 'test'),
    ({**FULL, 'annotations': [{}, {'keypoints': []}]}, POSE, 'train'),
    ({**FULL, 'categories': [{'name': 'tree'}]}, None, 'train'),
    ({'metainfo': {}, 'data_list': []}, DETECTION, 'train'),  # another format
    ([1, 2], DETECTION, 'train'),
])
def test_good_annotations(tmp_path, content, kind, split):
    path = tmp_path / 'a.json'
    path.write_text(json.dumps(content))
    annotations.check_annotations(path, {}, kind, split)


def test_large_files_are_left_to_their_dataset(tmp_path, monkeypatch):
    path = tmp_path / 'a.json'
    path.write_text('{ no JSON')
    with pytest.raises(ConfigError, match='not JSON'):
        annotations.check_annotations(path, {}, DETECTION, 'train')
    monkeypatch.setattr(annotations, 'MAX_BYTES', 3)
    annotations.check_annotations(path, {}, DETECTION, 'train')


PANOPTIC = dataset_of('mmdet', classes=('cat', 'dog', 'sky'), thing_classes=('cat', 'dog'))


@pytest.mark.parametrize(('model', 'kind', 'message'), [
    (dict(bbox_head=dict(num_classes=2)), DETECTION, None),
    (dict(bbox_head=dict(num_classes=3)), DETECTION, 'model.bbox_head: num_classes is 3'),
    (dict(architecture=dict(bbox_head=dict(num_classes=3))), DETECTION, 'num_classes is 3'),
    (dict(roi_head=dict(bbox_head=[dict(num_classes=2), dict(num_classes=1)])), DETECTION,
     r'model.roi_head.bbox_head: num_classes is 1, but the dataset of val_dataloader has 2 classes \(cat, dog\)'),
    (dict(roi_head=dict(bbox_head=dict(num_classes=2))), PANOPTIC, None),
    (dict(bbox_head=dict(num_classes=256), language_model={}), DETECTION, None),
    (dict(head=dict(num_classes=9)), dataset_of('mmpretrain', classes=('cat', 'dog')), None),
    (dict(head=dict(num_classes=1)), dataset_of('mmpretrain', classes=('cat', 'dog')), 'num_classes is 1'),
    (dict(decode_head=dict(num_classes=3)), dataset_of('mmseg', classes=None), None),
    (dict(decode_head=dict(num_classes=3)), dataset_of('mmseg', classes=('sky', 'road')), 'num_classes is 3'),
    (dict(head=dict(num_classes=3)), None, None),
])
def test_class_numbers(model, kind, message):
    if message is None:
        annotations.check_classes(dict(model=model), {}, kind, 'val')
    else:
        with pytest.raises(ConfigError, match=message):
            annotations.check_classes(dict(model=model), {}, kind, 'val')


def test_stated_classes_come_first():
    stated = dict(metainfo=dict(classes=('a', 'b', 'c')))
    annotations.check_classes(dict(model=dict(bbox_head=dict(num_classes=3))), stated, DETECTION, 'train')
