"""Drawn scenes: what the files say about each other, and what the task libraries read in them."""
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image
from pycocotools.coco import COCO

from mmprune_ext.datasets import write_scenes
from mmprune_ext.datasets.drawing import CLASSES, SHAPES, draw_scene
from mmprune_ext.datasets.scenes import run_lengths
from mmprune_ext.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs' / '_base_' / 'datasets'
TRAIN, VAL, SIZE = 8, 6, (96, 128)


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp('data') / 'scenes', TRAIN, VAL, SIZE)


def digest(root: Path) -> str:
    """Hash of all relative paths and contents."""
    total = hashlib.sha256()
    for path in sorted(path for path in root.rglob('*') if path.is_file()):
        total.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return total.hexdigest()


def annotations(root: Path, name: str) -> COCO:
    return COCO(str(root / 'annotations' / f'{name}.json'))


def test_run_lengths():
    mask = np.array([[1, 0, 0], [1, 1, 0]], dtype=bool)
    # Down the columns: 1 1 | 0 1 | 0 0
    assert run_lengths(mask) == {'size': [2, 3], 'counts': [0, 2, 1, 1, 2]}
    assert run_lengths(~mask) == {'size': [2, 3], 'counts': [2, 1, 1, 2]}


@pytest.mark.parametrize(('split', 'count'), [('train', TRAIN), ('val', VAL)])
def test_boxes_masks_and_label_maps_agree(scenes, split, count):
    coco = annotations(scenes, split)
    assert [category['name'] for category in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    assert {coco.anns[key]['category_id'] for key in coco.anns} == {1, 2, 3, 4, 5, 6}
    assert len(coco.imgs) == count
    for number, image in coco.imgs.items():
        picture = np.asarray(Image.open(scenes / 'images' / split / image['file_name']))
        labels = np.asarray(Image.open(scenes / 'segmentation' / split / image['file_name']))
        assert picture.shape == (*SIZE, 3)
        assert (image['height'], image['width']) == labels.shape == SIZE
        union, total = np.zeros(SIZE, dtype=int), np.zeros(SIZE, dtype=int)
        for annotation in coco.loadAnns(coco.getAnnIds(number)):
            mask = coco.annToMask(annotation).astype(bool)
            rows, columns = np.nonzero(mask)
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert annotation['bbox'] == box
            assert annotation['area'] == mask.sum() >= 30
            union[mask] = annotation['category_id']
            total += mask
        assert total.max() == 1  # what hides another item cuts its mask
        np.testing.assert_array_equal(union, labels)


@pytest.mark.parametrize('split', ['train', 'val'])
def test_joints_lie_where_their_flags_say(scenes, split):
    people, items = annotations(scenes, f'person_keypoints_{split}'), annotations(scenes, split)
    assert set(people.anns) == {key for key, item in items.anns.items() if item['category_id'] == 1}
    flags = set()
    for key, person in people.anns.items():
        assert person['bbox'] == items.anns[key]['bbox']
        left, top, width, height = person['bbox']
        mask = people.annToMask(person)
        joints = np.reshape(person['keypoints'], (17, 3))
        assert person['num_keypoints'] == (joints[:, 2] > 0).sum() >= 16
        flags |= set(joints[:, 2].tolist())
        for x, y, flag in joints:
            if flag == 2:
                assert left <= round(x) < left + width
                assert top <= round(y) < top + height
                assert mask[round(y), round(x)]
            elif flag == 1:
                assert 0 <= round(x) < SIZE[1]
                assert 0 <= round(y) < SIZE[0]
                assert not mask[round(y), round(x)]
            else:
                assert x == y == 0
        # Upright and seen from the front: the figure's left is on the right.
        assert joints[5, 0] > joints[6, 0]
        assert joints[5, 1] < joints[11, 1]
    assert flags == {0, 1, 2}


def test_flags_and_classes_of_many_scenes():
    for seed in range(60):
        first = seed % len(SHAPES)
        scene = draw_scene(np.random.default_rng(seed), (64, 80), first)
        assert {0, 1 + first} <= {item.category for item in scene.items}
        for item in scene.items:
            assert item.mask.sum() >= 10
            for x, y, flag in [] if item.keypoints is None else item.keypoints:
                assert flag == 0 or item.mask[round(y), round(x)] == (flag == 2)


@pytest.mark.parametrize('split', ['train', 'val'])
def test_one_crop_an_item(scenes, split):
    coco = annotations(scenes, split)
    for number, name in enumerate(CLASSES):
        crops = list((scenes / 'classes' / split / name).iterdir())
        assert len(crops) == len(coco.getAnnIds(catIds=[1 + number])) > 0
        assert all(Image.open(crop).size == (64, 64) for crop in crops)


def test_same_seed_same_bytes_and_no_second_writing(scenes, tmp_path):
    again = write_scenes(tmp_path / 'scenes', TRAIN, VAL, SIZE)
    assert digest(again) == digest(scenes)
    times = {path: path.stat().st_mtime_ns for path in again.rglob('*')}
    write_scenes(again, TRAIN, VAL, SIZE)
    assert {path: path.stat().st_mtime_ns for path in again.rglob('*')} == times
    other = write_scenes(tmp_path / 'other', TRAIN, VAL, SIZE, seed=1)
    for name in ('images/train/00000.png', 'segmentation/train/00003.png'):
        assert (other / name).read_bytes() != (again / name).read_bytes()
    # The two splits share no scene, and a larger set begins with the smaller one.
    assert (again / 'images/train/00000.png').read_bytes() != (
        again / 'images/val/00000.png').read_bytes()
    more = write_scenes(tmp_path / 'more', TRAIN + 1, VAL, SIZE)
    for index in range(TRAIN):
        name = f'images/train/{index:05d}.png'
        assert (more / name).read_bytes() == (again / name).read_bytes()


@pytest.mark.parametrize(('arguments', 'message'), [
    ({'train': 4}, 'train must be at least 5, .* got 4'),
    ({'val': 0}, 'val must be at least 5, .* got 0'),
    ({'size': (128, 32)}, 'at least 64 pixels, got 128 x 32'),
    ({'size': (128,)}, 'height and width .* got 128'),
    ({'seed': -1}, 'seed must be at least 0, got -1'),
])
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        write_scenes(tmp_path / 'scenes', **arguments)
    assert list(tmp_path.iterdir()) == []


def test_other_content_is_refused_and_left_alone(scenes, tmp_path):
    before = digest(scenes)
    with pytest.raises(ConfigError, match='scenes of other settings'):
        write_scenes(scenes, TRAIN, VAL, SIZE, seed=1)
    assert digest(scenes) == before
    (tmp_path / 'notes.txt').write_text('mine')
    with pytest.raises(ConfigError, match='does not hold drawn scenes'):
        write_scenes(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['notes.txt']


def test_missing_images_are_noticed(tmp_path):
    root = write_scenes(tmp_path / 'scenes', 5, 5, (64, 64))
    (root / 'images' / 'val' / '00002.png').unlink()
    with pytest.raises(ConfigError, match='images/val holds 4 of 5 images'):
        write_scenes(root, 5, 5, (64, 64))


def test_interrupted_writing_leaves_nothing(tmp_path, monkeypatch):
    def fail(self, text):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(Path, 'write_text', fail)
    with pytest.raises(ConfigError, match='cannot be written: No space left on device'):
        write_scenes(tmp_path / 'scenes', 5, 5, (64, 64))
    assert list(tmp_path.iterdir()) == []


def read_split(scenes: Path, monkeypatch, task: str, split: str):
    """Build the data set that a base config of one task names, with its own pipeline."""
    monkeypatch.setenv('MMPRUNE_DATA', str(scenes.parent))
    config = Config.fromfile(CONFIGS / f'scenes_{task}.py')
    library = {'classification': 'mmpretrain', 'detection': 'mmdet', 'segmentation': 'mmseg',
               'pose': 'mmpose'}[task]
    pytest.importorskip(f'{library}.datasets')
    init_default_scope(library)
    return DATASETS.build(config[f'{split}_dataloader'].dataset)


def test_mmpretrain_reads_the_classes(scenes, monkeypatch):
    data = read_split(scenes, monkeypatch, 'classification', 'val')
    assert data.metainfo['classes'] == CLASSES
    for index in range(len(data)):
        path = Path(data.get_data_info(index)['img_path'])
        sample = data[index]
        assert CLASSES[int(sample['data_samples'].gt_label)] == path.parent.name
        assert sample['inputs'].shape == (3, 64, 64)
    assert len(data) == len(annotations(scenes, 'val').anns)


def test_mmdet_reads_boxes_and_masks(scenes, monkeypatch):
    data = read_split(scenes, monkeypatch, 'detection', 'val')
    assert len(data) == VAL
    coco = annotations(scenes, 'val')
    for index in range(VAL):
        sample = data[index]['data_samples']
        expected = coco.loadAnns(coco.getAnnIds(sample.img_id))
        truth = sample.gt_instances
        assert sample.img_shape == SIZE
        assert (truth.labels + 1).tolist() == [item['category_id'] for item in expected]
        boxes = np.array([item['bbox'] for item in expected])
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_array_equal(truth.bboxes.tensor.numpy(), boxes)
        for mask, item in zip(truth.masks.masks, expected, strict=True):
            np.testing.assert_array_equal(mask, coco.annToMask(item))


def test_mmseg_reads_label_maps(scenes, monkeypatch):
    data = read_split(scenes, monkeypatch, 'segmentation', 'val')
    assert data.metainfo['classes'] == ('background', *CLASSES)
    assert len(data) == VAL
    for index in range(VAL):
        sample = data[index]['data_samples']
        name = Path(sample.seg_map_path).name
        labels = np.asarray(Image.open(scenes / 'segmentation' / 'val' / name))
        np.testing.assert_array_equal(sample.gt_sem_seg.data[0].numpy(), labels)
        assert Path(sample.img_path) == scenes / 'images' / 'val' / name


def test_mmpose_reads_joints(scenes, monkeypatch):
    data = read_split(scenes, monkeypatch, 'pose', 'val')
    people = json.loads((scenes / 'annotations' / 'person_keypoints_val.json').read_text())
    assert len(data) == len(people['annotations'])
    # The names and flips of COCO, which mmpose knows.
    named = people['categories'][0]['keypoints']
    assert named == list(data.metainfo['keypoint_id2name'].values())
    assert [[a - 1, b - 1] for a, b in people['categories'][0]['skeleton']] == [
        list(link) for link in data.metainfo['skeleton_links']]
    for index, person in enumerate(people['annotations']):
        truth = data[index]['data_samples'].gt_instances
        joints = np.reshape(person['keypoints'], (17, 3))
        np.testing.assert_allclose(truth.keypoints[0], joints[:, :2], atol=1e-4)
        np.testing.assert_array_equal(truth.keypoints_visible[0], joints[:, 2] > 0)


@pytest.mark.e2e
def test_tool(tmp_path):
    tool = str(ROOT / 'tools' / 'datasets' / 'draw_scenes.py')

    def run(*args):
        return subprocess.run([sys.executable, tool, *map(str, args)], capture_output=True,
                              text=True, cwd=ROOT, check=False)

    done = run(tmp_path / 'scenes', '--train', 5, '--val', 5, '--size', 64, 80, '--seed', 3)
    assert done.returncode == 0, done.stderr
    assert digest(tmp_path / 'scenes') == digest(
        write_scenes(tmp_path / 'same', 5, 5, (64, 80), seed=3))
    done = run(tmp_path / 'scenes', '--train', 2)
    assert done.returncode == 2
    assert done.stderr.startswith('error: train must be')
    assert 'Traceback' not in done.stderr
