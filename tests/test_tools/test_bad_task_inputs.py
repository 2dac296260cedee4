"""What a user can get wrong with detectors, segmentors and pose estimators: one message, exit code 2, no traces.

As in test_bad_inputs.py: the tools run in this process, and the message has to name the thing and the place.
"""
from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.registry import MODELS

from mmprune_ext.datasets import write_scenes
from mmprune_ext.settings import reading
from tests.test_tools.test_bad_inputs import Bad, assert_refused

DATA = Path(__file__).resolve().parents[1] / 'data'
SCOPES = {'detection': 'mmdet', 'segmentation': 'mmseg', 'pose': 'mmpose'}


@pytest.fixture(scope='module', autouse=True)
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Draw scenes where the configs look for their data; read only."""
    root = tmp_path_factory.mktemp('data')
    write_scenes(root / 'scenes', train=8, val=5, size=(64, 64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('MMPRUNE_DATA', str(root))
        yield root / 'scenes'


@dataclass(frozen=True)
class Files:
    """The data, and a folder for bad inputs and for output."""

    scenes: Path
    folder: Path

    @property
    def out(self) -> str:
        return str(self.folder / 'out')

    def task(self, name: str, text: str = '') -> str:
        """Write the config of a task, changed by the lines of `text`."""
        path = self.folder / f'{name}.py'
        path.write_text(f'_base_ = [{str(DATA / f"scenes_{name}.py")!r}]\n{text}\n')
        return str(path)

    def write(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text)
        return str(path)

    def annotations(self, name: str, change: Callable[[dict[str, Any]], Any]) -> str:
        """Write a changed copy of an annotation file."""
        content = json.loads((self.scenes / 'annotations' / name).read_text())
        path = self.folder / name
        path.write_text(json.dumps(change(content) or content))
        return str(path)

    def weights(self, name: str, text: str = '') -> str:
        """Write a checkpoint of random weights of a task's model."""
        config = reading.read_config(self.task(name, text))
        model = MODELS.build(config.model)
        torch.save({'state_dict': model.state_dict(), 'meta': {}}, self.folder / f'{name}.pth')
        return str(self.folder / f'{name}.pth')


def needs_text() -> type:
    """Return a detector that is asked in words, as GLIP and Grounding DINO are."""
    from mmdet.models.detectors import RetinaNet

    class NeedsText(RetinaNet):
        def _forward(self, batch_inputs: Any, batch_data_samples: Any) -> Any:
            words = [sample.text for sample in batch_data_samples]
            return super()._forward(batch_inputs, batch_data_samples), words
    return NeedsText


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    """Register a model for the time of a test."""
    MODELS.register_module('NeedsText', module=needs_text())
    yield
    MODELS.module_dict.pop('NeedsText')


@pytest.fixture
def files(scenes: Path, tmp_path: Path) -> Files:
    return Files(scenes, tmp_path)


def train(task: str, text: str) -> Callable[[Files], list[Any]]:
    return lambda f: [f.task(task, text), '--work-dir', f.out]


def units(task: str, text: str, *more: str) -> Callable[[Files], list[Any]]:
    return lambda f: [f.task(task, text), '-o', f'{f.out}/units.json', *more]


def with_weights(task: str, text: str) -> Callable[[Files], list[Any]]:
    """Return the arguments of tools/test.py with weights that fit."""
    def arguments(files: Files) -> list[Any]:
        checkpoint = files.weights(task)
        return [files.task(task, text), checkpoint, '--work-dir', files.out]
    return arguments


def no_keypoints(content: dict[str, Any]) -> None:
    for annotation in content['annotations']:
        annotation.pop('keypoints')
        annotation.pop('num_keypoints')


def other_names(content: dict[str, Any]) -> None:
    for category in content['categories']:
        category['name'] = f'no {category["name"]}'


def prune(task: str, *more: str, text: str = '', weights: str = '') -> Callable[[Files], list[Any]]:
    def arguments(files: Files) -> list[Any]:
        checkpoint = files.weights(weights or task, '' if weights else text)
        return [files.task(task, text), checkpoint, '-o', files.out, '--algorithm', 'l1', '--flops', '0.5',
                '--bn-batches', '0', *more]
    return arguments


def annotated(split: str, path: str) -> str:
    """Return the line of a config that gives a split another annotation file."""
    return f'{split}_dataloader = dict(dataset=dict(ann_file={path!r}))'


def missing(task: str, tool: str, split: str, key: str, path: str) -> Bad:
    """Return a data path of a task that does not exist."""
    inner = f"{key.split('.')[-1]}='none/{path}'"
    inner = f'data_prefix=dict({inner})' if key.startswith('data_prefix') else inner
    text = f'{split}_dataloader = dict(dataset=dict({inner}))'
    return Bad(f'{tool} {task}: no {key}', tool, train(task, text), (f'{split}_dataloader', key, f'none/{path}'))


TEXT = "_base_ = ['mmdet::retinanet/retinanet_r18_fpn_1x_coco.py']\nmodel = dict(type='NeedsText')"
PRUNING = '''
architecture = {{_base_.model}}
model = dict(_delete_=True, type='mmprune_ext.L1Norm', architecture=architecture, target_pruning_ratio=0.5,
             from_scratch=True, %s)
'''

CASES = [
    # models
    Bad('units: no backbone', 'get_channel_units', units('detection', 'model = dict(backbone=None)'), ('backbone',)),
    Bad('flops: no backbone', 'get_flops',
        lambda f: [f.task('segmentation', "model = dict(backbone=dict(_delete_=True))")], ('backbone', 'type')),
    Bad('units: width of the neck', 'get_channel_units',
        units('detection', 'model = dict(neck=dict(in_channels=[8, 16, 32, 100]))'),
        ('FasterRCNN', 'neck.lateral_convs.3', '100')),
    Bad('flops: width of the head', 'get_flops',
        lambda f: [f.task('segmentation', 'model = dict(decode_head=dict(in_channels=99))')],
        ('EncoderDecoder', 'decode_head', '99')),
    Bad('prune: width of the head', 'prune', prune('pose', text='model = dict(head=dict(in_channels=99))'),
        ('TopdownPoseEstimator', 'head.deconv_layers', '99')),
    Bad('train: width of the head, pruning', 'train',
        lambda f: [f.task('pose', PRUNING % ''), '--work-dir', f.out, '--cfg-options',
                   'model.architecture.head.in_channels=99'], ('head.deconv_layers', '99')),
    Bad('units: text', 'get_channel_units', lambda f: [f.write('text.py', TEXT), '-o', f'{f.out}/units.json'],
        ('NeedsText', 'text', 'demo_inputs', 'dict(type=...)')),
    Bad('flops: text', 'get_flops', lambda f: [f.write('text.py', TEXT), '--shape', '64', '64'],
        ('NeedsText', 'text', 'demo_inputs', 'dict(type=...)')),
    Bad('flops: GLIP', 'get_flops', lambda f: ['mmdet::glip/glip_atss_swin-t_a_fpn_dyhead_pretrain_obj365.py'],
        ('ATSSVLFusionHead', 'transformers')),
    Bad('units: Grounding DINO', 'get_channel_units',
        lambda f: ['mmdet::grounding_dino/grounding_dino_swin-t_pretrain_obj365_goldg_cap4m.py'],
        ('BertModel', 'transformers')),
    Bad('units: no such hook', 'get_channel_units', units('detection', "demo_inputs = dict(type='none')"),
        ('demo_inputs', '"none"', 'custom_imports')),
    Bad('units: unknown library', 'get_channel_units', units('detection', "default_scope = 'mmdett'"),
        ('default_scope', '"mmdett"', 'mmdet')),
    Bad('train: unknown library', 'train', train('pose', "default_scope = 'pose'"), ('default_scope', '"pose"')),
    Bad('units: no such submodule', 'get_channel_units', units('segmentation', '', '--scope', 'rpn_head'),
        ('rpn_head', 'decode_head')),
    Bad('train: no such submodule', 'train', train(
        'detection', PRUNING % "mutator=dict(type='mmprune_ext.L1Mutator', scope='nek')"), ('nek', 'rpn_head')),
    Bad('prune: no such submodule', 'prune', prune('segmentation', '--budget-scope', 'roi_head'),
        ('budget', 'no submodule "roi_head"', 'decode_head')),
    Bad('prune: checkpoint of another task', 'prune', prune('detection', weights='pose'),
        ('pose.pth', 'does not fit FasterRCNN', 'head.')),
    Bad('test: checkpoint of another task', 'test', lambda f: [
        f.task('segmentation'), f.weights('detection'), '--work-dir', f.out],
        ('detection.pth', 'does not fit EncoderDecoder')),
    # sizes
    Bad('units: size of the codec', 'get_channel_units', units('pose', '', '--input-size', '64', '64'),
        ('64 x 64', 'codec', '128 x 96', '(height x width)')),
    Bad('flops: size of the codec', 'get_flops', lambda f: [f.task('pose'), '--shape', '64', '64'],
        ('64 x 64', 'codec', '128 x 96')),
    Bad('units: size 0', 'get_channel_units', units('segmentation', '', '--input-size', '0', '64'),
        ('--input-size', 'at least 1')),
    Bad('units: one number', 'get_channel_units', units('segmentation', '', '--input-size', '64'),
        ('--input-size', '2 arguments')),
    Bad('flops: size 0', 'get_flops', lambda f: [f.task('detection'), '--shape', '0', '64'],
        ('input_shape', '(0, 64)')),
    Bad('flops: batch size 0', 'get_flops', lambda f: [f.task('detection'), '--latency', '--batch-size', '0'],
        ('--batch-size', 'at least 1')),
    # data
    *(missing(task, 'train', 'train', 'ann_file', 'a.json') for task in ('detection', 'pose')),
    missing('segmentation', 'train', 'train', 'data_prefix.seg_map_path', 'maps'),
    missing('segmentation', 'test', 'test', 'data_prefix.img_path', 'images'),
    *(missing(task, 'train', 'val', 'data_prefix.img', 'images') for task in ('detection', 'pose')),
    Bad('train: annotations of the evaluator', 'train', train(
        'detection', "val_evaluator = dict(ann_file='none.json')"),
        ('val_evaluator', 'ann_file none.json', 'does not exist')),
    Bad('train: annotations are not JSON', 'train', lambda f: train('detection', annotated(
        'train', f.write('broken.json', '{')))(f), ('train_dataloader', 'ann_file', 'broken.json', 'JSON')),
    Bad('train: no keypoints', 'train', lambda f: train('pose', annotated('train', f.annotations(
        'person_keypoints_train.json', no_keypoints)))(f),
        ('train_dataloader', 'person_keypoints_train.json', 'keypoints')),
    Bad('train: boxes as keypoints', 'train', train(
        'pose', "train_dataloader = dict(dataset=dict(ann_file='annotations/train.json'))"),
        ('train_dataloader', 'annotations/train.json', 'no annotation has "keypoints"')),
    Bad('test: other classes', 'test', lambda f: [
        f.task('detection', annotated('test', f.annotations('val.json', other_names))), f.write('some.pth', ''),
        '--work-dir', f.out], ('test_dataloader', 'val.json', 'no person', 'metainfo')),
    Bad('train: number of classes', 'train', train(
        'detection', 'model = dict(roi_head=dict(bbox_head=dict(num_classes=5)))'),
        ('roi_head.bbox_head', 'num_classes', '5', '6', 'train_dataloader')),
    Bad('train: number of classes of a segmentor', 'train', train(
        'segmentation', 'model = dict(decode_head=dict(num_classes=19))'), ('decode_head', 'num_classes', '19', '7')),
    Bad('train: no annotations', 'train', lambda f: train('detection', annotated('train', f.annotations(
        'train.json', lambda content: {**content, 'annotations': []})))(f),
        ('train_dataloader', 'train.json', 'no annotations')),
    Bad('train: nothing left by the filter', 'train', train(
        'detection', 'train_dataloader = dict(dataset=dict(filter_cfg=dict(min_size=500)))'),
        ('train_dataloader', 'no samples', 'filter_cfg')),
    Bad('test: folder without images', 'test', lambda f: with_weights('segmentation', (
        "test_dataloader = dict(dataset=dict(data_prefix=dict(img_path='annotations')))"))(f),
        ('test_dataloader', 'no samples')),
    Bad('prune: metrics', 'prune', prune('pose', '--metrics', 'dense'), ('--metrics dense', 'NAME=FILE')),
    Bad('prune: metrics missing', 'prune', prune('pose', '--metrics', 'dense=none.json'), ('--metrics', 'none.json')),
]


@pytest.mark.parametrize('bad', CASES, ids=lambda bad: bad.id)
def test_bad_task_input(files, bad, monkeypatch, capsys):
    assert_refused(bad, files, monkeypatch, capsys)
