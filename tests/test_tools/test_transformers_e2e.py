"""Transformers through the tools: pruned whole, tested, trained on, and pruned again by their unit file."""
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
from mmprune_ext.units import UnitSet, slim
from tests.in_process import own_globals, run_tool
from tests.scenes import scenes_in

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
DATA = Path(__file__).resolve().parents[1] / 'data'


@pytest.fixture(autouse=True, scope='module')
def _scenes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with scenes_in(tmp_path_factory.mktemp('data'), train=5, val=5):
        yield


def dense(name: str) -> torch.nn.Module:
    config = Config.fromfile(DATA / name)
    with own_globals(), DefaultScope.overwrite_default_scope(config.default_scope):
        torch.manual_seed(0)
        model = build_architecture(config.model, config.data_preprocessor)
        model.init_weights()
    return model


def metrics_of(config: Path, checkpoint: Path, folder: Path) -> dict[str, Any]:
    run_tool('test', config, checkpoint, '--work-dir', folder, '--json', folder / 'metrics.json')
    return json.loads((folder / 'metrics.json').read_text())


@pytest.mark.parametrize(('name', 'metric', 'heads'), [
    ('scenes_detr.py', 'coco/bbox_mAP', ['encoder', 'decoder']), ('scenes_segformer.py', 'mIoU', ['backbone'])])
def test_whole_network(tmp_path, name, metric, heads):
    model = dense(name)
    torch.save({'meta': {}, 'state_dict': model.state_dict()}, tmp_path / 'dense.pth')
    run_tool('prune', DATA / name, tmp_path / 'dense.pth', '--algorithm', 'l1', '--flops', '0.5', '--scope', 'all',
             '--bn-batches', '0', '-o', tmp_path / 'out')
    report = json.loads((tmp_path / 'out' / 'report.json').read_text())
    assert 0.4 < report['compact']['macs'] / report['dense']['macs'] <= 0.5
    units = UnitSet.load(tmp_path / 'out' / 'units.json')
    attention = [unit for unit in units.values() if any('.attn' in m.module or '_attn.' in m.module
                                                        for m in unit.producers)]
    for part in heads:  # the width of its heads
        assert any(unit.keep < unit.num_channels for unit in attention if unit.name.startswith(part))
    # From the dense architecture and the file, without tracing.
    compact = torch.load(tmp_path / 'out' / 'compact.pth', weights_only=False)['state_dict']
    expected = slim(model, units).state_dict()
    assert compact.keys() == expected.keys() and all(torch.equal(compact[key], expected[key]) for key in expected)

    config = tmp_path / 'out' / 'compact_config.py'
    assert metric in metrics_of(config, tmp_path / 'out' / 'compact.pth', tmp_path / 'test')
    run_tool('train', config, '--work-dir', tmp_path / 'run')
    trained = torch.load(tmp_path / 'run' / 'epoch_1.pth', weights_only=False)['state_dict']
    assert {key: value.shape for key, value in trained.items()} == {key: value.shape for key, value in compact.items()}
    assert any(not torch.equal(trained[key], compact[key]) for key in compact if 'attn' in key)
    assert metric in metrics_of(config, tmp_path / 'run' / 'epoch_1.pth', tmp_path / 'retest')
