"""Deploying a compact model of each task, and running it by the program of the page without torch."""
from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmprune_ext.compact.export import export
from mmprune_ext.settings.reading import read_config
from mmprune_ext.units import slim, trace_units
from mmprune_ext.units.demo_inputs import tracing_inputs
from tests.in_process import run_tool
from tests.scenes import scenes_in
from tests.test_docs.commands import ROOT, blocks

DATA = Path(__file__).resolve().parents[1] / 'data'
TASKS = ['classification', 'retinanet', 'segmentation', 'pose']
# Without torch, and without what only trains.
ALONE = "import sys\nfor name in ('torch', 'mmengine', 'mmcv', 'mmprune_ext'):\n    sys.modules[name] = None\n"

pytestmark = pytest.mark.e2e


@pytest.fixture(scope='module', autouse=True)
def _scenes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with scenes_in(tmp_path_factory.mktemp('data'), train=5, val=5):
        yield


def compact(task: str, folder: Path) -> list[tuple[int, ...]]:
    """Write a compact model that keeps the first half of every unit; return the shapes of its weights.

    Its weights are random: what finds nothing would be the same in every runtime, so scores are spread.
    """
    config = read_config(str(DATA / f'scenes_{task}.py'))
    torch.manual_seed(0)
    model = MODELS.build({**config.model, 'data_preprocessor': config.data_preprocessor})
    units = trace_units(model, tracing_inputs(config))
    for unit in units.values():
        if unit.prunable:
            unit.choose(range(unit.num_channels // 2))
    slim(model, units)
    model.eval()
    if task == 'retinanet':
        torch.nn.init.normal_(model.bbox_head.retina_cls.weight, std=0.3)
    export(model, units, config, config.model.to_dict(), folder, tracing_inputs(config))
    unused = 'auxiliary_head'
    return sorted(tuple(value.shape) for name, value in model.state_dict().items()
                  if value.dim() > 1 and not name.startswith(unused))


@pytest.mark.parametrize('task', TASKS)
def test_a_task_from_the_config_to_a_program(task, tmp_path):
    import onnx
    with DefaultScope.overwrite_default_scope('mmengine'):
        wanted = compact(task, tmp_path / 'compact')
    run_tool('deploy', tmp_path / 'compact' / 'compact_config.py', '-o', tmp_path / 'out', '--dynamic', 'batch',
             *([] if task == 'pose' else ['size']), '--metric', 3)
    out = tmp_path / 'out'
    stored = onnx.load(str(out / 'model.onnx')).graph.initializer
    shapes = sorted(tuple(tensor.dims) for tensor in stored if len(tensor.dims) > 1 and tensor.dims[0] > 1)
    assert [shape for shape in wanted if shape not in shapes] == []  # the exporter adds small constants of its own
    assert sum(np.prod(shape) for shape in shapes) < sum(np.prod(shape) for shape in wanted) + 1000
    check = json.loads((out / 'deploy.json').read_text())['check']
    assert len(check['outputs']) == (2 if task == 'pose' else 4) and check['metric']['metrics']
    run_program(task, out)


def run_program(task: str, out: Path) -> None:
    """Run the page's program of a task in the folder, on an image that is not of the size of the input."""
    import cv2
    names = {'retinanet': 'detection'}
    places = ['classification', 'detection', 'segmentation', 'pose']
    programs = [block for block in blocks(ROOT / 'docs' / 'deploy.md', 'python') if 'decoding.decode' in block]
    program = programs[places.index(names.get(task, task))]
    assert len(program.strip().splitlines()) <= 15
    image = np.random.RandomState(0).randint(0, 256, (70, 90, 3), dtype=np.uint8)
    cv2.imwrite(str(out / 'image.png'), image)
    (out / 'program.py').write_text(ALONE + program)
    done = subprocess.run([sys.executable, 'program.py'], cwd=out, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if task == 'segmentation':
        labels = cv2.imread(str(out / 'labels.png'), cv2.IMREAD_GRAYSCALE)
        assert labels.shape == (70, 90) and labels.max() < 7
        return
    lines = done.stdout.splitlines()
    assert len(lines) == 17 if task == 'pose' else len(lines) >= 1
    if task == 'classification':
        config = Config.fromfile(DATA / 'scenes_classification.py')
        assert lines[0].split()[0] in config.test_dataloader.dataset.metainfo.classes
