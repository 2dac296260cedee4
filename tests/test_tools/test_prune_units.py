"""`prune.py --units` and `units=` of a pruning config: what runs, and what is refused."""
from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.in_process import run_tool
from tests.kept_rows import assert_kept
from tests.test_tools.test_bad_inputs import Bad, Files, assert_refused

UNIT = 'backbone.layer2.0.conv1'


@pytest.fixture
def files(dense_config_file, dense_checkpoint, pruned, pruning_run, tmp_path) -> Files:
    return Files(dense_config_file, dense_checkpoint, pruned, pruning_run, tmp_path)


Change = Callable[[dict[str, Any]], Any]


def changed(files: Files, change: Change) -> str:
    """Write the unit file of the pruned model after a change of its units."""
    content = json.loads((files.pruned / 'units.json').read_text())
    change(content['units'])
    return files.write('mask.json', json.dumps(content))


def rename(units: dict[str, Any]) -> None:
    """Make a unit and its layer those of another network."""
    text = json.dumps(units).replace(UNIT, f'{UNIT}0')
    units.clear()
    units.update(json.loads(text))


def widen(units: dict[str, Any]) -> None:
    units[UNIT] = {'num_channels': 64, 'keep': 2, 'indices': [0, 63]}


def prune_output(units: dict[str, Any]) -> None:
    units['head.fc'] = {'num_channels': 10, 'keep': 2, 'indices': [0, 1]}


def drop_indices(units: dict[str, Any]) -> None:
    for unit in units.values():
        unit.pop('indices', None)


def make_whole(units: dict[str, Any]) -> None:
    for unit in units.values():
        unit.pop('indices', None)
        unit['keep'] = unit['num_channels']


def prune(*units: str) -> Callable[[Files], list[Any]]:
    """Return the arguments of tools/prune.py with a target."""
    return lambda f: [f.config, f.checkpoint, '-o', f.out, '--input-size', '32', '32', '--bn-batches', '0', *units]


def mask(change: Change, *further: str) -> Callable[[Files], list[Any]]:
    """Return the arguments of tools/prune.py with a changed unit file."""
    return lambda f: [*prune('--units', changed(f, change))(f), *further]


def train(change: Change) -> Callable[[Files], list[Any]]:
    """Return the arguments of tools/train.py for a run that starts from a changed unit file."""
    return lambda f: [f.child('c.py', f'model = dict(units={changed(f, change)!r})', f.run / 'run.py'),
                      '--work-dir', f.out]


BAD = [
    Bad('no file', 'prune', prune('--units', 'none.json'), ('none.json', 'no such file')),
    Bad('no JSON', 'prune', lambda f: prune('--units', f.write('u.json', '{"schema": '))(f),
        ('u.json', 'not valid JSON', 'line 1')),
    Bad('ratios', 'prune', lambda f: prune('--units', f.write('r.json', f'{{"{UNIT}": 0.5}}'))(f),
        ('r.json', 'pruning ratios are a target', '--ratio')),
    Bad('weights without units', 'prune', lambda f: prune('--units', str(f.checkpoint))(f),
        ('epoch_3.pth', 'not of a pruning run')),
    Bad('unknown unit', 'prune', mask(rename),
        ('mask.json', f'unknown channel unit "{UNIT}0"; did you mean {UNIT}')),
    Bad('another width', 'prune', mask(widen), ('mask.json', UNIT, 'has 64 channels, in the model it has 16')),
    Bad('unit of the output', 'prune', mask(prune_output),
        ('mask.json', '"head.fc" cannot be pruned in this model: its channels are an output')),
    Bad('out of scope', 'prune', mask(lambda units: None, '--scope', 'backbone.layer3'),
        ('mask.json', '"backbone.conv1" cannot be pruned', 'outside the pruning scope', '--scope')),
    Bad('numbers without channels', 'prune', mask(drop_indices), ('mask.json', 'no "indices"', '--ratio')),
    Bad('prunes nothing', 'prune', mask(make_whole), ('mask.json', 'prunes nothing', 'units.json')),
    Bad('two targets', 'prune', prune('--units', 'a.json', '--flops', '0.5'), ('--flops', 'not allowed with')),
    Bad('a method', 'prune', prune('--units', 'a.json', '--algorithm', 'l1'), ('--units', 'with --algorithm;')),
    Bad('what chooses', 'prune', prune('--units', 'a.json', '--exclude', '*', '--divisor', '8', '--scores', 's.json'),
        ('--units', 'with --exclude, --divisor, --scores;')),
    Bad('no method', 'prune', prune('--flops', '0.5'), ('--algorithm', 'required')),
    Bad('a pruning config', 'prune', lambda f: [f.run / 'run.py', *mask(lambda units: None)(f)[1:]],
        ('L1Norm', 'dense model')),
    Bad('train: no file', 'train',
        lambda f: [f.child('c.py', "model = dict(units='none.json')", f.run / 'run.py'), '--work-dir', f.out],
        ('model.units: none.json: no such file',)),
    Bad('train: unknown unit', 'train', train(rename), ('mask.json', f'"{UNIT}0"', 'did you mean')),
    Bad('train: numbers without channels', 'train', train(drop_indices), ('mask.json', 'no "indices"', 'target')),
    Bad('train: prunes nothing', 'train', train(make_whole), ('mask.json', 'prunes nothing')),
    Bad('train: no dense weights', 'train',
        lambda f: [f.child('c.py', f"model = dict(units={str(f.pruned / 'units.json')!r}, checkpoint='none.pth')",
                           f.run / 'run.py'), '--work-dir', f.out], ('none.pth', 'no such file')),
]


@pytest.mark.parametrize('bad', BAD, ids=lambda bad: bad.id)
def test_bad_input(files, bad, monkeypatch, capsys):
    assert_refused(bad, files, monkeypatch, capsys)


def test_the_tool_prunes_by_units(files, capsys):
    run_tool('prune', *prune('--units', str(files.pruned / 'units.json'))(files))
    kept = {name: unit.get('indices') for name, unit in
            json.loads((files.pruned / 'units.json').read_text())['units'].items()}
    compact = torch.load(files.folder / 'out' / 'compact.pth', weights_only=False)['state_dict']
    assert_kept(compact, files.weights()['state_dict'], kept)
    assert str(files.folder / 'out' / 'compact_config.py') in capsys.readouterr().out
