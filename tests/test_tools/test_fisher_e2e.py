"""Fisher through the tools on detectors: neck and heads in scope, a head shared by levels, one that reads regions."""
from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmprune_ext.compact.compact_model import build_architecture
from tests.in_process import own_globals, run_tool
from tests.scenes import scenes_in

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
DATA = Path(__file__).resolve().parents[1] / 'data'


@pytest.fixture(autouse=True, scope='module')
def _scenes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with scenes_in(tmp_path_factory.mktemp('data'), train=8, val=5):
        yield


def dense_weights(name: str, folder: Path) -> Path:
    """Save the weights that a model starts with."""
    config = Config.fromfile(DATA / name)
    with own_globals(), DefaultScope.overwrite_default_scope('mmdet'):
        torch.manual_seed(0)
        model = build_architecture(config.model, config.data_preprocessor)
        model.init_weights()
    torch.save({'meta': {}, 'state_dict': model.state_dict()}, folder / 'dense.pth')
    return folder / 'dense.pth'


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_retinanet_with_neck_and_head(tmp_path):
    checkpoint = dense_weights('scenes_retinanet.py', tmp_path)
    run_tool('prune', DATA / 'scenes_retinanet.py', checkpoint, '--algorithm', 'fisher', '--flops', '0.5', '--spread',
             'isomorphic', '--scope', 'backbone', 'neck', 'bbox_head', '--calib-batches', '2', '--bn-batches', '1',
             '-o', tmp_path / 'out')
    report = read(tmp_path / 'out' / 'report.json')
    assert 0.45 < report['compact']['macs'] / report['dense']['macs'] <= 0.5
    units = read(tmp_path / 'out' / 'units.json')['units']
    narrower = {name.split('.')[0] for name, unit in units.items() if unit['keep'] < unit['num_channels']}
    assert narrower == {'backbone', 'neck', 'bbox_head'}
    run_tool('test', tmp_path / 'out' / 'compact_config.py', '--work-dir', tmp_path / 'test', '--json',
             tmp_path / 'metrics.json')
    assert 'coco/bbox_mAP' in read(tmp_path / 'metrics.json')


def test_heads_that_read_regions(tmp_path):
    checkpoint = dense_weights('scenes_detection.py', tmp_path)
    run_tool('score', DATA / 'scenes_detection.py', checkpoint, '--algorithm', 'fisher', '--scope', 'backbone', 'neck',
             'rpn_head', 'roi_head', '--calib-batches', '1', '-o', tmp_path / 'scores.json')
    found = read(tmp_path / 'scores.json')
    assert found['settings']['cost'] == 'memory'
    of_heads = [values for name, values in found['scores'].items() if name.startswith('roi_head')]
    assert len(of_heads) == 2
    # Residual branches begin with a scale of 0, through which nothing reaches them.
    assert all(max(values) > 0 for name, values in found['scores'].items() if not name.startswith('backbone.layer'))
