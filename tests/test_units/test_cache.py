"""Units that are kept on disk: they are those of a trace, and whatever decides them leads to another one."""
from __future__ import annotations

import copy
import importlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmprune_ext.units import trace_units
from mmprune_ext.units.cache import sources, store
from mmprune_ext.units.cache.store import Entry, cache_folder
from mmprune_ext.units.cache.structure import Digest, UnknownPart
from mmprune_ext.units.tracing import trace
from mmprune_ext.units.tracing.effort import Effort, tracing


class Net(nn.Module):
    """A network with something of each kind that decides units."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.scale = nn.Parameter(torch.ones(1, width, 1, 1))
        self.register_buffer('order', torch.arange(width))
        self.head = nn.Conv2d(width, 4, 1)
        self.again = nn.Conv2d(width, 4, 1)
        self.steps = 2
        self.names = {'a', 'b', 'c', 'longer'}

    def forward(self, x: Tensor) -> Tensor:
        x = self.backbone(x) * self.scale
        return sum(self.head(x) for _ in range(self.steps)) + self.again(x)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A cache for a test."""
    with tracing(Effort(cache=tmp_path / 'units')):
        yield tmp_path / 'units'


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that were traced and not read."""
    found: list[str] = []
    really = trace._trace

    def counted(model: nn.Module, *rest: Any) -> Any:
        found.append(type(model).__name__)
        return really(model, *rest)
    monkeypatch.setattr(trace, '_trace', counted)
    return found


def everything(units: Any) -> Any:
    return units.to_json(), units.costs, units.functional, units.coverage, list(units)


def test_what_is_read_is_what_was_traced(folder, traces):
    first = trace_units(Net(), (8, 8))
    second = trace_units(Net(), (8, 8))
    assert everything(second) == everything(first)
    assert first.prunable and len(first.prunable) < len(first)
    assert (traces, len(list(folder.iterdir()))) == (['Net'], 1)


def test_without_being_asked_for_nothing_is_kept(tmp_path, traces, monkeypatch):
    monkeypatch.setenv(store.FOLDER, str(tmp_path))
    trace_units(Net(), (8, 8))
    trace_units(Net(), (8, 8))
    assert (len(traces), list(tmp_path.iterdir())) == (2, [])


def other_forward(x: Tensor) -> Tensor:
    return x


DECIDING: dict[str, Callable[[Net], Any]] = {
    'a number': lambda net: setattr(net, 'steps', 3),
    'a number of a layer': lambda net: setattr(net.backbone[0], 'padding', (1, 1)),
    'a set': lambda net: net.names.add('d'),
    'a new attribute': lambda net: setattr(net, 'mode', 'fast'),
    'values of a buffer': lambda net: net.order.copy_(net.order.flip(0)),
    'a class': lambda net: setattr(net, 'head', nn.Conv2d(8, 4, 1, padding_mode='circular')),
    'one layer for two': lambda net: setattr(net, 'again', net.head),
    'one weight for two': lambda net: setattr(net.again, 'weight', net.head.weight),
    'a weight that is not trained': lambda net: net.head.weight.requires_grad_(False),
    'another type of numbers': lambda net: net.head.half(),
    'a hook': lambda net: net.head.register_forward_hook(lambda module, args, output: output * 2),
    'a forward of its own': lambda net: setattr(net.backbone[2], 'forward', other_forward),
    'train or eval': lambda net: net.backbone.eval(),
}


@pytest.mark.parametrize('change', DECIDING)
def test_what_decides_the_units_leads_to_a_new_trace(change, folder, traces):
    trace_units(Net(), (8, 8))
    net = Net()
    DECIDING[change](net)
    trace_units(net, (8, 8))
    assert len(traces) == 2


@pytest.mark.parametrize('settings', [
    dict(demo_inputs=(9, 9)), dict(scope='backbone'), dict(whole_heads=True), dict(demo_inputs=torch.ones(1, 3, 8, 8)),
    dict(demo_inputs=lambda model: model(torch.zeros(1, 3, 8, 8)))])
def test_so_do_the_settings(settings, folder, traces):
    plain = dict(demo_inputs=(8, 8), scope='all')
    trace_units(Net(), **plain)
    trace_units(Net(), **{**plain, **settings})
    trace_units(Net(), **{**plain, **settings})
    assert len(traces) == 2


def test_a_method_that_someone_has_replaced(folder, traces, monkeypatch):
    trace_units(Net(), (8, 8))
    monkeypatch.setattr(Net, 'forward', lambda self, x: self.head(self.backbone(x)))
    trace_units(Net(), (8, 8))
    assert len(traces) == 2


def test_values_of_weights_and_statistics_do_not_count(folder, traces):
    trace_units(Net(), (8, 8))
    net = Net()
    for tensor in [*net.parameters(), net.backbone[1].running_mean]:
        nn.init.normal_(tensor.data)
    trace_units(net, (8, 8))
    assert len(traces) == 1
    net.head.weight.data[0, 0] = float('nan')  # what then fails is not hidden
    trace_units(net, (8, 8))
    assert len(traces) == 2


def damage(path: Path, how: str) -> None:
    content = json.loads(path.read_text())
    if how == 'cut':
        path.write_text(path.read_text()[:-200])
    elif how == 'empty':
        path.write_text('')
    elif how == 'other JSON':
        path.write_text('[1, 2]')
    elif how == 'a number changed':
        path.write_text(json.dumps({**content, 'units': {**content['units'], 'costs': {}}}))
    elif how == 'an older form':
        path.write_text(json.dumps({**content, 'schema': 0}))
    elif how == 'of another network':
        record = json.loads(json.dumps(content['units']).replace('"head"', '"tail"'))
        path.write_text(json.dumps({**content, 'units': record, 'check': store._check_of(record)}))


@pytest.mark.parametrize('how', [
    'cut', 'empty', 'other JSON', 'a number changed', 'an older form', 'of another network'])
def test_a_broken_file_is_passed_over_and_written_anew(how, folder, traces):
    wanted = everything(trace_units(Net(), (8, 8)))
    path, = folder.iterdir()
    damage(path, how)
    assert everything(trace_units(Net(), (8, 8))) == wanted
    assert everything(trace_units(Net(), (8, 8))) == wanted
    assert len(traces) == 2


def test_a_folder_that_cannot_be_written_to_is_none(tmp_path, traces):
    (tmp_path / 'units').write_text('a file in the place of the folder')
    with tracing(Effort(cache=tmp_path / 'units')):
        trace_units(Net(), (8, 8))
        trace_units(Net(), (8, 8))
    assert len(traces) == 2


def test_what_is_in_no_file_is_not_kept(folder, traces):
    class Local(Net):
        pass
    for net in (Local(), Net()):
        net.generator = None if type(net) is Local else torch.Generator()
        trace_units(net, (8, 8))
    assert not folder.exists()
    with pytest.raises(UnknownPart):
        Digest().add(threading.Lock())


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module of the user's own with a network, as if it had been there before the process started."""
    (tmp_path / 'own_net.py').write_text('from torch import nn\nWIDE = False\n\n\nclass OwnNet(nn.Sequential):\n'
                                         '    def forward(self, x):\n        return super().forward(x)\n')
    (tmp_path / 'own_patch.py').write_text('"""Could change anything."""\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sources, '_STARTED', time.time() + 1000)
    yield importlib.import_module('own_net')
    for name in ('own_net', 'own_patch'):
        sys.modules.pop(name, None)


def own_net(module: Any) -> nn.Module:
    return module.OwnNet(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))


def test_code_that_was_edited(module, folder, traces):
    trace_units(own_net(module), (8, 8))
    trace_units(own_net(module), (8, 8))
    assert len(traces) == 1
    file = Path(module.__file__)
    file.write_text(file.read_text() + '# another line\n')
    trace_units(own_net(module), (8, 8))
    assert len(traces) == 2


def test_a_value_of_its_module(module, folder, traces):
    trace_units(own_net(module), (8, 8))
    module.WIDE = True
    trace_units(own_net(module), (8, 8))
    assert len(traces) == 2


def test_further_code_of_the_users_own(module, folder, traces):
    """It may have replaced what networks call; what was loaded once may be absent later."""
    trace_units(own_net(module), (8, 8))
    importlib.import_module('own_patch')
    trace_units(own_net(module), (8, 8))
    assert len(traces) == 2
    sys.modules.pop('own_patch')
    trace_units(own_net(module), (8, 8))
    assert len(traces) == 2


def test_files_written_since_the_start_may_not_be_what_was_imported(module, folder, traces, monkeypatch):
    monkeypatch.setattr(sources, '_STARTED', time.time() - 1000)
    trace_units(own_net(module), (8, 8))
    assert not folder.exists()


KEY = """
from pathlib import Path
from mmprune_ext.units.cache.store import Entry
from own_net import OwnNet
from torch import nn
print(Entry.of(Path(), {}, (8, 8), [], False).path)
"""
NETWORK = "OwnNet(nn.Conv2d(3, 8, 3), nn.Sequential(nn.BatchNorm2d(8)))"


def test_all_processes_know_it_by_the_same_name(module):
    """The order of sets is another in each; a module has some."""
    found = subprocess.run([sys.executable, '-c', KEY.format(NETWORK)], capture_output=True, text=True, check=True,
                           env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)})
    network = eval(NETWORK, {'OwnNet': module.OwnNet, 'nn': nn})
    assert found.stdout.split()[-1] == str(Entry.of(Path(), network, (8, 8), [], False).path)


def test_writers_at_once_leave_a_whole_file(folder):
    units = trace_units(Net(), (8, 8))
    entry = Entry(next(folder.iterdir()))
    writers = [threading.Thread(target=lambda: [entry.store(units) for _ in range(5)]) for _ in range(3)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert entry._read()
    assert everything(entry.load(Net())) == everything(units)
    assert [path.name for path in folder.iterdir()] == [entry.path.name]


def test_old_entries_go(folder, monkeypatch):
    monkeypatch.setattr(store, 'MOST', 2)
    for size in (8, 9, 10):
        trace_units(Net(), (size, size))
    assert len(list(folder.iterdir())) == 2


def test_where_units_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.delenv(store.FOLDER)
    assert cache_folder() == tmp_path / 'mmprune_ext' / 'units'
    monkeypatch.setenv(store.FOLDER, '/elsewhere')
    assert cache_folder() == Path('/elsewhere/units')
    monkeypatch.setenv(store.FOLDER, '')
    assert cache_folder() is None


def test_what_is_read_may_be_pruned(folder):
    dense = Net().eval()
    trace_units(dense, (8, 8))
    units = trace_units(copy.deepcopy(dense), (8, 8))
    next(iter(units.prunable.values())).choose([0, 1])
    assert units.copy().has_choices
    assert not trace_units(dense, (8, 8)).has_choices
