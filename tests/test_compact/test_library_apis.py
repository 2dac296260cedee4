"""Exported folders in the libraries' own Python API: they give what tools/test.py gives."""
from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import save_checkpoint

from mmprune_ext.compact.compact_model import build_architecture
from mmprune_ext.engine import runs
from mmprune_ext.model_config import architecture_of
from mmprune_ext.settings.reading import read_config
from mmprune_ext.workflows.pruning import prune_model
from tests.in_process import own_globals
from tests.scenes import scenes_in

ROOT = Path(__file__).resolve().parents[2]
SCOPES = {'classification': 'mmpretrain', 'detection': 'mmdet', 'segmentation': 'mmseg', 'pose': 'mmpose'}

pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings('ignore')]


@pytest.fixture(autouse=True, scope='module')
def _scenes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with scenes_in(tmp_path_factory.mktemp('data'), train=8, val=5):
        yield


@pytest.fixture(autouse=True)
def _fresh_globals() -> Iterator[None]:
    with own_globals():
        yield


@pytest.fixture(scope='module')
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives the folder of a pruned model of a task, made when first asked for."""
    made: dict[str, Path] = {}

    def make(task: str) -> Path:
        if task not in made:
            folder = tmp_path_factory.mktemp(task)
            config = read_config(str(ROOT / 'tests' / 'data' / f'scenes_{task}.py'))
            torch.manual_seed(0)
            with DefaultScope.overwrite_default_scope(SCOPES[task]):
                model = build_architecture(config.model, config.get('data_preprocessor'))
                model.init_weights()
            save_checkpoint(dict(state_dict=model.state_dict(), meta={}), str(folder / 'dense.pth'))
            with own_globals(), DefaultScope.overwrite_default_scope(SCOPES[task]):
                prune_model(config, str(folder / 'dense.pth'), folder / 'compact', 'l1', {}, ratios=0.5, bn_batches=2)
            made[task] = folder / 'compact'
        return made[task]
    return make


class Keep(Hook):
    """Keep what a test predicts, by the path of the image."""

    def __init__(self) -> None:
        self.predicted: dict[str, Any] = {}

    def after_test_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.predicted.update((sample.img_path, sample) for sample in outputs)


def by_the_tool(folder: Path, work_dir: Path) -> dict[str, Any]:
    """Return what tools/test.py predicts, by image."""
    config = read_config(str(folder / 'compact_config.py'))
    config.update(work_dir=str(work_dir), experiment_name=uuid.uuid4().hex)
    runner = runs.build_runner(config, 'none', runs.set_checkpoint(config, None), ('test', ))
    keep = Keep()
    runner.register_hook(keep)
    runner.test()
    assert len(keep.predicted) >= 3
    return keep.predicted


def files(folder: Path) -> tuple[str, str]:
    return str(folder / 'compact_config.py'), str(folder / 'compact.pth')


def assert_close(got: Any, want: Any) -> None:
    want = np.asarray(want)
    assert want.size and np.ptp(want) > 0  # something to compare
    np.testing.assert_allclose(np.asarray(got), want, rtol=1e-4, atol=1e-5)


def numbers(sample: Any) -> list[Any]:
    """Return what a sample of any task says of its image."""
    if 'pred_instances' in sample:
        return [sample.pred_instances[key] for key in ('scores', 'bboxes', 'keypoints') if key in sample.pred_instances]
    return [sample.seg_logits.data] if 'seg_logits' in sample else [sample.pred_score]


# ---------------------------------------------------------------- detection


def test_init_detector_and_inference_detector(folder_of, tmp_path):
    from mmdet.apis import inference_detector, init_detector
    from mmdet.models import FasterRCNN
    folder = folder_of('detection')
    model = init_detector(*files(folder), device='cpu')
    assert type(model) is FasterRCNN
    for image, want in by_the_tool(folder, tmp_path).items():
        got = inference_detector(model, image).pred_instances
        assert_close(got.bboxes, want.pred_instances.bboxes)
        assert_close(got.scores, want.pred_instances.scores)
        assert torch.equal(got.labels, want.pred_instances.labels)


def test_det_inferencer(folder_of, tmp_path):
    from mmdet.apis import DetInferencer
    folder = folder_of('detection')
    inferencer = DetInferencer(*files(folder), device='cpu', show_progress=False)
    want = by_the_tool(folder, tmp_path)
    results = inferencer(list(want), pred_score_thr=0.0)['predictions']
    for got, sample in zip(results, want.values(), strict=True):
        assert_close(got['scores'], sample.pred_instances.scores)
        assert_close(got['bboxes'], sample.pred_instances.bboxes)


# ---------------------------------------------------------------- segmentation


def test_segmentor(folder_of, tmp_path):
    from mmseg.apis import MMSegInferencer, inference_model, init_model
    from mmseg.models import EncoderDecoder
    folder = folder_of('segmentation')
    model = init_model(*files(folder), device='cpu')
    assert type(model) is EncoderDecoder
    inferencer = MMSegInferencer(*files(folder), device='cpu', classes=[str(i) for i in range(7)],
                                 palette=[[i] * 3 for i in range(7)])
    for image, want in by_the_tool(folder, tmp_path).items():
        assert_close(inference_model(model, image).seg_logits.data, want.seg_logits.data)
        np.testing.assert_array_equal(inferencer(image)['predictions'], want.pred_sem_seg.data[0])


# ---------------------------------------------------------------- pose


def test_pose_estimator(folder_of, tmp_path):
    from mmpose.apis import inference_topdown, init_model
    from mmpose.models import TopdownPoseEstimator
    folder = folder_of('pose')
    model = init_model(*files(folder), device='cpu')
    assert type(model) is TopdownPoseEstimator
    for image, want in by_the_tool(folder, tmp_path).items():
        box = want.gt_instances.bboxes
        got, = inference_topdown(model, image, box, bbox_format='xyxy')
        assert_close(got.pred_instances.keypoints, want.pred_instances.keypoints)
        assert_close(got.pred_instances.keypoint_scores, want.pred_instances.keypoint_scores)


# ---------------------------------------------------------------- classification


def test_classifier(folder_of, tmp_path):
    from mmpretrain import get_model
    from mmpretrain.apis import ImageClassificationInferencer
    from mmpretrain.models import ImageClassifier
    folder = folder_of('classification')
    config, checkpoint = files(folder)
    want = by_the_tool(folder, tmp_path)
    # Without `pretrained` too: the config names its weights.
    for weights in (checkpoint, False):
        model = get_model(config, pretrained=weights, device='cpu')
        assert type(model) is ImageClassifier
        inferencer = ImageClassificationInferencer(model)
        for got, sample in zip(inferencer(list(want)), want.values(), strict=True):
            assert_close(got['pred_scores'], sample.pred_score)
    inferencer = ImageClassificationInferencer(config, pretrained=checkpoint, device='cpu')
    image, sample = next(iter(want.items()))
    assert_close(inferencer(image)[0]['pred_scores'], sample.pred_score)


# ---------------------------------------------------------------- the shape, and the former one


@pytest.mark.parametrize('task', SCOPES)
def test_the_config_has_the_keys_of_the_users_model(folder_of, task):
    config = Config.fromfile(ROOT / 'tests' / 'data' / f'scenes_{task}.py')
    stock = config.model
    if task != 'classification':
        # The libraries' APIs know the preprocessor of the model alone, and so a top-level one goes there.
        stock.data_preprocessor = config.data_preprocessor
    model = Config.fromfile(folder_of(task) / 'compact_config.py').model
    assert model.keys() == stock.keys() | {'type', 'architecture', 'units', 'init_cfg'}
    assert model.architecture == stock.type
    for key in stock.keys() - {'type'}:
        assert model[key] == stock[key], key
    assert architecture_of(model) == stock


def former(folder: Path, target: Path) -> Path:
    """Write an exported folder as version 0.1 did, the architecture one level down."""
    config = Config.fromfile(folder / 'compact_config.py')
    config.model = dict(type='mmprune_ext.CompactModel', architecture=architecture_of(config.model),
                        units=config.model.units, init_cfg=config.model.init_cfg)
    target.mkdir()
    config.dump(target / 'compact_config.py')
    return target


def test_former_folders(folder_of, tmp_path):
    """They test as before, and the libraries' API takes those that read no key of the model."""
    from mmseg.apis import inference_model, init_model
    for task in SCOPES:
        folder = folder_of(task)
        old = former(folder, tmp_path / task)
        was = by_the_tool(old, tmp_path / 'old')
        for image, want in by_the_tool(folder, tmp_path / 'new').items():
            for a, b in zip(numbers(was[image]), numbers(want), strict=True):
                assert_close(a, b)
    segmentor = init_model(str(tmp_path / 'segmentation' / 'compact_config.py'),
                           str(folder_of('segmentation') / 'compact.pth'), device='cpu')
    image, want = next(iter(by_the_tool(folder_of('segmentation'), tmp_path / 'c').items()))
    assert_close(inference_model(segmentor, image).seg_logits.data, want.seg_logits.data)


def test_the_preprocessor_is_overridden_at_either_level(folder_of):
    path = str(folder_of('detection') / 'compact_config.py')
    mean = [1.0, 2.0, 3.0]
    for key in ('data_preprocessor.mean', 'model.data_preprocessor.mean'):
        config = read_config(path, {key: mean})
        assert config.model.data_preprocessor.mean == mean
        assert config.model.data_preprocessor.pad_size_divisor == 32


@pytest.mark.parametrize('shape', ['own', 'former'])
def test_another_number_of_classes(folder_of, tmp_path, shape, capsys):
    """`--cfg-options model.head.num_classes=4` fine-tunes with a head that starts anew, and says so in one line."""
    folder = folder_of('classification')
    if shape == 'former':
        folder = former(folder, tmp_path / 'former')
    config = read_config(str(folder / 'compact_config.py'), {'model.head.num_classes': 4})
    capsys.readouterr()
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        MMLogger.get_instance('run')  # as a Runner has one
        model = MODELS.build({**config.model, 'data_preprocessor': config.data_preprocessor})
    line, = [line for line in ''.join(capsys.readouterr()).splitlines() if line]
    assert re.search(r'WARNING - checkpoint \S*compact\.pth: 2 tensors of the outputs start anew, .* '
                     r'\(first: head\.fc\.weight is \(4, \d+\) here, \(6, \d+\) there\)', line)
    weights = torch.load(folder_of('classification') / 'compact.pth', weights_only=False)['state_dict']
    assert model.head.fc.weight.shape == (4, weights['head.fc.weight'].shape[1])
    kept = {key: value for key, value in model.state_dict().items() if not key.startswith('head.fc')}
    assert kept and all(torch.equal(value, weights[key]) for key, value in kept.items())
    before = model.head.fc.weight.clone()
    model.init_weights()  # as the Runner does before it trains
    assert torch.equal(model.head.fc.weight, before) and all(
        torch.equal(value, weights[key]) for key, value in model.state_dict().items() if key in kept)


def test_report_is_of_the_same_model(folder_of):
    report = json.loads((folder_of('detection') / 'report.json').read_text())
    assert report['compact']['params'] < report['dense']['params']
