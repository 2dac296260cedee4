"""Repair through the tools: `prune.py --repair`, `repair=` of a pruning config, `repair.py`; and what is refused."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from torch import Tensor

from mmprune_ext.algorithms import base
from mmprune_ext.compact.checkpoint import load_weights
from mmprune_ext.compact.compact_model import build_architecture
from mmprune_ext.settings.reading import read_config
from mmprune_ext.workflows.pruning import mending_of
from tests.in_process import run_tool
from tests.test_tools.test_bad_inputs import Bad, Files, assert_refused, other_model
from tests.test_tools.test_prune_sensitivity import written as written_sensitivity

STATES = ['pruned', 'new statistics', 'repaired', 'repaired, new statistics']


@pytest.fixture
def files(dense_config_file, dense_checkpoint, pruned, pruning_run, tmp_path) -> Files:
    return Files(dense_config_file, dense_checkpoint, pruned, pruning_run, tmp_path)


def prune(*further: object) -> Callable[[Files], list[Any]]:
    """Return the arguments of tools/prune.py for half the MACs of the tiny classifier."""
    return lambda f: [f.config, f.checkpoint, '-o', f.out, '--algorithm', 'l1', '--flops', '0.5', '--input-size', '32',
                      '32', *further]


def repair(*further: object, **replaced: Callable[[Files], Any]) -> Callable[[Files], list[Any]]:
    """Return the arguments of tools/repair.py for the pruned tiny classifier, with inputs replaced."""
    def arguments(files: Files) -> list[Any]:
        values = {'config': files.pruned / 'compact_config.py', 'dense': files.config, 'weights': files.checkpoint,
                  **{key: value(files) for key, value in replaced.items()}}
        given = [values['checkpoint']] if 'checkpoint' in values else []
        return [values['config'], *given, '--dense', values['dense'], values['weights'], '-o', files.out, *further]
    return arguments


def run_config(text: str) -> Callable[[Files], list[Any]]:
    """Return the arguments of tools/train.py for the pruning run with other settings of the model."""
    return lambda f: [f.child('c.py', f'model = dict({text})', f.run / 'run.py'), '--work-dir', f.out]


def compact(text: str) -> Callable[[Files], str]:
    """Return a function that changes the compact config."""
    return lambda f: f.child('compact.py', text.format(f=f), f.pruned / 'compact_config.py')


def by_number(files: Files) -> str:
    content = json.loads((files.pruned / 'units.json').read_text())
    for unit in content['units'].values():
        unit.pop('indices', None)
    path = files.write('numbers.json', json.dumps(content))
    return compact(f'model = dict(units={path!r})')(files)


def other_channels(files: Files) -> str:
    """Write the compact weights with other channels in their list of units than those of the unit file."""
    content = torch.load(files.pruned / 'compact.pth', weights_only=False)
    unit = content['meta']['channel_units']['units']['backbone.layer2.0.conv1']
    unit['indices'] = sorted(set(range(unit['num_channels'])) - set(unit['indices']))[:len(unit['indices'])]
    unit['keep'] = len(unit['indices'])
    return files.save('other.pth', content)


def dense_child(text: str) -> Callable[[Files], str]:
    return lambda f: f.child('dense.py', text)


BAD = [
    Bad('negative', 'prune', prune('--repair', '-1'), ('--repair', 'at least 0', '-1')),
    Bad('text', 'prune', prune('--repair', 'many'), ('--repair', 'got many')),
    Bad('no training data', 'prune', lambda f: [f.child('c.py', 'train_dataloader = None'), *prune('--repair')(f)[1:]],
        ('lacks train_dataloader', 'to repair the weights on', '--repair 0')),
    Bad('batches of nothing', 'prune', prune('--repair', '--cfg-options', 'train_dataloader.batch_size=0'),
        ('train_dataloader: batch_size', 'at least 1, but got 0')),
    Bad('missing data', 'prune',
        prune('--repair', '9', '--cfg-options', 'train_dataloader.dataset.data_root=none'),
        ('train_dataloader', 'data_root none', 'does not exist')),
    Bad('train: unknown setting', 'train', run_config('repair=dict(images=5)'),
        ('repair: unknown key "images"; known are num_images',)),
    Bad('train: no images', 'train', run_config('repair=dict(num_images=0)'), ('repair: num_images', 'at least 1')),
    Bad('train: no settings', 'train', run_config('repair=512'), ('repair: expected settings such as', '512')),
    Bad('train: missing data', 'train',
        run_config("repair=dict(dataloader=dict(dataset=dict(type='CustomDataset', data_root='none')))"),
        ('model.repair.dataloader', 'data_root none', 'does not exist')),
    Bad('train: a method that trains', 'train',
        run_config("type='mmprune_ext.DCFF', mutator=None, checkpoint=None, repair=dict(num_images=5)"),
        ('model.repair: DCFF', 'prune before they train')),
    Bad('repair: no compact config', 'repair', repair(config=lambda f: f.config),
        ('ImageClassifier, no compact model', 'compact_config.py', 'tools/prune.py --repair')),
    Bad('repair: no dense model', 'repair', lambda f: [f.pruned / 'compact_config.py', '-o', f.out], ('--dense',)),
    Bad('repair: a compact one as the dense', 'repair', repair(dense=lambda f: f.pruned / 'compact_config.py'),
        ('--dense: the config is of a compact model',)),
    Bad('repair: a pruning config as the dense', 'repair', repair(dense=lambda f: f.run / 'run.py'),
        ('L1Norm', 'dense model')),
    Bad('repair: another network', 'repair', repair(dense=dense_child('model = dict(backbone=dict(depth=14))')),
        ('--dense', 'units.json', 'layer')),
    Bad('repair: other classes', 'repair', repair(dense=dense_child('model = dict(head=dict(num_classes=12))')),
        ('--dense', 'head.fc')),
    Bad('repair: no dense weights', 'repair', repair(weights=lambda f: 'none.pth'), ('none.pth', 'no such file')),
    Bad('repair: dense weights of another network', 'repair', repair(weights=other_model),
        ('other.pth', 'does not fit')),
    Bad('repair: compact weights as dense ones', 'repair', repair(weights=lambda f: f.pruned / 'compact.pth'),
        ('compact.pth', 'does not fit')),
    Bad('repair: no compact weights', 'repair', repair(checkpoint=lambda f: 'none.pth'), ('none.pth', 'no such file')),
    Bad('repair: dense weights as compact ones', 'repair', repair(checkpoint=lambda f: f.checkpoint),
        ('epoch_3.pth', 'does not fit')),
    Bad('repair: weights of a pruning run', 'repair', repair(checkpoint=lambda f: f.run / 'epoch_1.pth'),
        ('epoch_1.pth', 'of a pruning run', 'tools/export_compact.py')),
    Bad('repair: weights of other channels', 'repair', repair(checkpoint=other_channels),
        ('other.pth', 'keeps other channels', 'units.json')),
    Bad('repair: no units', 'repair', repair(config=compact('model = dict(units=None)')),
        ('names no units', 'model.units')),
    Bad('repair: no file of units', 'repair', repair(config=compact("model = dict(units='none.json')")),
        ('none.json', 'no such file')),
    Bad('repair: units by number', 'repair', repair(config=by_number), ('numbers.json', 'no "indices"')),
    Bad('repair: names no weights', 'repair', repair(config=compact('model = dict(init_cfg=None)')),
        ('no weights to repair', 'CHECKPOINT')),
    Bad('repair: no training data', 'repair', repair(config=compact('train_dataloader = None')),
        ('lacks train_dataloader', 'to repair')),
    Bad('repair: no images', 'repair', repair('--images', '0'), ('--images', 'at least 1')),
    Bad('repair: output in proc', 'repair', lambda f: [*repair()(f), '-o', '/proc/out'], ('output folder /proc/out',)),
]


@pytest.mark.parametrize('bad', BAD, ids=lambda bad: bad.id)
def test_bad_input(files, bad, monkeypatch, capsys):
    assert_refused(bad, files, monkeypatch, capsys)


# ---------------------------------------------------------------- what they do


@pytest.fixture
def distance(tiny_config, dense_checkpoint) -> Callable[[Path], float]:
    """Return a function that gives the root mean square of what is wrong in an exported model's logits."""
    config = tiny_config()

    def logits(model: Any, path: str | None = None) -> Tensor:
        if path is not None:
            load_weights(model, path)
        batches = Runner.build_dataloader(config.val_dataloader, seed=0)
        with torch.no_grad():
            return torch.cat([model.eval()(**model.data_preprocessor(batch, False), mode='tensor')
                              for batch in batches])

    def measure(folder: Path) -> float:
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            dense = build_architecture(config.model, config.data_preprocessor)
            compact = Config.fromfile(folder / 'compact_config.py')
            model = MODELS.build({**compact.model, 'data_preprocessor': compact.data_preprocessor})
            return float((logits(model) - logits(dense, str(dense_checkpoint))).square().mean().sqrt())
    return measure


def told(folder: Path) -> dict[str, Any]:
    return json.loads((folder / 'report.json').read_text())['repair']


@pytest.mark.e2e
def test_prune_with_repair(files, distance, capsys):
    run_tool('prune', *prune('--repair', '100')(files))
    repaired = told(Path(files.out))
    assert list(repaired['distances']) == STATES
    assert repaired['kept'] == min(repaired['distances'], key=repaired['distances'].get)
    assert repaired['kept'].startswith('repaired')
    assert (repaired['images'], repaired['compared'], repaired['unseen']) == (100, 20, True)
    assert 'backbone.layer2.0.conv2' in repaired['layers']
    out = capsys.readouterr().out
    assert out.count(f'kept: {repaired["kept"]}, whose outputs are nearest') == 2  # log, last lines
    assert 'least squares for' in (Path(files.out) / 'report.txt').read_text()
    plain = files.folder / 'plain'
    run_tool('prune', *prune('-o', plain)(files))
    assert told(plain) is None
    assert distance(Path(files.out)) < 0.8 * distance(plain)
    assert (plain / 'units.json').read_bytes() == (Path(files.out) / 'units.json').read_bytes()
    # The same channels by their file.
    mask = files.folder / 'mask'
    run_tool('prune', files.config, files.checkpoint, '-o', mask, '--units', plain / 'units.json', '--input-size', '32',
             '32', '--repair', '100')
    assert told(mask)['distances'] == repaired['distances']
    first, second = (torch.load(folder / 'compact.pth', weights_only=False)['state_dict']
                     for folder in (Path(files.out), mask))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.e2e
def test_prune_repairs_by_default(files, capsys, monkeypatch):
    run_tool('prune', *prune()(files), by_default=True)
    found = told(Path(files.out))
    assert list(found['distances']) == STATES and found['kept'].startswith('repaired')
    assert found['images'] == 100  # a pass of so small a network costs next to nothing: all that are not compared on

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError('no such layer')
    monkeypatch.setattr('mmprune_ext.repair.mending.repair_least_squares', fail)
    failed, untouched = (files.folder / name for name in ('failed', 'untouched'))
    capsys.readouterr()
    run_tool('prune', *prune('-o', failed)(files), by_default=True)
    printed = capsys.readouterr()
    assert 'repair: failed (RuntimeError: no such layer); the batch statistics are' in printed.out + printed.err
    run_tool('prune', *prune('-o', untouched, '--bn-batches', '0')(files), by_default=True)
    assert told(failed) is told(untouched) is None
    before, after = (torch.load(folder / 'compact.pth', weights_only=False)['state_dict']
                     for folder in (untouched, failed))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all('running' in name or 'num_batches' in name for name in changed)
    with pytest.raises(RuntimeError, match='no such layer'):
        run_tool('prune', *prune('-o', files.folder / 'asked', '--repair')(files))


@pytest.mark.parametrize('config, size, images', [
    # 10^12 by 4,089,184,256 multiply-accumulates of ResNet-50.
    ('mmpretrain::resnet/resnet50_8xb32_in1k.py', (224, 224), 244),
    ('mmpretrain::resnet/resnet50_8xb32_in1k.py', (32, 32), 1024),
    ('mmpretrain::resnet/resnet50_8xb32_in1k.py', (1024, 1024), 16),
])
def test_images_by_default(config, size, images):
    found = mending_of(read_config(config), None, 20, size)
    assert (found.num_images, found.required) == (images, False)
    assert mending_of(read_config(config), None, 0, size) is mending_of(read_config(config), 0, 20, size) is None


@pytest.mark.e2e
def test_the_tool_repairs_what_was_pruned(files, distance, pruned):
    run_tool('repair', *repair('--images', '100', '--bn-batches', '0')(files))
    written = told(Path(files.out))
    assert list(written['distances']) == ['as given', 'repaired'] and written['kept'] == 'repaired'
    assert distance(Path(files.out)) < 0.8 * distance(pruned)
    assert (pruned / 'units.json').read_bytes() == (Path(files.out) / 'units.json').read_bytes()
    before, after = (torch.load(folder / 'compact.pth', weights_only=False) for folder in (pruned, Path(files.out)))
    assert before['meta'] == after['meta']
    run_tool('test', Path(files.out) / 'compact_config.py', '--work-dir', files.folder / 'test')


@pytest.mark.e2e
def test_each_candidate_of_a_search_is_repaired(files):
    run_tool('prune', files.config, files.checkpoint, '-o', files.out, '--algorithm', 'l1', '--input-size', '32', '32',
             '--sensitivity', written_sensitivity(files), '--max-drop', '12', '--repair', '60', '--bn-batches', '1')
    report = json.loads((Path(files.out) / 'report.json').read_text())
    assert report['repair']['kept'].startswith('repaired') and list(report['repair']['distances']) == STATES
    assert report['drop']['measured'] <= 12
    run_tool('test', Path(files.out) / 'compact_config.py', '--work-dir', files.folder / 'test', '--json',
             files.folder / 'test.json')
    # The network whose metric was measured is the one that is written.
    assert json.loads((files.folder / 'test.json').read_text())['accuracy/top1'] == pytest.approx(
        report['drop']['pruned'])


@pytest.mark.parametrize('tool', ['prune', 'repair'])
def test_an_interrupt_leaves_nothing(files, tool, monkeypatch):
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr('mmprune_ext.repair.mending.repair_least_squares', interrupt)
    with pytest.raises(SystemExit) as ended:
        run_tool(tool, *(prune('--repair', '20') if tool == 'prune' else repair())(files))
    assert ended.value.code == 130
    assert not Path(files.out).exists()


@pytest.fixture
def mended(monkeypatch) -> list[Any]:
    """What the models of runs that are built are mended to."""
    found, mend = [], base.mend

    def remember(*arguments: Any, **settings: Any) -> Any:
        found.append(mend(*arguments, **settings))
        return found[-1]

    monkeypatch.setattr(base, 'mend', remember)
    return found


@pytest.mark.e2e
def test_a_run_repairs_once(files, mended, pruning_config, capsys):
    config = pruning_config({'model.repair': dict(num_images=60, bn_batches=1), 'train_cfg.max_epochs': 2})
    config.optim_wrapper.optimizer.lr = 1e-12
    config.dump(files.folder / 'run.py')
    arguments = [files.folder / 'run.py', '--work-dir', files.out]
    run_tool('train', *arguments, '--cfg-options', 'train_cfg.max_epochs=1')
    assert len(mended) == 1 and mended[0].images == 60 and list(mended[0].distances) == STATES
    run_tool('train', *arguments, '--resume')
    run_tool('test', files.folder / 'run.py', Path(files.out) / 'epoch_2.pth', '--work-dir', files.folder / 'test')
    run_tool('export_compact', files.folder / 'run.py', Path(files.out) / 'epoch_2.pth', '-o', files.folder / 'compact')
    assert len(mended) == 1
    logs = [path.read_text() for path in Path(files.out).glob('*/*.log')]
    assert sum(f'repair: kept: {mended[0].kept}' in log for log in logs) == 1
    assert (Path(files.out) / 'epoch_2.pth').is_file()


@pytest.mark.e2e
def test_each_round_repairs(files, mended, pruning_config):
    config = pruning_config({'model.repair': dict(num_images=60, bn_batches=1)})
    config.dump(files.folder / 'run.py')
    run_tool('train', files.folder / 'run.py', '--work-dir', files.out, '--rounds', '2')
    assert len(mended) == 2
