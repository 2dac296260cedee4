"""Every pruning method on every task, through the tools: train, export, compare, test, resume.

A new method enters by one line in PRUNERS. `checkpoint=DENSE` stands for the weights of the trained
dense model; a method that trains from scratch leaves it out.
"""
from __future__ import annotations

import copy
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from mmprune_ext import algorithms
from mmprune_ext.algorithms import OneShotAlgorithm, PruneAlgorithm
from mmprune_ext.compact.checkpoint import load_weights, read_checkpoint
from mmprune_ext.registry import MODELS
from mmprune_ext.units.checking.decisions import Decisions
from mmprune_ext.units.demo_inputs import eval_pass
from mmprune_ext.units.labels import tensors_in
from tests.in_process import own_globals, run_tool
from tests.scenes import scenes_in

DENSE = 'the dense checkpoint'
PRUNERS: dict[str, dict[str, Any]] = {
    'l1': dict(type='mmprune_ext.L1Norm', checkpoint=DENSE, target_pruning_ratio=0.5),
    'dcff': dict(type='mmprune_ext.DCFF', target_pruning_ratio=0.5),
    'chipnet': dict(type='mmprune_ext.ChipNet', checkpoint=DENSE, budget=dict(params=0.4, scope='backbone')),
    # Two iterations at lr 0.01 with momentum 0.9 take 0.026 from each number, the eighteen of classification 0.9.
    'stripe': dict(type='mmprune_ext.StripeWise', sr=0.9),
    'fisher': dict(type='mmprune_ext.Fisher', checkpoint=DENSE, calibration=dict(num_batches=1),
                   target_pruning_ratio=0.5),
    'chip': dict(type='mmprune_ext.CHIP', checkpoint=DENSE, calibration=dict(num_batches=2), target_pruning_ratio=0.5,
                 repair=dict(num_images=8, bn_batches=1)),
    'obs': dict(type='mmprune_ext.OBS', checkpoint=DENSE, calibration=dict(num_batches=2), target_pruning_ratio=0.5),
}
# What else a run needs to show what its method does in a few iterations.
HOOKS = {'stripe': [dict(type='ScatterSkeletons')]}
TASKS = {'classification': 'mmpretrain', 'detection': 'mmdet', 'segmentation': 'mmseg', 'pose': 'mmpose'}

ROOT = Path(__file__).resolve().parents[2]
CELLS = [pytest.param((pruner, task), id=f'{pruner}-{task}') for task in TASKS for pruner in PRUNERS]

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@MMENGINE_HOOKS.register_module()
class ScatterSkeletons(Hook):
    """Start the skeletons of a new run from 0.03 to 1.2, and those of every third filter from 0.03."""

    def before_train(self, runner: Runner) -> None:
        generator = torch.Generator().manual_seed(0)
        skeletons = [value for name, value in runner.model.named_parameters() if name.endswith('.skeleton')]
        for skeleton in skeletons if runner.iter == 0 else []:
            skeleton.data.copy_(0.03 + 1.17 * torch.rand(skeleton.shape, generator=generator))
            skeleton.data[::3] = 0.03


@pytest.fixture(autouse=True, scope='module')
def _scenes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Draw scenes where all configs of this module look for their data."""
    with scenes_in(tmp_path_factory.mktemp('data'), train=16, val=5):
        yield


def run(tool: str, *arguments: object) -> None:
    """Run a tool in this process, without the line breaks of its configs, which take more time than all else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **_: (text, True))
        run_tool(tool, *arguments)


def task_config(task: str) -> Config:
    config = Config.fromfile(ROOT / 'tests' / 'data' / f'scenes_{task}.py')
    # Runs of one process that start in the same second would share their message hub.
    config.experiment_name = uuid.uuid4().hex
    return config


@pytest.fixture(scope='module')
def dense(_scenes: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the checkpoints of the dense models by task, trained when first asked for."""
    class Trained(dict):
        def __missing__(self, task: str) -> Path:
            folder = tmp_path_factory.mktemp(f'dense_{task}')
            task_config(task).dump(folder / 'dense.py')
            run('train', folder / 'dense.py', '--work-dir', folder)
            self[task] = folder / 'epoch_1.pth'
            return self[task]
    return Trained()


@dataclass(frozen=True)
class Cell:
    """A pruning run of one epoch and what was exported of it."""

    task: str
    folder: Path
    dense: Path

    @property
    def config(self) -> Path:
        return self.folder / 'run.py'

    def checkpoint(self, epoch: int = 1) -> Path:
        return self.folder / 'work' / f'epoch_{epoch}.pth'

    @property
    def compact(self) -> Path:
        return self.folder / 'compact' / 'compact_config.py'


@pytest.fixture(scope='module', params=CELLS)
def cell(request: pytest.FixtureRequest, dense: Mapping[str, Path],
         tmp_path_factory: pytest.TempPathFactory) -> Cell:
    pruner, task = request.param
    folder = tmp_path_factory.mktemp(f'{pruner}_{task}')
    config = task_config(task)
    if 'checkpoint' not in PRUNERS[pruner]:  # nothing that starts at random can be left untrained
        config.model.backbone.update(frozen_stages=-1, norm_eval=False)
    config.model = dict(PRUNERS[pruner], architecture=config.model)
    config.custom_hooks = [*(config.get('custom_hooks') or []), *HOOKS.get(pruner, [])]
    source = folder / 'dense.pth'
    if config.model.get('checkpoint') == DENSE:
        shutil.copy(dense[task], source)
        config.model.checkpoint = str(source)
    config.dump(folder / 'run.py')
    made = Cell(task, folder, dense[task])
    run('train', made.config, '--work-dir', folder / 'work')
    # From here on the run stands on its own checkpoint.
    source.unlink(missing_ok=True)
    run('export_compact', made.config, made.checkpoint(), '-o', made.compact.parent)
    return made


def stored(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location='cpu', weights_only=False)


def pruned_in_training(cell: Cell) -> nn.Module:
    """Return the model of the pruning run as its Runner has it at the end."""
    config = Config.fromfile(cell.config)
    units = read_checkpoint(cell.checkpoint())['run_units']
    model = MODELS.build({**config.model, 'units': units.to_json(), 'data_preprocessor': config.data_preprocessor})
    load_weights(model, str(cell.checkpoint()))
    return model


def exported(cell: Cell) -> nn.Module:
    config = Config.fromfile(cell.compact)
    model = MODELS.build({**config.model, 'data_preprocessor': config.data_preprocessor})
    model.init_weights()
    return model


def validation_batch(cell: Cell, model: nn.Module) -> dict[str, Any]:
    """Return the first images and samples of the validation set as the model's layers see them."""
    loader = Runner.build_dataloader(Config.fromfile(cell.config).val_dataloader)
    batch = model.data_preprocessor(next(iter(loader)), training=False)
    assert batch['inputs'].std() > 0.5
    return batch


def predictions(sample: BaseDataElement) -> list[np.ndarray]:
    """Return all numbers that a model put into a data sample, as arrays."""
    found = []
    for key in sorted(sample.keys()):
        value = sample.get(key)
        if isinstance(value, BaseDataElement):
            found += predictions(value) if key.startswith(('pred', 'seg')) else []
        elif isinstance(value, (Tensor, np.ndarray)):
            found.append(np.asarray(value))
    return found


def assert_same(want: list[Any], got: list[Any]) -> None:
    assert len(want) == len(got) > 0
    for a, b in zip(want, got):
        torch.testing.assert_close(torch.as_tensor(b), torch.as_tensor(a), rtol=1e-4, atol=1e-4)


def test_compact_computes_what_the_pruning_run_does(cell):
    """On validation images: what the heads give, and the predictions made of it."""
    with own_globals(), DefaultScope.overwrite_default_scope(TASKS[cell.task]), torch.no_grad():
        run_model, compact = pruned_in_training(cell).eval(), exported(cell).eval()
        assert isinstance(run_model, type(compact))
        batch = validation_batch(cell, compact)
        forward = eval_pass(compact, batch['inputs'])
        assert_same(*(tensors_in(forward(model)) for model in (run_model, compact)))
        # Rounding must not swap two boxes of the same score.
        decisions = Decisions()
        with decisions.recorded():
            want = run_model(**copy.deepcopy(batch), mode='predict')
        with decisions.replayed():
            got = compact(**copy.deepcopy(batch), mode='predict')
        for a, b in zip(want, got, strict=True):
            assert_same(predictions(a), predictions(b))


def test_compact_is_smaller(cell):
    """In the tensors of the checkpoint and in the report."""
    content = json.loads((cell.compact.parent / 'units.json').read_text())
    units, stripes = content['units'], content.get('stripes', {})
    pruned = {name: unit for name, unit in units.items() if unit['prunable']}
    # The first convolution of each of eight blocks, and the four stages, in which all others are tied.
    assert len(pruned) >= 12
    weights = stored(cell.compact.parent / 'compact.pth')['state_dict']
    dense = stored(cell.dense)['state_dict']
    for unit in pruned.values():
        for producer in unit['channels']['producers']:
            name = f"{producer['module']}.weight"
            # Of a convolution that has lost stripes, these are saved, and not filters.
            kept = (unit['keep'] if weights[name].dim() > 2 else
                    sum(bits.bit_count() for bits in stripes[producer['module']]['keep']))
            assert (len(weights[name]), len(dense[name])) == (kept, unit['num_channels'])
    report = json.loads((cell.compact.parent / 'report.json').read_text())
    for key in ('params', 'backbone_params', 'macs', 'backbone_macs'):
        assert report['compact'][key] < report['dense'][key]
    assert report['compact']['backbone_params'] < 0.6 * report['dense']['backbone_params']


def test_tools_test_measures_the_same(cell, tmp_path):
    metrics = []
    for arguments in ([cell.compact], [cell.config, cell.checkpoint()]):
        run('test', *arguments, '--work-dir', tmp_path, '--json', tmp_path / 'metrics.json')
        metrics.append(json.loads((tmp_path / 'metrics.json').read_text()))
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-3)
    assert metrics[0]


def test_resumed_run_keeps_its_structure(cell, tmp_path):
    work = tmp_path / 'work'
    shutil.copytree(cell.folder / 'work', work)
    before = stored(work / 'epoch_1.pth')
    written = (work / 'epoch_1.pth').stat().st_mtime_ns
    (work / 'last_checkpoint').write_text(str(work / 'epoch_1.pth'))
    run('train', cell.config, '--work-dir', work, '--resume', '--cfg-options', 'train_cfg.max_epochs=2',
        f'experiment_name={uuid.uuid4().hex}')
    after = stored(work / 'epoch_2.pth')
    assert (work / 'epoch_1.pth').stat().st_mtime_ns == written  # not begun anew
    assert (after['meta']['epoch'], after['meta']['iter']) == (2, 2 * before['meta']['iter'])
    first, second = (read_checkpoint(work / f'epoch_{n}.pth')['run_units'] for n in (1, 2))
    assert {name: unit.indices for name, unit in first.items()} == {
        name: unit.indices for name, unit in second.items()}
    shapes = {key: value.shape for key, value in before['state_dict'].items()}
    assert shapes == {key: value.shape for key, value in after['state_dict'].items()}
    assert any(not torch.equal(value, after['state_dict'][key]) for key, value in before['state_dict'].items())


def test_every_algorithm_is_in_the_matrix():
    """A method that is registered and public must be in the table above."""
    bases = (PruneAlgorithm, OneShotAlgorithm)
    public = {f'mmprune_ext.{name}' for name in algorithms.__all__
              if isinstance(getattr(algorithms, name), type)
              and issubclass(getattr(algorithms, name), PruneAlgorithm)
              and getattr(algorithms, name) not in bases}
    registered = {f'mmprune_ext.{name}' for name, kind in MODELS.module_dict.items()
                  if isinstance(kind, type) and issubclass(kind, PruneAlgorithm)
                  # The example of docs/adding_an_algorithm.md is registered where it is tested.
                  and kind.__module__.startswith(algorithms.__name__)}
    assert public == registered
    assert {pruner['type'] for pruner in PRUNERS.values()} == registered
