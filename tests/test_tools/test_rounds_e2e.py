"""A job of rounds through the tools: what it leaves, killed and resumed, on two ranks, the published models."""
from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from glob import glob
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, RUNNERS, DefaultScope
from mmengine.runner import Runner

from mmprune_ext.compact import CompactModel
from mmprune_ext.engine import parts
from mmprune_ext.settings import reading
from mmprune_ext.units import UnitSet
from tests.in_process import TOOLS, own_globals, run_tool
from tests.runs import StopAt, differing, state

pytestmark = pytest.mark.e2e
ROOT = TOOLS.parent
L1 = ROOT / 'configs' / 'pruning' / 'mmcls' / 'l1'


@pytest.fixture(scope='module')
def write_job(tiny_config, dense_checkpoint) -> Callable[..., Path]:
    """Return a function that writes a config that prunes by a third and trains two epochs."""
    def write(folder: Path, options: Mapping[str, Any] | None = None) -> Path:
        config = tiny_config({'train_cfg.max_epochs': 2, 'train_cfg.val_interval': 1})
        config.pop('experiment_name')
        shutil.copy(dense_checkpoint, folder / 'dense.pth')
        config.model = dict(type='mmprune_ext.L1Norm', architecture=config.model, target_pruning_ratio=1 / 3,
                            checkpoint=str(folder / 'dense.pth'))
        config.optim_wrapper.optimizer.lr = 0.01
        config.param_scheduler = dict(type='CosineAnnealingLR', T_max=2, by_epoch=True, convert_to_iter_based=True)
        config.default_hooks.logger.interval = 1
        config.merge_from_dict(dict(options or {}))
        config.dump(folder / 'job.py')
        return folder / 'job.py'
    return write


@pytest.fixture
def job(write_job, tmp_path) -> Callable[..., Path]:
    """Return the function for the folder of a test."""
    return lambda options=None: write_job(tmp_path, options)


@pytest.fixture(scope='module')
def whole(write_job, tmp_path_factory) -> Path:
    """The folder of a job of three rounds that nothing has stopped; read only."""
    folder = tmp_path_factory.mktemp('whole')
    train(write_job(folder), folder / 'work', '--rounds', 3)
    return folder / 'work'


@pytest.fixture(scope='module', autouse=True)
def _plain_dumps() -> Iterator[None]:
    """Configs are formatted with every dump, which takes longer than these runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **_: (text, True))
        yield


def train(config: Path, work: Path, *further: object) -> None:
    run_tool('train', config, '--work-dir', work, *further)


def assert_same(first: Path, second: Path, rounds: int = 2) -> None:
    """Compare what two jobs have ended with, bit for bit."""
    for number in range(1, rounds + 1):
        for name in ('epoch_2.pth', 'compact/compact.pth'):
            found, expected = (state(work / f'round_{number}' / name) for work in (first, second))
            assert differing(found, expected) == [], (number, name)
    assert memory(first)['dense'] == memory(second)['dense']
    assert memory(first)['rounds'] == memory(second)['rounds'][:rounds]
    assert not list(first.glob('round_*/ended.pth'))


def memory(work: Path) -> dict[str, Any]:
    return json.loads((work / 'rounds.json').read_text())


def log_of(folder: Path) -> str:
    return max(folder.glob('*/*.log'), key=lambda path: path.stat().st_mtime).read_text()


def build(config: Config) -> torch.nn.Module:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build({**config.model, 'data_preprocessor': config.data_preprocessor}).eval()


# ---------------------------------------------------------------- what it leaves


def test_three_rounds(whole, tmp_path):
    work, images = whole, torch.randn(2, 3, 32, 32)
    config = reading.read_config(str(whole.parent / 'job.py'))
    units = {number: UnitSet.load(work / f'round_{number}' / 'compact' / 'units.json') for number in (1, 2, 3)}
    dense = UnitSet.load(work / 'round_1' / 'units.json')
    for name, unit in dense.prunable.items():
        kept, before = unit.num_channels, set(range(unit.num_channels))
        for number in (1, 2, 3):
            now = units[number][name]
            # Of what the round before has left; as channels of the dense model, of which fewer and fewer stay.
            kept = int(kept * (1 - 1 / 3))
            assert (now.num_channels, now.keep) == (unit.num_channels, kept)
            assert set(now.indices) < before
            before = set(now.indices)
    for number in (1, 2, 3):
        folder = work / f'round_{number}'
        assert UnitSet.load(folder / 'units.json').to_json() == units[number].to_json()
        compact = build(Config.fromfile(folder / 'compact' / 'compact_config.py'))
        # What trained, and the dense architecture slimmed by this round's unit file with these weights.
        rebuilt = CompactModel(config.model.architecture, str(folder / 'compact' / 'units.json'),
                               data_preprocessor=config.data_preprocessor).eval()
        rebuilt.load_state_dict(state(folder / 'compact' / 'compact.pth'))
        torch.testing.assert_close(rebuilt(images), compact(images), rtol=0, atol=1e-5)
        assert differing(state(folder / 'epoch_2.pth'), compact.state_dict()) == []
        # Every round has the whole schedule.
        log = log_of(folder)
        assert 'Epoch(train) [1][1/6]  lr: 1.0000e-02' in log and 'Epoch(train) [2][6/6]' in log

    found = memory(work)
    assert [entry['folder'] for entry in found['rounds']] == [f'round_{number}/compact' for number in (1, 2, 3)]
    for entry in found['rounds']:
        report = json.loads((work / entry['folder'] / 'report.json').read_text())
        assert (entry['parameters'], entry['macs']) == (report['compact']['params'], report['compact']['macs'])
        assert (found['dense']['parameters'], found['dense']['macs']) == (report['dense']['params'],
                                                                          report['dense']['macs'])
        assert entry['metrics'] == report['metrics']['compact'] and entry['target'] == {'target_pruning_ratio': 1 / 3}
        tested = state_of_test(work / entry['folder'] / 'compact_config.py', tmp_path)
        assert entry['metrics'] == pytest.approx(tested)
    table = (work / 'rounds.txt').read_text()
    assert table in log_of(work / 'round_3')
    assert table.splitlines()[-1] == f'last result: {work / "round_3" / "compact"}'
    assert all(f'{entry["parameters"]:,}' in table for entry in [found['dense'], *found['rounds']])


def state_of_test(config: Path, folder: Path) -> dict[str, float]:
    run_tool('test', config, '--work-dir', folder / 'tested', '--json', folder / 'tested.json')
    return json.loads((folder / 'tested.json').read_text())


def test_round_by_round_by_hand(job, tmp_path):
    """Every round is a run of the very config from the compact weights of the one before; any tool reads its files."""
    path, work = job(), tmp_path / 'work'
    train(path, work, '--rounds', 2)
    train(path, tmp_path / 'first')
    run_tool('export_compact', path, tmp_path / 'first' / 'epoch_2.pth', '-o', tmp_path / 'first_out')
    train(path, tmp_path / 'second', '--cfg-options', f'load_from={tmp_path / "first_out" / "compact.pth"}',
          'model.checkpoint=None')
    for number, name in enumerate(('first', 'second'), 1):
        assert differing(state(work / f'round_{number}' / 'epoch_2.pth'), state(tmp_path / name / 'epoch_2.pth')) == []
    # The job's own config tests and exports what any round wrote, and the compact config is one of an ordinary run.
    train(path, work, '--rounds', 2, '--resume')
    rounds = tmp_path / 'rounds.py'
    rounds.write_text(f"_base_ = ['{path}']\nrunner_type = 'mmprune_ext.RoundsRunner'\nrounds = 2\n")
    run_tool('test', rounds, work / 'round_2' / 'epoch_2.pth', '--work-dir', tmp_path / 'out', '--json',
             tmp_path / 'out.json')
    assert json.loads((tmp_path / 'out.json').read_text()) == memory(work)['rounds'][1]['metrics']
    run_tool('export_compact', rounds, work / 'round_2' / 'epoch_2.pth', '-o', tmp_path / 'exported')
    assert differing(state(tmp_path / 'exported' / 'compact.pth'), state(work / 'round_2/compact/compact.pth')) == []
    for folder in (tmp_path / 'exported', work / 'round_2' / 'compact'):
        assert not {'rounds', 'runner_type'} & set(Config.fromfile(folder / 'compact_config.py'))
    train(tmp_path / 'exported' / 'compact_config.py', tmp_path / 'tuned')


def test_calibrated_rounds_to_a_budget(job, tmp_path):
    """CHIP scores each round's network on data; shares are of the dense network, half of the way after one of two."""
    options = {'model.type': 'mmprune_ext.CHIP', 'model.calibration': dict(num_batches=1),
               'model.target_pruning_ratio': None, 'model.budget': dict(params=0.25), 'train_cfg.max_epochs': 1,
               'runner_type': 'mmprune_ext.RoundsRunner', 'rounds': 2}
    path, work = job(options), tmp_path / 'work'
    train(path, work)
    dense, *rounds = [memory(work)['dense'], *memory(work)['rounds']]
    for entry, share in zip(rounds, (0.5, 0.25)):
        assert 0.93 * share < entry['parameters'] / dense['parameters'] <= share
        assert entry['target'] == {'budget': {'params': pytest.approx(share)}}
    # By tools of the libraries, which build what runner_type names: the same.
    with own_globals():
        config = reading.read_config(str(path))
        config.work_dir = str(tmp_path / 'stock')
        model = RUNNERS.build(config).train()
    assert differing(model.state_dict(), state(work / 'round_2' / 'epoch_1.pth')) == []
    assert memory(tmp_path / 'stock')['rounds'] == rounds


def test_on_two_ranks(job, tmp_path, train_on_two_ranks):
    config = Config.fromfile(job({'train_cfg.max_epochs': 1, 'runner_type': 'mmprune_ext.RoundsRunner', 'rounds': 2}))
    ranks = train_on_two_ranks(config)(0)
    work = tmp_path / 'work'
    assert [entry['round'] for entry in memory(work)['rounds'] if 'parameters' in entry] == [1, 2]
    assert ranks[0].keys() == ranks[1].keys()
    assert all(torch.equal(ranks[0][key], ranks[1][key]) for key in ranks[0] if key.endswith('weight'))
    written = state(work / 'round_2' / 'compact' / 'compact.pth')
    assert torch.equal(ranks[0]['head.fc.weight'], written['head.fc.weight'])


# ---------------------------------------------------------------- killed and resumed


def kill_at(line: str, number: int, config: Path, work: Path) -> None:
    """Start a job of three rounds and end it by SIGKILL when a round has logged a line."""
    output = work.parent / f'{work.name}.log'
    variables = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONUNBUFFERED': '1'}
    with output.open('w') as log:
        process = subprocess.Popen([sys.executable, str(TOOLS / 'train.py'), str(config), '--work-dir', str(work),
                                    '--rounds', '3'], stdout=log, stderr=subprocess.STDOUT, env=variables,
                                   cwd=work.parent)
        try:
            deadline = time.monotonic() + 240
            # The glob of pathlib fails where the run renames what it has just written; this one does not.
            logs = str(work / f'round_{number}' / '*' / '*.log')
            while not any(line in Path(path).read_text() for path in glob(logs)):
                assert process.poll() is None, output.read_text()[-3000:]
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


def test_killed_in_a_round(job, whole, tmp_path):
    """Ends with the same weights, bit for bit, also without the dense checkpoint."""
    path = job()
    kill_at('Epoch(train) [2][2/6]', 2, path, tmp_path / 'killed')
    assert (tmp_path / 'killed' / 'round_2' / 'epoch_1.pth').is_file()
    assert not (tmp_path / 'killed' / 'round_2' / 'compact').exists()
    (tmp_path / 'dense.pth').unlink()
    before = (tmp_path / 'killed' / 'round_1' / 'epoch_2.pth').stat().st_mtime_ns
    train(path, tmp_path / 'killed', '--rounds', 3, '--resume')
    assert_same(tmp_path / 'killed', whole, 3)
    assert 'Epoch(train) [1]' not in log_of(tmp_path / 'killed' / 'round_2')
    assert (tmp_path / 'killed' / 'round_1' / 'epoch_2.pth').stat().st_mtime_ns == before


class Killed(BaseException):
    """What nothing catches, as nothing catches a SIGKILL."""


def stopping(function: Callable[..., Any], at: Callable[..., bool], after: bool = False) -> Callable[..., Any]:
    """Return a function that ends the process before, or after, it does what another does, at a certain call."""
    def stop_or_go(*args: Any, **settings: Any) -> Any:
        if not at(*args):
            return function(*args, **settings)
        if after:
            function(*args, **settings)
        raise Killed
    return stop_or_go


def of_round(number: int) -> Callable[..., bool]:
    return lambda runner, *_: Path(runner.work_dir).name == f'round_{number}'


PLACES = {
    # What stops, at which call of it, and whether after it has done its work.
    'a round is pruned, no checkpoint yet': ((Runner, 'train'), of_round(2), False),
    'the last epoch is over, its validation is not': ((StopAt, 'before_val_epoch'), of_round(1), False),
    'a round has trained, nothing is exported': ((parts, 'export_end'), of_round(1), False),
    'in the export': ((Path, 'unlink'), lambda path, **_: path.name == 'ended.pth', False),
    'a round is exported, nothing remembers it': ((parts, 'export_end'), of_round(1), True),
    'between two rounds': ((parts, 'release'), of_round(1), False),
    'the last round is exported, nothing remembers it': ((parts, 'export_end'), of_round(2), True),
}


@pytest.mark.parametrize('place', PLACES)
def test_stopped_at(place, job, whole, tmp_path, monkeypatch):
    path = job()
    (owner, name), at, after = PLACES[place]
    with monkeypatch.context() as patch:
        if owner is parts:
            owner = sys.modules['mmprune_ext.engine.rounds_runner']
        elif owner is StopAt:
            owner, name, at = sys.modules['mmengine.runner'].ValLoop, 'run', LastEpoch(at)
        patch.setattr(owner, name, stopping(getattr(owner, name), at, after))
        with pytest.raises(Killed):
            train(path, tmp_path / 'stopped', '--rounds', 2)
    train(path, tmp_path / 'stopped', '--rounds', 2, '--resume')
    assert_same(tmp_path / 'stopped', whole)


class LastEpoch:
    """Whether a validation is that of the last epoch of a round."""

    def __init__(self, at: Callable[..., bool]) -> None:
        self.at = at

    def __call__(self, loop: Any) -> bool:
        return self.at(loop.runner) and loop.runner.epoch == 2


def test_begun_anew(job, tmp_path, monkeypatch):
    """What an earlier job has left is not taken for rounds of this one, wherever this one was stopped."""
    path, work = job(), tmp_path / 'work'
    train(path, work, '--rounds', 2)
    earlier = memory(work)
    job({'model.target_pruning_ratio': 0.5})
    train(path, tmp_path / 'whole', '--rounds', 2)
    with monkeypatch.context() as patch:
        patch.setattr(Runner, 'save_checkpoint', stopping(Runner.save_checkpoint, lambda *_: True))
        with pytest.raises(Killed):
            train(path, work, '--rounds', 2)
    assert (work / 'round_2' / 'compact' / 'report.json').is_file()
    train(path, work, '--rounds', 2, '--resume')
    assert memory(work) != earlier
    assert_same(work, tmp_path / 'whole')


def test_more_rounds_later(job, whole, tmp_path):
    path, work = job(), tmp_path / 'work'
    train(path, work, '--rounds', 2)
    train(path, work, '--rounds', 3, '--resume')
    assert_same(work, whole, 3)
    # A checkpoint of a round in the middle: those behind it are done again.
    train(path, work, '--rounds', 3, '--resume', work / 'round_2' / 'epoch_1.pth')
    assert_same(work, whole, 3)


# ---------------------------------------------------------------- what is wrong


ROUNDS = ['--rounds', '2']
GROWS = dict(targets=[dict(budget=dict(flops=0.5)), dict(budget=dict(flops=0.8))])
BAD = {
    'no round': ({}, ['--rounds', '0'], 'argument --rounds: expected an integer of at least 1, got 0'),
    'less than none': ({}, ['--rounds', '-2'], 'at least 1, got -2'),
    'no number': ({}, ['--rounds', 'five'], 'argument --rounds: expected an integer of at least 1, got five'),
    'no number in the config': ({'runner_type': 'mmprune_ext.RoundsRunner', 'rounds': 'five'}, [], "but got 'five'"),
    'a budget that grows': ({'runner_type': 'mmprune_ext.RoundsRunner', 'rounds': GROWS}, [], 'round 2 is to leave'),
    'another length': ({'rounds': GROWS}, ['--rounds', '3'], 'num is 3, but targets has 2 entries'),
    'nothing reads them': ({'rounds': 2}, [], "only runner_type='mmprune_ext.RoundsRunner' reads them"),
    'later budget': ({'model.budget': dict(params=0.001), 'model.target_pruning_ratio': None}, ROUNDS,
                     'round 2: budget: params cannot be reduced to 0.1%'),
    'units': ({'model.units': 'units.json'}, ROUNDS, 'says which stay; take units or rounds out'),
    'method': ({'model.type': 'mmprune_ext.DCFF'}, ROUNDS, 'rounds: DCFF finds its channels while it trains'),
    'runner': ({'runner_type': 'mmprune_ext.SearchRunner'}, ROUNDS, "but the config's is 'mmprune_ext.SearchRunner'"),
    'ratio of all': ({'model.target_pruning_ratio': 1.5}, ROUNDS, 'at least 0 and below 1, but got 1.5'),
    'dense weights': ({'model.checkpoint': 'no.pth'}, ROUNDS, 'checkpoint no.pth: no such file'),
    'a run to go on': ({'model.checkpoint': None, 'load_from': '{run}'}, ROUNDS, 'says which stay'),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_input(name, job, pruning_run, tmp_path, capsys):
    options, arguments, message = BAD[name]
    path = job({key: str(pruning_run / 'epoch_1.pth') if value == '{run}' else value for key, value in options.items()})
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as raised:
        train(path, tmp_path / 'work', *arguments)
    assert raised.value.code == 2
    error = [line for line in capsys.readouterr().err.splitlines() if 'error:' in line]
    assert len(error) == 1 and message in error[0], error
    assert sorted(tmp_path.iterdir()) == before


def test_rounds_of_a_dense_config(dense_config_file, tmp_path, capsys):
    with pytest.raises(SystemExit) as raised:
        train(dense_config_file, tmp_path / 'work', '--rounds', 2)
    assert raised.value.code == 2 and 'a ImageClassifier, which prunes nothing' in capsys.readouterr().err
    assert not (tmp_path / 'work').exists()


# ---------------------------------------------------------------- the published models


@pytest.fixture(scope='module')
def cifar(tmp_path_factory) -> Path:
    """Ten drawn images in the layout of CIFAR-10."""
    root = tmp_path_factory.mktemp('cifar10')
    generator = np.random.default_rng(0)
    for split in ('train', 'val'):
        for label in range(10):
            (root / split / str(label)).mkdir(parents=True)
            cv2.imwrite(str(root / split / str(label) / '0.png'), generator.integers(0, 256, (32, 32, 3), np.uint8))
    return root


WIDTHS = {1: [14, 12, 10, 9, 8], 2: [25, 20, 16, 12, 9], 3: [44, 30, 21, 14, 9]}
# Convolutions that stay whole, of which 1 is the stem.
WHOLE = {56: (16, 20, 38, 54), 110: (36, 38, 74)}
PFEC = {row['row']: row for row in json.loads((ROOT / 'tests' / 'data' / 'published_l1_rounds.json').read_text())}


@pytest.mark.parametrize('depth', [56, 110])
def test_published_rounds(depth, cifar, tmp_path):
    """One iteration of training in each round; the numbers of channels, parameters and MACs are the published ones."""
    config = Config.fromfile(ROOT / 'configs' / '_base_' / 'models' / f'resnet{depth}_cifar.py')
    torch.manual_seed(0)
    torch.save(dict(state_dict=build(Config(dict(model=config.model, data_preprocessor=None))).state_dict()),
               tmp_path / 'dense.pth')
    train(L1 / f'l1_resnet{depth}_cifar10_rounds5.py', tmp_path / 'work', '--cfg-options', 'train_cfg.max_epochs=1',
          f'model.checkpoint={tmp_path / "dense.pth"}', 'val_dataloader.persistent_workers=False',
          *(f'{split}_dataloader.{key}' for split in ('train', 'val')
            for key in (f'dataset.data_root={cifar}', 'num_workers=0')))
    found = memory(tmp_path / 'work')['rounds']
    assert len(found) == 5
    blocks = (depth - 2) // 6
    for number, entry in enumerate(found, 1):
        units = UnitSet.load(tmp_path / 'work' / entry['folder'] / 'units.json')
        for stage, widths in WIDTHS.items():
            for block in range(blocks):
                whole = 2 + 2 * ((stage - 1) * blocks + block) in WHOLE[depth]
                expected = 8 * 2 ** stage if whole else widths[number - 1]
                assert units[f'backbone.layer{stage}.{block}.conv1'].keep == expected
        if depth == 56:
            row = PFEC[f'PFEC resnet56 #{number}']
            assert (entry['parameters'], entry['macs']) == (row['params'], row['macs'])
        else:
            printed = (1.26, 0.92, 0.70, 0.52, 0.38)[number - 1]
            assert entry['parameters'] / 1e6 == pytest.approx(printed, abs=0.005)
