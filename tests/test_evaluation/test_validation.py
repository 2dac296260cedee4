"""Which samples are measured on, and that metrics compare with these alone."""
from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmprune_ext.errors import ConfigError
from mmprune_ext.evaluation.validation import KeptBatches, Validation
from tests.conftest import DATA
from tests.scenes import scenes_in


@pytest.fixture(scope='module')
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp('scenes')
    with scenes_in(folder, train=5, val=8):
        yield folder / 'scenes'


def labels(validation: Validation) -> list[int]:
    return [int(sample.gt_label) for batch in validation.batches for sample in batch['data_samples']]


@pytest.mark.usefixtures('mmpretrain_scope')
def test_samples_are_spread_over_sorted_classes(tiny_config):
    config = tiny_config({'val_dataloader.dataset.indices': None, 'val_dataloader.batch_size': 8})
    validation = Validation(config, 20)
    found = labels(validation)
    assert (validation.size, validation.num_batches, validation.split) == (20, 3, 'val')
    assert found == sorted(found) and {found.count(label) for label in range(10)} <= {1, 2, 3}


@pytest.mark.parametrize('samples', [0, 60, 61])
@pytest.mark.usefixtures('mmpretrain_scope')
def test_all_samples(tiny_config, samples):
    assert Validation(tiny_config(), samples).size == 60


@pytest.mark.usefixtures('mmpretrain_scope')
def test_data_of_the_test_serve_where_there_are_no_others(tiny_config):
    assert Validation(tiny_config({'val_evaluator': None}), 10).split == 'test'
    with pytest.raises(ConfigError, match='lacks val_dataloader and val_evaluator'):
        Validation(tiny_config({'val_evaluator': None, 'test_dataloader': None}), 10)


def test_an_annotation_file_is_cut_down_to_the_images(scenes):
    with DefaultScope.overwrite_default_scope('mmdet'):
        validation = Validation(Config.fromfile(DATA / 'scenes_detection.py'), 3)
        images = [sample.img_id for batch in validation.batches for sample in batch['data_samples']]
        whole = json.loads((scenes / 'annotations' / 'val.json').read_text())
        known = [image['id'] for image in whole['images']]
        assert images == [known[0], known[2], known[5]]  # 8 / 3 apart
        coco = validation.evaluator().metrics[0]._coco_api
        assert sorted(coco.get_img_ids()) == sorted(images)
        assert len(coco.anns) == sum(item['image_id'] in images for item in whole['annotations'])


def test_samples_of_one_image_stay_together(scenes):
    with DefaultScope.overwrite_default_scope('mmpose'):
        validation = Validation(Config.fromfile(DATA / 'scenes_pose.py'), 4)
        images = [sample.img_id for batch in validation.batches for sample in batch['data_samples']]
        content = json.loads((scenes / 'annotations' / 'person_keypoints_val.json').read_text())
        people = [item['image_id'] for item in content['annotations']]
        assert validation.size == len(images) and len(set(images)) < len(set(people))
        assert {image: images.count(image) for image in images} == {image: people.count(image) for image in images}


def test_an_annotation_file_of_another_form(scenes, tmp_path):
    (tmp_path / 'val.odgt').write_text('{}')
    with DefaultScope.overwrite_default_scope('mmdet'):
        config = Config.fromfile(DATA / 'scenes_detection.py')
        config.val_evaluator.ann_file = str(tmp_path / 'val.odgt')
        with pytest.raises(ConfigError, match=r'CocoMetric compares with all of .*val\.odgt, .*--samples 0'):
            Validation(config, 3)


class Loader:
    """Batches of two tensors, and how often they were read."""

    def __init__(self) -> None:
        self.read = 0

    def __iter__(self) -> Iterator[dict[str, list[torch.Tensor]]]:
        for number in range(3):
            self.read += 1
            yield {'inputs': [torch.full((4, ), float(number))] * 2}


@pytest.mark.parametrize(('memory', 'number', 'reads'), [(96, None, 3), (95, None, 6), (64, 2, 2), (63, 2, 4)])
def test_small_batches_are_read_once(memory, number, reads):
    loader = Loader()
    batches = KeptBatches(loader, number, memory)
    for _ in range(2):
        found = []
        for batch in batches:
            found.append(float(batch['inputs'][0][0]))
            batch['inputs'][0] += 7  # of no consequence
            if len(found) == number:
                break
        assert found == [0.0, 1.0, 2.0][:number]
    assert loader.read == reads
