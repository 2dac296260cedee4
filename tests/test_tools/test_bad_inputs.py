"""What a user can get wrong: one message that names the thing and the fix, exit code 2, no traces.

The tools run in this process, since starting Python takes longer than what is tested; a few run as
a user starts them.
"""
from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from mmprune_ext.engine import runs
from tests.in_process import TOOLS, run_tool


@dataclass(frozen=True)
class Files:
    """What a bad input is made of: good files, and a folder for bad ones and for output."""

    config: Path
    checkpoint: Path
    pruned: Path
    run: Path
    folder: Path

    @property
    def out(self) -> str:
        return str(self.folder / 'out')

    def write(self, name: str, content: str | bytes) -> str:
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    def save(self, name: str, content: Any) -> str:
        torch.save(content, self.folder / name)
        return str(self.folder / name)

    def weights(self) -> dict[str, Any]:
        return torch.load(self.checkpoint, weights_only=False)

    def child(self, name: str, text: str, base: Path | None = None) -> str:
        """Write a config that changes another by the lines of `text`."""
        return self.write(name, f'_base_ = [{str(base or self.config)!r}]\n{text}\n')

    def units(self, **changes: Any) -> str:
        """Write the unit file of the pruned model with some of its entries changed."""
        content = json.loads((self.pruned / 'units.json').read_text())
        content.update(changes)
        return self.write('units.json', json.dumps(content))


@pytest.fixture
def files(dense_config_file, dense_checkpoint, pruned, pruning_run, tmp_path) -> Files:
    return Files(dense_config_file, dense_checkpoint, pruned, pruning_run, tmp_path)


@dataclass(frozen=True)
class Bad:
    """A command line, and what its message must name."""

    id: str
    tool: str
    arguments: Callable[[Files], list[Any]]
    says: tuple[str, ...]


def prune(*target: str, **replaced: Any) -> Callable[[Files], list[Any]]:
    """Return the arguments of tools/prune.py with a target, and with inputs replaced."""
    def arguments(files: Files) -> list[Any]:
        values = {'config': files.config, 'checkpoint': files.checkpoint, 'out': files.out}
        values.update({key: value(files) for key, value in replaced.items()})
        return [values['config'], values['checkpoint'], '-o', values['out'], '--algorithm', 'l1',
                '--input-size', '32', '32', '--bn-batches', '0', *(target or ('--flops', '0.5'))]
    return arguments


def score(algorithm: str = 'chip', **replaced: Any) -> Callable[[Files], list[Any]]:
    """Return the arguments of tools/score.py, with inputs replaced."""
    def arguments(files: Files) -> list[Any]:
        values = {'config': files.config, 'checkpoint': files.checkpoint}
        values.update({key: value(files) for key, value in replaced.items()})
        return [values['config'], values['checkpoint'], '--algorithm', algorithm, '--input-size', '32', '32',
                '-o', files.out]
    return arguments


def compact(text: str) -> Callable[[Files], list[Any]]:
    """Return the arguments of a tool for a changed compact config."""
    return lambda f: [f.child('compact.py', text.format(f=f), f.pruned / 'compact_config.py'),
                      '--work-dir', f.out]


def truncated(files: Files) -> str:
    content = files.checkpoint.read_bytes()
    return files.write('truncated.pth', content[:len(content) // 2])


def other_model(files: Files) -> str:
    return files.save('other.pth', {'meta': {'epoch': 1, 'iter': 6}, 'state_dict': {
        'backbone.stem.weight': torch.zeros(4, 3, 3, 3)}})


def other_classes(files: Files) -> str:
    content = files.weights()
    for key in ('head.fc.weight', 'head.fc.bias'):
        content['state_dict'][key] = content['state_dict'][key][:7]
    return files.save('classes.pth', content)


def nan_weights(files: Files) -> str:
    content = files.weights()
    content['state_dict']['backbone.layer2.0.conv1.weight'].fill_(float('nan'))
    return files.save('nan.pth', content)


def occupied(files: Files) -> str:
    """Root may write to every folder, but nobody to one below a file."""
    files.write('occupied', '')
    return str(files.folder / 'occupied' / 'out')


PRUNE = [
    Bad('no config', 'prune', prune(config=lambda f: f.folder / 'none.py'), ('config', 'none.py', 'no such file')),
    Bad('no config in library', 'prune', prune(config=lambda f: 'mmpretrain::resnet/none.py'),
        ('config mmpretrain::resnet/none.py',)),
    Bad('folder as config', 'prune', prune(config=lambda f: f.folder), ('config', 'is a folder')),
    Bad('syntax error', 'prune', prune(config=lambda f: f.write('bad.py', 'model = dict(\n')),
        ('bad.py', 'cannot be read', 'SyntaxError')),
    Bad('missing base', 'prune', prune(config=lambda f: f.write('bad.py', "_base_ = ['none.py']\n")),
        ('bad.py', 'cannot be read', 'none.py')),
    Bad('text as config', 'prune', prune(config=lambda f: f.write('bad.txt', 'hello')),
        ('bad.txt', 'cannot be read')),
    Bad('no model', 'prune', prune(config=lambda f: f.write('bad.py', 'a = 1\n')), ('bad.py', 'no "model" section')),
    Bad('model without type', 'prune', prune(config=lambda f: f.write('bad.py', 'model = dict(a=1)\n')),
        ('model', '"type"')),
    Bad('unknown import', 'prune',
        prune(config=lambda f: f.write('bad.py', "custom_imports = dict(imports=['no_such_package'])\nmodel={}\n")),
        ('bad.py', 'no_such_package')),
    Bad('unknown module', 'prune',
        prune(config=lambda f: f.child('bad.py', "model = dict(backbone=dict(type='ResNettt'))")),
        ('ResNettt', 'is not in the', 'did you mean ResNet')),
    Bad('unknown argument', 'prune',
        prune(config=lambda f: f.child('bad.py', 'model = dict(backbone=dict(widht=3))')), ('widht',)),
    Bad('impossible value', 'prune',
        prune(config=lambda f: f.child('bad.py', 'model = dict(backbone=dict(depth=9))')), ('depth', '9')),
    Bad('a pruning config', 'prune', prune(config=lambda f: f.run / 'run.py'), ('L1Norm', 'tools/train.py')),
    Bad('no checkpoint', 'prune', prune(checkpoint=lambda f: f.folder / 'none.pth'), ('none.pth', 'no such file')),
    Bad('relative checkpoint', 'prune', prune(checkpoint=lambda f: 'weights/none.pth'),
        ('checkpoint weights/none.pth', '/weights/none.pth: relative paths begin at', 'nor is there a folder')),
    Bad('misspelt checkpoint', 'prune', prune(checkpoint=lambda f: f.checkpoint.parent / 'epoch3.pth'),
        ('epoch3.pth', 'did you mean epoch_3.pth?')),
    Bad('truncated checkpoint', 'prune', prune(checkpoint=truncated), ('truncated.pth', 'cannot be read')),
    Bad('text as checkpoint', 'prune', prune(checkpoint=lambda f: f.write('a.pth', 'hello')),
        ('a.pth', 'not a PyTorch checkpoint')),
    Bad('empty checkpoint', 'prune', prune(checkpoint=lambda f: f.write('a.pth', '')), ('a.pth', 'cannot be read')),
    Bad('list as checkpoint', 'prune', prune(checkpoint=lambda f: f.save('a.pth', [1])), ('a.pth', 'got list')),
    Bad('no weights', 'prune', prune(checkpoint=lambda f: f.save('a.pth', {'state_dict': {}})),
        ('a.pth', 'holds no weights')),
    Bad('other model', 'prune', prune(checkpoint=other_model), ('other.pth', 'does not fit', 'backbone.conv1.weight')),
    Bad('other classes', 'prune', prune(checkpoint=other_classes), ('classes.pth', 'head.fc', 'number of classes')),
    Bad('NaN weights', 'prune', prune(checkpoint=nan_weights), ('backbone.layer2.0.conv1', 'NaN')),
    Bad('checkpoint of a pruning run', 'prune', prune(checkpoint=lambda f: f.run / 'epoch_1.pth'),
        ('epoch_1.pth', 'export it with tools/export_compact.py')),
    Bad('unknown algorithm', 'prune', lambda f: [*prune()(f), '--algorithm', 'l2'], ('unknown algorithm "l2"', 'l1')),
    Bad('unknown option', 'prune', prune('--algorithm', 'fisher', '--flops', '0.5', '--method-options', 'cosst=macs'),
        ('fisher', '"cosst"', 'cost')),
    Bad('option of another method', 'prune', prune('--flops', '0.5', '--method-options', 'cost=macs'),
        ('l1', '"cost"', 'it has none')),
    Bad('option with a flag', 'prune', prune('--algorithm', 'obs', '--flops', '0.5', '--method-options', 'divisor=2'),
        ('obs', '"divisor"', 'it has ridge, positions')),
    Bad('impossible option', 'prune', prune('--algorithm', 'fisher', '--flops', '0.5', '--method-options', 'cost=time'),
        ('FisherMutator', 'memory, macs, params', 'time')),
    Bad('budget too small', 'prune', prune('--flops', '0.0001'), ('flops cannot be reduced to 0.0%', 'leave')),
    Bad('budget 0', 'prune', prune('--params', '0'), ('--params', 'share that remains', 'got 0')),
    Bad('budget 1.5', 'prune', prune('--channels', '1.5'), ('channels', 'at most 1', '1.5')),
    Bad('budget of volume 2', 'prune', prune('--volume', '2'), ('--volume', 'at most 1', 'got 2; did you mean 0.02?')),
    Bad('budget in per cent', 'prune', prune('--flops', '50'), ('--flops', 'got 50; did you mean 0.5?')),
    Bad('budget nan', 'prune', prune('--flops', 'nan'), ('flops', 'nan')),
    Bad('budget text', 'prune', prune('--flops', 'half'), ('--flops', 'half')),
    Bad('no target', 'prune', lambda f: prune()(f)[:-2], ('--flops', 'required')),
    Bad('two targets', 'prune', prune('--flops', '0.5', '--ratio', '0.5'), ('--ratio', 'not allowed with')),
    Bad('unknown budget scope', 'prune', prune('--flops', '0.5', '--budget-scope', 'nek'), ('no submodule "nek"',)),
    Bad('ratio 1', 'prune', prune('--ratio', '1.0'), ('below 1', '1.0')),
    Bad('ratio negative', 'prune', prune('--ratio=-0.1'), ('at least 0', '-0.1')),
    Bad('ratio in per cent', 'prune', prune('--ratio', '30'), ('share of channels removed', 'did you mean 0.3?')),
    Bad('ratio nan', 'prune', prune('--ratio', 'nan'), ('pruning ratio', 'nan')),
    Bad('ratio file missing', 'prune', prune('--ratio', 'none.json'), ('none.json', 'no such file')),
    Bad('ratio file malformed', 'prune', lambda f: prune('--ratio', f.write('r.json', '{"a": '))(f),
        ('r.json', 'not valid JSON', 'line 1')),
    Bad('unknown unit', 'prune', lambda f: prune('--ratio', f.write('r.json', '{"backbone.layer1.0.conv9": 0.5}'))(f),
        ('r.json', 'unknown channel unit "backbone.layer1.0.conv9"', 'did you mean')),
    Bad('unit of the output', 'prune', lambda f: prune('--ratio', f.write('r.json', '{"head.fc": 0.5}'))(f),
        ('r.json', 'head.fc', 'cannot be pruned')),
    Bad('malformed string', 'prune', prune('--ratio', '[0.1]+0.2'), ('sparsity string', 'malformed')),
    Bad('string of wrong length', 'prune', prune('--ratio', '[0.1]*50'), ('50 ratios', 'expected 6')),
    Bad('ratio in string', 'prune', prune('--ratio', '[0.]+[1.5]*5'), ('pruning ratio', '1.5')),
    Bad('exclude without match', 'prune', prune('--flops', '0.5', '--exclude', 'layer9*'),
        ('exclude', '"layer9*"', 'tools/get_channel_units.py')),
    Bad('misspelt exclude', 'prune', prune('--flops', '0.5', '--exclude', 'backbone.layer1.0.cnv1'),
        ('exclude', '"backbone.layer1.0.cnv1"; did you mean backbone.layer1.0.conv1')),
    Bad('all excluded', 'prune', prune('--flops', '0.5', '--exclude', '*'), ('no channel unit', 'exclude')),
    Bad('unknown scope', 'prune', prune('--flops', '0.5', '--scope', 'bakbone'), ('bakbone', 'backbone')),
    Bad('divisor 0', 'prune', prune('--flops', '0.5', '--divisor', '0'), ('--divisor', 'at least 1')),
    Bad('min channels -1', 'prune', prune('--flops', '0.5', '--min-channels', '-1'), ('--min-channels', 'at least 1')),
    Bad('input size 0', 'prune', prune('--flops', '0.5', '--input-size', '0', '32'),
        ('--input-size', 'at least 1', '0')),
    Bad('input size text', 'prune', prune('--flops', '0.5', '--input-size', 'a', '32'), ('--input-size', 'got a')),
    Bad('batches -1', 'prune', prune('--flops', '0.5', '--bn-batches', '-1'), ('--bn-batches', '-1')),
    Bad('output below a file', 'prune', prune(out=occupied), ('output folder', 'cannot be written to')),
    Bad('output in proc', 'prune', prune(out=lambda f: '/proc/out'), ('output folder /proc/out',)),
    Bad('output where a result is', 'prune', prune(out=lambda f: f.pruned),
        ('output folder', 'an earlier result (compact.pth, compact_config.py, report.json, report.txt and 2 more)',
         '--overwrite')),
    Bad('output beside other files', 'prune', prune(out=lambda f: f.checkpoint.parent),
        ('output folder', 'holds other files (', 'epoch_1.pth', ' and 2 more)', '--overwrite')),
    Bad('option without =', 'prune', lambda f: [*prune()(f), '--cfg-options', 'model'], ('--cfg-options', 'model')),
    Bad('option into a value', 'prune', lambda f: [*prune()(f), '--cfg-options', 'model.type.x.y=1'],
        ('--cfg-options',)),
    Bad('missing data', 'prune',
        lambda f: [*prune()(f), '--bn-batches', '1', '--cfg-options', 'train_dataloader.dataset.data_root=none'],
        ('train_dataloader', 'data_root none', 'does not exist')),
]
OTHERS = [
    Bad('units: unknown scope', 'get_channel_units', lambda f: [f.config, '--scope', 'neckk', '-o', f'{f.out}/u.json'],
        ('neckk', 'backbone')),
    Bad('units: output below a file', 'get_channel_units', lambda f: [f.config, '-o', occupied(f)], ('occupied',)),
    Bad('units: output is a folder', 'get_channel_units', lambda f: [f.config, '-o', f.folder], ('is a folder',)),
    Bad('units: output is there', 'get_channel_units', lambda f: [f.config, '-o', f.checkpoint],
        ('is there already', '--overwrite')),
    Bad('train: no data', 'train', lambda f: [f.config, '--work-dir', f.out, '--cfg-options',
                                              'val_dataloader.dataset.data_root=none'],
        ('val_dataloader', 'data_root none', 'does not exist')),
    Bad('train: no annotations', 'train', lambda f: [f.config, '--work-dir', f.out, '--cfg-options',
                                                     'train_dataloader.dataset.ann_file=none.txt'],
        ('train_dataloader', 'none.txt', 'does not exist')),
    Bad('train: no folder of the split', 'train', lambda f: [f.config, '--work-dir', f.out, '--cfg-options',
                                                             'train_dataloader.dataset.data_prefix=trian'],
        ('train_dataloader', 'trian', 'does not exist')),
    Bad('train: no data section', 'train', lambda f: [f.child('c.py', 'train_dataloader = None'), '--work-dir', f.out],
        ('lacks train_dataloader',)),
    Bad('train: resume what is not', 'train', lambda f: [f.config, '--work-dir', f.out, '--resume', 'none.pth'],
        ('--resume', 'none.pth', 'no such file')),
    Bad('train: resume by another model', 'train', lambda f: [f.config, '--work-dir', f.out, '--resume',
                                                              other_model(f)], ('other.pth', 'does not fit')),
    Bad('train: resume a dense run by a pruned one', 'train',
        lambda f: [f.config, '--work-dir', f.out, '--resume', f.run / 'epoch_1.pth'],
        ('epoch_1.pth', 'pruning run')),
    Bad('train: resume by weights alone', 'train',
        lambda f: [f.pruned / 'compact_config.py', '--work-dir', f.out, '--resume', f.pruned / 'compact.pth'],
        ('compact.pth', 'load_from')),
    Bad('train: resume a pruning run by a dense one', 'train',
        lambda f: [f.run / 'run.py', '--work-dir', f.out, '--resume', f.checkpoint],
        ('epoch_3.pth', 'not of a pruning run')),
    Bad('train: no torchrun', 'train', lambda f: [f.config, '--work-dir', f.out, '--launcher', 'pytorch'],
        ('launcher', 'RANK', 'tools/dist_train.sh')),
    Bad('train: unknown launcher', 'train', lambda f: [f.config, '--work-dir', f.out, '--launcher', 'ray'],
        ('--launcher', 'ray')),
    Bad('train: output below a file', 'train', lambda f: [f.config, '--work-dir', occupied(f)], ('output folder',)),
    Bad('train: mixed precision on the CPU', 'train', lambda f: [f.config, '--work-dir', f.out, '--amp'],
        ('--amp', 'accelerator')),
    Bad('train: no dense checkpoint', 'train',
        lambda f: [f.child('c.py', "model = dict(checkpoint='none.pth')", f.run / 'run.py'), '--work-dir', f.out],
        ('none.pth', 'no such file')),
    Bad('train: no weights to prune', 'train',
        lambda f: [f.child('c.py', 'model = dict(checkpoint=None)', f.run / 'run.py'), '--work-dir', f.out],
        ('L1Norm: there are no trained weights to prune', 'model.checkpoint', 'load_from', 'from_scratch=True')),
    Bad('train: from scratch beside checkpoint', 'train',
        lambda f: [f.child('c.py', 'model = dict(from_scratch=True)', f.run / 'run.py'), '--work-dir', f.out],
        ('from_scratch=True', 'epoch_3.pth', 'take one of the two out')),
    Bad('train: from scratch beside load_from', 'train',
        lambda f: [f.child('c.py', f'load_from = {str(f.checkpoint)!r}\n'
                           'model = dict(checkpoint=None, from_scratch=True)', f.run / 'run.py'), '--work-dir', f.out],
        ('from_scratch=True', 'epoch_3.pth', 'take one of the two out')),
    Bad('train: no _delete_', 'train',
        lambda f: [f.child('c.py', "model = dict(type='mmprune_ext.L1Norm', architecture={{_base_.model}}, "
                           'target_pruning_ratio=0.5)'), '--work-dir', f.out],
        ('L1Norm has no setting backbone, head, neck', '_delete_=True')),
    Bad('train: no architecture', 'train',
        lambda f: [f.child('c.py', "model = dict(type='mmprune_ext.L1Norm', target_pruning_ratio=0.5)"),
                   '--work-dir', f.out], ('L1Norm needs an architecture', '_delete_=True')),
    Bad('train: misspelt method', 'train',
        lambda f: [f.child('c.py', "model = dict(type='mmprune_ext.Chip')", f.run / 'run.py'), '--work-dir', f.out],
        ('Chip is not in the', 'did you mean mmprune_ext.CHIP')),
    Bad("train: another method's mutator", 'train',
        lambda f: [f.child('c.py', "model = dict(type='mmprune_ext.CHIP')", f.run / 'run.py'), '--work-dir', f.out],
        ('CHIP: mutator should be a CHIPMutator, but got L1Mutator, that of L1Norm', 'mmprune_ext.CHIPMutator')),
    Bad('train: load_from beside checkpoint', 'train',
        lambda f: [f.child('c.py', f'load_from = {str(f.checkpoint)!r}\nmodel = dict(checkpoint="other.pth")',
                           f.run / 'run.py'), '--work-dir', f.out],
        ('load_from', str(Path('epoch_3.pth')), 'other.pth', 'both name weights to prune')),
    Bad('train: load_from without weights', 'train',
        lambda f: [f.child('c.py', 'load_from = "none.pth"', f.run / 'run.py'), '--work-dir', f.out],
        ('none.pth', 'no such file')),
    Bad('train: compact weights into a dense model', 'train',
        lambda f: [f.config, '--work-dir', f.out, '--cfg-options', f'load_from={f.pruned / "compact.pth"}'],
        ('compact.pth holds a compact model', 'ImageClassifier', 'compact_config.py')),
    Bad('train: weights of a run into a dense model', 'train',
        lambda f: [f.config, '--work-dir', f.out, '--cfg-options', f'load_from={f.run / "epoch_1.pth"}'],
        ('epoch_1.pth is of a pruning run', 'ImageClassifier', 'tools/export_compact.py')),
    Bad('train: two targets', 'train',
        lambda f: [f.child('c.py', 'model = dict(budget=dict(flops=0.5))', f.run / 'run.py'), '--work-dir', f.out],
        ('target_pruning_ratio', 'budget')),
    Bad('train: unknown unit', 'train',
        lambda f: [f.child('c.py', "model = dict(target_pruning_ratio={'layer1': 0.5, '_delete_': True})",
                           f.run / 'run.py'), '--work-dir', f.out], ('unknown channel unit "layer1"',)),
    Bad('train: misspelled argument', 'train',
        lambda f: [f.child('c.py', 'model = dict(taget_pruning_ratio=0.5)', f.run / 'run.py'), '--work-dir', f.out],
        ('L1Norm has no setting "taget_pruning_ratio"; did you mean target_pruning_ratio',)),
    Bad('train: unknown mutator', 'train',
        lambda f: [f.child('c.py', "model = dict(mutator=dict(type='mmprune_ext.L3Mutator'))", f.run / 'run.py'),
                   '--work-dir', f.out], ('L3Mutator', 'is not in the', 'did you mean mmprune_ext.L1Mutator')),
    Bad('train: no mutator', 'train',
        lambda f: [f.child('c.py', "model = dict(mutator=dict(type='mmprune_ext.CifarVGG', demo_inputs=None, "
                           '_delete_=True))', f.run / 'run.py'), '--work-dir', f.out], ('CifarVGG', 'demo_inputs')),
    Bad('test: dense without checkpoint', 'test', lambda f: [f.config, '--work-dir', f.out],
        ('no weights to test', 'give a checkpoint')),
    Bad('test: missing checkpoint', 'test', lambda f: [f.config, 'none.pth', '--work-dir', f.out], ('none.pth',)),
    Bad('test: other model', 'test', lambda f: [f.config, other_model(f), '--work-dir', f.out],
        ('other.pth', 'does not fit')),
    Bad('test: other classes', 'test', lambda f: [f.config, other_classes(f), '--work-dir', f.out],
        ('classes.pth', 'head.fc', 'number of classes')),
    Bad('test: dense, compact weights', 'test', lambda f: [f.config, f.pruned / 'compact.pth', '--work-dir', f.out],
        ('compact.pth', 'does not fit', 'those of a compact model', 'compact_config.py')),
    Bad('test: pruning run, dense weights', 'test', lambda f: [f.run / 'run.py', f.checkpoint, '--work-dir', f.out],
        ('epoch_3.pth', 'not of a pruning run')),
    Bad('test: compact, dense weights', 'test',
        lambda f: [f.pruned / 'compact_config.py', f.checkpoint, '--work-dir', f.out],
        ('epoch_3.pth', 'does not fit', 'wider', 'give the compact.pth')),
    Bad('test: metrics below a file', 'test',
        lambda f: [f.config, f.checkpoint, '--work-dir', f.out, '--json', occupied(f)], ('occupied',)),
    Bad('test: pictures below a file', 'test',
        lambda f: [f.config, f.checkpoint, '--work-dir', f.out, '--show-dir', occupied(f)], ('occupied',)),
    Bad('test: no hook that draws', 'test',
        lambda f: [f.child('c.py', 'visualizer = None'), f.checkpoint, '--work-dir', f.out, '--show-dir', f.out],
        ('draw predictions', 'default_hooks.visualization')),
    Bad('test: no picture', 'test',
        lambda f: [f.config, f.checkpoint, '--show-dir', f.out, '--show-number', '0'], ('--show-number', 'at least 1')),
    Bad('demo: unknown task', 'demo', lambda f: ['tracking'], ('tracking', 'segmentation')),
    Bad('demo: output below a file', 'demo', lambda f: ['digits', '--work-dir', occupied(f)], ('output folder',)),
    Bad('demo: share of 2', 'demo', lambda f: ['pose', '--work-dir', f.out, '--flops', '2'], ('--flops', 'got 2')),
    Bad('demo: no epochs', 'demo', lambda f: ['pose', '--epochs', '0'], ('--epochs', 'at least 1')),
    Bad('compact: no units', 'test', compact("model = dict(units='none.json')"), ('none.json', 'no such file')),
    Bad('compact: units are not JSON', 'test', lambda f: compact(f'model = dict(units={str(f.config)!r})')(f),
        ('tiny.py', 'not valid JSON')),
    Bad('compact: units of another model', 'test', compact('model = dict(backbone=dict(depth=14))'),
        ('units.json', 'layer', 'another model')),
    Bad('compact: units without layers', 'test',
        lambda f: compact("model = dict(units='{}')".format(f.units(units={
            'backbone.conv1': {'num_channels': 8, 'keep': 4}})))(f), ('units.json', '"channels"', '-c')),
    Bad('compact: unknown schema', 'train',
        lambda f: compact(f"model = dict(units='{f.units(schema=7)}')")(f), ('units.json', 'schema 7')),
    Bad('compact: no checkpoint', 'test', compact("model = dict(init_cfg=dict(checkpoint='none.pth'))"),
        ('none.pth', 'no such file')),
    Bad('compact: wrong init_cfg', 'test', compact("model = dict(init_cfg=dict(type='Kaiming'))"),
        ('init_cfg', 'Pretrained')),
    Bad('test: number of pictures without a folder', 'test', lambda f: [f.config, f.checkpoint, '--show-number', '3'],
        ('--show-number', '--show-dir')),
    Bad('test: a folder', 'test', lambda f: [f.config, f.folder, '--work-dir', f.out], ('is a folder', )),
    Bad('test: a pruning run without its weights', 'test',
        lambda f: [f.child('c.py', f'load_from = {str(f.checkpoint)!r}', f.run / 'run.py'), '--work-dir', f.out],
        ('no weights to test', 'give a checkpoint')),
    Bad('compact: tested with other classes', 'test', compact('model = dict(head=dict(num_classes=12))'),
        ('compact.pth', 'head.fc', 'number of classes')),
    Bad('score: unknown algorithm', 'score', score('dcff'), ('unknown algorithm "dcff"', 'chip, fisher, l1')),
    Bad('score: no data', 'score',
        score(config=lambda f: f.child('c.py', "train_dataloader = dict(dataset=dict(data_root='none'))")),
        ('train_dataloader', 'none', 'does not exist')),
    Bad('score: no dataloader', 'score', score(config=lambda f: f.child('c.py', 'train_dataloader = None')),
        ('lacks train_dataloader', 'to calibrate CHIP on')),
    Bad('score: too many batches', 'score', lambda f: [*score()(f), '--calib-batches', '9'],
        ('num_batches is 9', 'only 6 batches', '--calib-batches')),
    Bad('score: no batches', 'score', lambda f: [*score()(f), '--calib-batches', '0'], ('at least 1', '0')),
    Bad('score: NaN weights', 'score', score(checkpoint=nan_weights), ('backbone.layer2.0.conv1', 'NaN')),
    Bad('score: a folder as output', 'score', lambda f: [*score()(f)[:-1], f.folder], ('is a folder',)),
    Bad('score: output is there', 'score', lambda f: [*score()(f)[:-1], f.checkpoint],
        ('epoch_3.pth', 'is there already', '--overwrite')),
    Bad('score: sums are there', 'score', lambda f: [*score()(f)[:-1], f.write('s.json.partial', 'x')[:-8]],
        ('s.json.partial', 'sums of an interrupted run', '--resume', '--overwrite')),
    Bad('score: a pruning config', 'score', score(config=lambda f: f.run / 'run.py'), ('L1Norm', 'dense model')),
    Bad('scores: no file', 'prune', lambda f: [*prune()(f), '--scores', 'none.json'], ('none.json', 'no such file')),
    Bad('scores: units instead', 'prune', lambda f: [*prune()(f), '--scores', f.pruned / 'units.json'],
        ('units.json', 'not a file of scores', 'tools/score.py')),
    Bad('export: no pruning config', 'export_compact', lambda f: [f.config, f.checkpoint, '-o', f.out],
        ('ImageClassifier', 'tools/prune.py')),
    Bad('export: dense weights', 'export_compact', lambda f: [f.run / 'run.py', f.checkpoint, '-o', f.out],
        ('epoch_3.pth', 'not of a pruning run')),
    Bad('export: missing checkpoint', 'export_compact', lambda f: [f.run / 'run.py', 'none.pth', '-o', f.out],
        ('none.pth', 'no such file')),
    Bad('export: output below a file', 'export_compact',
        lambda f: [f.run / 'run.py', f.run / 'epoch_1.pth', '-o', occupied(f)], ('output folder',)),
    Bad('export: output where a result is', 'export_compact',
        lambda f: [f.run / 'run.py', f.run / 'epoch_1.pth', '-o', f.pruned],
        ('output folder', 'an earlier result (compact.pth', '--overwrite')),
    Bad('export: other architecture', 'export_compact',
        lambda f: [f.child('c.py', 'model = dict(architecture=dict(backbone=dict(base_channels=16), '
                           'head=dict(in_channels=64)))', f.run / 'run.py'), f.run / 'epoch_1.pth', '-o', f.out],
        ('backbone.conv1', 'another model')),
]


def check(code: int, stderr: str, says: tuple[str, ...]) -> None:
    assert code == 2, stderr
    assert 'Traceback' not in stderr
    message = stderr[stderr.index('error: '):]
    # argparse prints how the tool is used before its message.
    assert stderr.count('error: ') == 1 and (stderr == message or stderr.startswith('usage:')), stderr
    for text in says:
        assert text in message, message


def assert_refused(bad: Bad, files: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Run the tool in this process: it has to say what is wrong, and to leave nothing behind."""
    arguments = bad.arguments(files)
    before = sorted(files.folder.rglob('*'))  # with the inputs that this case has made
    monkeypatch.chdir(files.folder)
    monkeypatch.setattr(runs, 'get_device', lambda: 'cpu')
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run_tool(bad.tool, *arguments)
    check(caught.value.code, capsys.readouterr().err, bad.says)
    assert sorted(files.folder.rglob('*')) == before


@pytest.mark.parametrize('bad', [*PRUNE, *OTHERS], ids=lambda bad: bad.id)
def test_bad_input(files, bad, monkeypatch, capsys):
    assert_refused(bad, files, monkeypatch, capsys)


@pytest.mark.parametrize('bad', [PRUNE[0], OTHERS[3]], ids=lambda bad: bad.id)
def test_bad_input_from_a_shell(files, bad):
    """The process ends with exit code 2 and nothing but the message on stderr."""
    run = subprocess.run([sys.executable, str(TOOLS / f'{bad.tool}.py'),
                          *(str(argument) for argument in bad.arguments(files))],
                         cwd=files.folder, capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    check(run.returncode, run.stderr, bad.says)
