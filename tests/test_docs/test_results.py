"""docs/results.md says what docs/results.json holds, and the commands that it names measure that."""

from __future__ import annotations

import json
import runpy
import shlex
import sys
from itertools import product

import pytest

from benchmarks import accuracy
from benchmarks.accuracy_runs import budget_of, settings
from tests.test_docs.commands import ROOT

TOOL = str(ROOT / 'docs' / 'make_results.py')
MAKE = runpy.run_path(TOOL)
STORED = json.loads((ROOT / 'docs' / 'results.json').read_text())


def arguments(command, monkeypatch):
    """Return what accuracy.py reads from a command line."""
    words = shlex.split(command)
    assert words[:2] == ['python', 'benchmarks/accuracy.py']
    monkeypatch.setattr(sys, 'argv', words[1:])
    return accuracy.parse_args()


def measured_by(commands, monkeypatch):
    """Return the rows that commands measure, by method, row, spread and seed: their settings."""
    found = {}
    for command in commands:
        args = arguments(command, monkeypatch)
        for method, row, seed in product(args.methods, args.rows, args.seeds):
            for spread in (args.spreads if budget_of(row) else ['']):
                assert (method, row, spread, seed) not in found
                found[method, row, spread, seed] = settings(method, row, spread, args)
    return found


def row(method, name, spread='uniform', seed=0, **other):
    """Return a result of the benchmark."""
    own = {'bn_batches': 20, 'iterations': 0, 'lr': 0.01, 'spread': spread, 'repair': 256, **other}
    if method == 'chip':
        own = {'batches': 5, **own}
    return {'method': method, 'row': name, 'spread': spread, 'seed': seed, 'params': 10, 'macs': 20, 'pruned': 1.0,
            'statistics': 2.0, 'repaired': 3.0, 'repairing': 4.0, 'choosing': 5.0, 'left': 0.5, 'keeps': {'a': 1},
            'settings': {'network': 'resnet20', 'checkpoint': 'resnet20.pth', **own},
            'machine': {'machine': 'one', 'versions': 'two'}}


DENSE = {'method': 'dense', 'params': 20, 'macs': 40, 'pruned': 90.0, 'machine': {'machine': 'one', 'versions': 'two'},
         'settings': {'network': 'resnet20', 'checkpoint': 'resnet20.pth'}}


def test_the_page_is_up_to_date():
    page = (ROOT / 'docs' / 'results.md').read_text()
    assert page.partition(MAKE['BEGIN'])[2].partition(MAKE['END'])[0].strip() == MAKE['text'](STORED)


@pytest.mark.parametrize('section', STORED)
def test_commands_measure_what_the_page_shows(section, monkeypatch):
    rows = [row for row in STORED[section] if row['method'] != 'dense']
    assert measured_by(MAKE['commands'](STORED[section]), monkeypatch) == {
        (row['method'], row['row'], row['spread'], row['seed']): row['settings'] for row in rows}


def test_commands_of_parts_of_the_methods_spreads_and_seeds(monkeypatch):
    rows = [DENSE, row('l1', 'flops=0.5', 'global'), row('obs', 'flops=0.25', batches=8)]
    rows += [row(method, f'flops={share}', 'uniform', seed)
             for method, share, seed in product(('l1', 'chip'), (0.5, 0.25), (0, 1))]
    commands = MAKE['commands'](rows)
    assert len(commands) == 3
    assert measured_by(commands, monkeypatch) == {
        (row['method'], row['row'], row['spread'], row['seed']): row['settings'] for row in rows[1:]}


def test_folders_replace_what_is_kept(tmp_path, monkeypatch):
    folder = tmp_path / 'measured'
    folder.mkdir()
    for number, found in enumerate((DENSE, row('l1', 'flops=0.5'))):
        (folder / f'{number}.json').write_text(json.dumps(found))
    monkeypatch.setitem(MAKE['read'].__globals__, 'STORE', tmp_path / 'results.json')
    (tmp_path / 'results.json').write_text(json.dumps({'digits-0-200': [DENSE], 'resnet20-256-0': [DENSE]}))
    found = MAKE['read']([folder])
    assert [*found] == ['digits-0-200', 'resnet20-256-0']
    assert [row.get('repaired') for row in found['resnet20-256-0']] == [None, 3.0]
    assert not any('keeps' in row for row in found['resnet20-256-0'])


def test_a_folder_of_something_else_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        MAKE['read']([tmp_path])
    assert stopped.value.code == 2 and f'{tmp_path} is no results folder' in capsys.readouterr().err
