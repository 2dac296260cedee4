"""The benchmark over the families of the zoos: it resumes, tells what differs, and its page is what its file says."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import zoo, zoo_family
from mmprune_ext.units import UnitSet, slim, trace_units

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def page():
    spec = importlib.util.spec_from_file_location('make_zoo_table', ROOT / 'docs' / 'make_zoo_table.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_is_what_the_file_says(page):
    results = page.read([])
    assert results and f'{page.BEGIN}\n\n{page.text(results)}\n\n{page.END}' in page.PAGE.read_text()


def test_a_folder_of_something_else_is_refused(page, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        page.read([tmp_path])
    assert stopped.value.code == 2 and 'lacks machine.json' in capsys.readouterr().err


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))


def halved(model: nn.Module) -> UnitSet:
    units = trace_units(model, (16, 16))
    zoo_family.halve(units)
    return units


def test_a_network_that_is_pruned_rightly(network):
    found = zoo_family.compare(network, halved(network), (16, 16))
    assert found['same'] and found['error'] < 1e-5 and not found['double']


@pytest.mark.parametrize('last', ['drawn', 'zeros'])
def test_a_planted_mistake_is_seen(network, monkeypatch, last):
    """The slimmed network lacks other channels than those that were chosen; a last layer of zeros hides nothing."""
    if last == 'zeros':
        nn.init.zeros_(network[3].weight)

    def slim_others(model: nn.Module, units: UnitSet) -> nn.Module:
        others = units.copy()
        for unit in others.prunable.values():
            unit.choose(sorted(set(range(unit.num_channels)) - set(unit.indices)))
        return slim(model, others)
    monkeypatch.setattr(zoo_family, 'slim', slim_others)
    units = halved(network)
    try:
        found = zoo_family.compare(network, units, (16, 16))
    finally:
        torch.set_default_dtype(torch.float32)
    assert not found['same'] and found['error'] > 1e-3 and found['double']


@pytest.mark.parametrize(('result', 'good'), [
    ({'outcome': 'done', 'same': True, 'removed': 0.5}, True),
    ({'outcome': 'done', 'same': True, 'removed': 0.2}, False),
    ({'outcome': 'done', 'same': False, 'removed': 0.5}, False), ({'outcome': 'refused'}, False),
    ({'outcome': 'done', 'finite': True, 'removed': 0.5}, True),
    ({'outcome': 'done', 'finite': True, 'shapes': False, 'removed': 0.5}, False)])
def test_what_counts_as_pruned(result, good):
    assert zoo.succeeded(result) is good


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, ROOT / 'benchmarks' / 'zoo.py', '--results', folder, *arguments],
                          capture_output=True, text=True, cwd=folder.parent)


@pytest.mark.e2e
def test_families_are_measured_once(tmp_path):
    folder = tmp_path / 'zoo'
    first = run(folder, '--families', 'mmpretrain/lenet', '--scopes', 'all')
    assert 'all: 1 of 1 lose at least 30%' in first.stdout, first.stderr
    path = folder / 'mmprune_ext_mmpretrain_lenet_all.json'
    found = json.loads(path.read_text())
    assert found['outcome'] == 'done' and found['same'] and 0.6 < found['removed'] < 0.8
    path.write_text(json.dumps({**found, 'removed': 0.1}))
    again = run(folder, '--families', 'mmpretrain/lenet', '--scopes', 'all')
    assert 'all: 0 of 1 lose at least 30%' in again.stdout, again.stderr


@pytest.mark.e2e
def test_a_limit_ends_a_measurement(tmp_path):
    found = run(tmp_path / 'zoo', '--families', 'mmpretrain/lenet', '--scopes', 'all', '--limit', '1')
    assert 'ended: over 1 s' in found.stderr and 'all: 0 of 1' in found.stdout


def test_an_unknown_family(tmp_path):
    found = run(tmp_path / 'zoo', '--families', 'mmpretrain/lenett')
    assert found.returncode == 2 and 'unknown family "mmpretrain/lenett"' in found.stderr
    assert not (tmp_path / 'zoo').exists()
