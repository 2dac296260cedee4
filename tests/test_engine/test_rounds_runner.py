"""What rounds are pruned to, what is wrong with a section of them, where a job goes on, and pruning further."""
from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmprune_ext.algorithms import L1Norm
from mmprune_ext.analysis import complexity
from mmprune_ext.compact import CompactModel
from mmprune_ext.compact.export import export
from mmprune_ext.engine import runs
from mmprune_ext.engine.rounds import check_later_targets, set_rounds, targets_of, without_pruning
from mmprune_ext.engine.rounds_job import RoundsJob
from mmprune_ext.engine.rounds_runner import RoundsRunner
from mmprune_ext.errors import CheckpointError, ConfigError, PruningError, TargetError
from mmprune_ext.registry import MODELS
from mmprune_ext.units import UnitSet
from tests.in_process import own_globals
from tests.runs import state

MODEL = dict(type='mmprune_ext.L1Norm', architecture=dict(type='ImageClassifier'))


def section(rounds: Any, **model: Any) -> dict[str, Any]:
    return dict(model={**MODEL, **model}, rounds=rounds, runner_type='mmprune_ext.RoundsRunner')


def budgets(rounds: Any, **model: Any) -> list[float]:
    return [target['budget']['flops'] for target in targets_of(section(rounds, **model))]


# ---------------------------------------------------------------- what each round is pruned to


def test_the_same_ratios_again():
    ratios = {'backbone.layer1.*.conv1': 0.1}
    assert targets_of(section(3, target_pruning_ratio=ratios)) == [dict(target_pruning_ratio=ratios)] * 3
    assert targets_of(section(dict(num=2), target_pruning_ratio=0.2)) == [dict(target_pruning_ratio=0.2)] * 2


def test_a_budget_is_what_remains_in_the_end():
    """By equal factors: half, a quarter, an eighth after three rounds to an eighth."""
    assert budgets(3, budget=dict(flops=0.125)) == [pytest.approx(0.5), pytest.approx(0.25), 0.125]
    found = targets_of(section(2, budget=dict(params=0.25, spread='global', scope='backbone')))
    assert found == [dict(budget=dict(params=0.5, spread='global', scope='backbone')),
                     dict(budget=dict(params=0.25, spread='global', scope='backbone'))]


def test_a_list_stands_in_the_place_of_the_target_of_the_model():
    targets = [dict(budget=dict(flops=0.8)), dict(target_pruning_ratio=0.3), dict(budget=dict(flops=0.4))]
    assert targets_of(section(dict(targets=targets), target_pruning_ratio=0.5)) == targets
    assert targets_of(section(dict(num=3, targets=targets))) == targets


@pytest.mark.parametrize(('targets', 'idle'), [
    ([0, 0.3, 0.0], [1, 3]), (['[0.]*3', '[0.]*2+[0.1]', 'dcff: [0]*4'], [1, 3]),
    ([{'backbone.layer1.*': 0, 'backbone.layer2.*': 0.0}, {'a': 0, 'b': 0.1}, 'ratios.json'], [1])])
def test_rounds_that_remove_nothing(targets, idle):
    assert without_pruning([dict(target_pruning_ratio=ratio) for ratio in targets]) == idle
    assert without_pruning([dict(budget=dict(flops=0.5))]) == []


def test_rounds_that_remove_nothing_are_warned_of(pruning_config, tmp_path, capsys):
    config = pruning_config({'work_dir': str(tmp_path)})
    del config.model['target_pruning_ratio']
    config.merge_from_dict(section(dict(targets=[dict(target_pruning_ratio=ratio) for ratio in (0, 0.2, 0)]),
                                   **config.model))
    with own_globals():
        RoundsRunner.from_cfg(config)
    warnings = [line for line in capsys.readouterr().out.splitlines() if 'WARNING' in line and 'rounds:' in line]
    assert len(warnings) == 1
    assert 'rounds: rounds 1, 3: a pruning ratio of 0 removes no channel, so that they only train' in warnings[0]


def test_the_flag_makes_a_pruning_config_one_of_rounds():
    config = Config(dict(model={**MODEL, 'target_pruning_ratio': 0.2}))
    set_rounds(config, 4)
    assert (config.rounds, config.runner_type) == (4, 'mmprune_ext.RoundsRunner')
    set_rounds(config, 2)  # of a config that has rounds the number alone
    assert config.rounds == 2
    plain = Config(dict(model={**MODEL, 'target_pruning_ratio': 0.2}))
    set_rounds(plain)
    assert 'rounds' not in plain and 'runner_type' not in plain


RATIO = dict(target_pruning_ratio=0.2)
WRONG = {
    'no rounds': (section(0, **RATIO), 'rounds is the number of rounds, at least 1, but got 0'),
    'less than none': (section(-1, **RATIO), 'at least 1, but got -1'),
    'half a round': (section(2.5, **RATIO), 'at least 1, but got 2.5'),
    'a word': (section('five', **RATIO), "at least 1, but got 'five'"),
    'a truth': (section(True, **RATIO), 'at least 1, but got True'),
    'nothing': (section(None, **RATIO), 'does not say how many rounds; set rounds=5'),
    'no number in the section': (section(dict(), **RATIO), 'rounds.num is the number of rounds'),
    'misspelt key': (section(dict(nums=3), **RATIO), 'unknown key "nums"; did you mean num?'),
    'other length': (section(dict(num=3, targets=[RATIO] * 2)), 'num is 3, but targets has 2 entries'),
    'no list': (section(dict(targets=RATIO)), 'rounds.targets should be a list'),
    'empty list': (section(dict(targets=[])), 'rounds.targets should be a list'),
    'no target': (section(dict(targets=[RATIO, 0.3])), r'rounds.targets\[1\] should be dict\(target_pruning_ratio='),
    'two targets in one': (section(dict(targets=[dict(budget=dict(flops=0.5), **RATIO)])), r'targets\[0\] should be'),
    'ratio of all': (section(dict(targets=[RATIO, dict(target_pruning_ratio=1.0)])),
                     r'targets\[1\]: a pruning ratio is the share of channels removed, at least 0 and below 1'),
    'unknown resource': (section(dict(targets=[dict(budget=dict(memory=0.5))])),
                         r'targets\[0\]: budget should have exactly one of flops, params'),
    'a budget that grows': (section(dict(targets=[dict(budget=dict(flops=0.5)), dict(budget=dict(flops=0.8))])),
                            'round 2 is to leave 0.8 of the flops, and an earlier one leaves 0.5'),
    'a budget that stays': (section(dict(targets=[dict(budget=dict(flops=0.5)), RATIO, dict(budget=dict(flops=0.5))])),
                            'round 3 is to leave 0.5'),
    'no target of the model': (section(2), 'the model should have target_pruning_ratio or budget'),
    'two of the model': (section(2, budget=dict(flops=0.5), **RATIO), 'one of them'),
    'bad budget of the model': (section(2, budget=dict(flops=2)), 'flops is the share that remains'),
    'units': (section(2, units='units.json', **RATIO), r'model.units \(.units.json.\) says which stay'),
    'scores': (section(2, scores='scores.json', **RATIO), 'scores are of the dense weights, but rounds 2 to 2'),
    'a missing file': (section(2, target_pruning_ratio='ratios.json'), 'ratios.json: no such file'),
    'a dense model': (dict(model=dict(type='ImageClassifier'), rounds=2), 'a ImageClassifier, which prunes nothing'),
    'DCFF': (section(2, type='mmprune_ext.DCFF', **RATIO), 'DCFF finds its channels .*CHIP, Fisher, L1Norm, OBS'),
    'ChipNet': (section(2, type='mmprune_ext.ChipNet', budget=dict(flops=0.5)), 'ChipNet finds its channels'),
    'stripes': (section(2, type='mmprune_ext.StripeWise'), 'StripeWise finds its channels'),
    'a compact architecture': (section(2, architecture=dict(type='mmprune_ext.CompactModel'), **RATIO),
                               'give the dense architecture'),
}


@pytest.mark.parametrize('name', WRONG)
def test_wrong_sections(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, message = WRONG[name]
    with pytest.raises(PruningError, match=message):
        targets_of(config)


def test_scores_serve_one_round():
    assert len(targets_of(section(1, scores='scores.json', **RATIO))) == 1


def test_a_unit_file_is_no_target_of_several_rounds(pruned):
    """Its numbers are of the dense model."""
    target = str(pruned / 'units.json')
    assert len(targets_of(section(1, target_pruning_ratio=target))) == 1
    with pytest.raises(ConfigError, match='is a channel-unit file.* cannot be taken off 2 times'):
        targets_of(section(2, target_pruning_ratio=target))


@pytest.mark.parametrize('runner', ['mmprune_ext.SearchRunner', 'Runner'])
def test_another_runner(runner):
    config = Config(dict(model={**MODEL, **RATIO}, runner_type=runner))
    with pytest.raises(ConfigError, match=f"only runner_type='mmprune_ext.RoundsRunner' reads them.*{runner}"):
        set_rounds(config, 2)


def test_rounds_that_no_runner_reads():
    with pytest.raises(ConfigError, match='set it, or take rounds out'):
        set_rounds(Config(dict(model={**MODEL, **RATIO}, rounds=2)))


# ---------------------------------------------------------------- targets of later rounds


LATER = {
    'out of reach': ([dict(budget=dict(params=0.5)), dict(budget=dict(params=0.001))],
                     'round 2: budget: params cannot be reduced'),
    'no such unit': ([dict(target_pruning_ratio=0.2), dict(target_pruning_ratio={'backbone.layer9.conv1': 0.5})],
                     'round 2: .*backbone.layer9.conv1'),
}


@pytest.mark.parametrize('name', LATER)
def test_later_targets_are_tried_first(name, pruning_config):
    targets, message = LATER[name]
    with pytest.raises(PruningError, match=message):
        check_later_targets(pruning_config(), targets)
    check_later_targets(pruning_config(), targets[:1] * 2)
    check_later_targets(pruning_config(), [targets[0], dict(budget=dict(flops=0.5, spread='global'))])


# ---------------------------------------------------------------- pruning further


@pytest.fixture
def build(pruning_config) -> Callable[..., L1Norm]:
    """Return a function that builds the pruning model of the tiny classifier, from a checkpoint, to a target."""
    def build_from(checkpoint: Path, **target: Any) -> L1Norm:
        config = pruning_config()
        model = {key: value for key, value in config.model.items() if key != 'target_pruning_ratio'}
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            return MODELS.build({**model, **target, 'checkpoint': str(checkpoint),
                                 'data_preprocessor': config.data_preprocessor})
    return build_from


@pytest.fixture
def first(build, pruning_config, dense_checkpoint, tmp_path) -> Path:
    """The export of the tiny classifier without 40% of the channels of each unit."""
    config = pruning_config()
    run = build(dense_checkpoint, target_pruning_ratio=0.4)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        export(run.export_model(), run.units, config, config.model.architecture, tmp_path / 'first', (32, 32))
    return tmp_path / 'first'


def test_compact_weights_are_pruned_further(build, first, pruning_config, dense_checkpoint):
    run = build(first / 'compact.pth', target_pruning_ratio=0.3)
    before = UnitSet.load(first / 'units.json')
    assert run.units.architecture == before.architecture
    for name, unit in run.units.prunable.items():
        # Of what is left; and named as channels of the dense model.
        assert unit.num_channels == before[name].num_channels
        assert unit.keep == int(int(unit.num_channels * 0.6) * 0.7)
        assert set(unit.indices) < set(before[name].indices)
    # The weights are those of the dense model at these channels.
    dense = state(dense_checkpoint)
    name = 'backbone.layer2.0.conv1'
    rows, columns = run.units[name].indices, run.units['backbone.conv1'].indices
    torch.testing.assert_close(run.state_dict()[f'{name}.weight'], dense[f'{name}.weight'][rows][:, columns],
                               rtol=0, atol=0)
    # By the first round's own weights: a filter has lost inputs, which its norm does not count.
    norms = dense[f'{name}.weight'][before[name].indices][:, before['backbone.conv1'].indices].abs().sum((1, 2, 3))
    best = norms.topk(len(rows)).indices.tolist()
    assert rows == sorted(before[name].indices[place] for place in best)


def test_what_is_pruned_further_is_the_dense_model_slimmed_by_its_units(build, first, pruning_config):
    run = build(first / 'compact.pth', target_pruning_ratio=0.3).eval()
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        compact = CompactModel(pruning_config().model.architecture, run.units.to_json(),
                               data_preprocessor=pruning_config().data_preprocessor).eval()
    compact.load_state_dict(run.export_model().state_dict())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(compact(images), run(images), rtol=0, atol=1e-5)
    # A checkpoint of such a run is one of the dense architecture.
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        again = MODELS.build({**pruning_config().model, 'units': run.units.to_json(), 'checkpoint': None})
    again.load_state_dict(run.state_dict())


@pytest.mark.parametrize('budget', [dict(flops=0.2), dict(params=0.2), dict(channels=0.3), dict(volume=0.3),
                                    dict(params=0.15, spread='global'), dict(flops=0.15, scope='backbone')], ids=repr)
def test_a_budget_is_a_share_of_the_dense_model(budget, build, first, dense_checkpoint, pruning_config, tmp_path):
    """As much as one more channel of some unit would be too much, or all that there is."""
    run = build(first / 'compact.pth', budget=budget)
    config = pruning_config()
    dense = build(dense_checkpoint, target_pruning_ratio=0.0)
    costs = [complexity(model.export_model(), (32, 32), flops=False) for model in (dense, run)]
    channels = [sum(unit.keep for unit in model.units.prunable.values()) for model in (dense, run)]
    name = next(key for key in budget if key not in ('spread', 'scope'))
    values = {'flops': [cost.backbone_macs if budget.get('scope') else cost.macs for cost in costs],
              'params': [cost.params for cost in costs], 'volume': [cost.volume for cost in costs],
              'channels': channels}[name]
    assert 0.85 * budget[name] < values[1] / values[0] <= budget[name]
    assert config.model.architecture.backbone.depth == 8


def test_a_budget_out_of_reach_is_told_in_shares_of_the_dense_model(build, first):
    # One channel a unit leaves 115 parameters, of 19,218 of the dense network.
    with pytest.raises(TargetError, match='params cannot be reduced to 0.1%; .* leave 0.6%'):
        build(first / 'compact.pth', budget=dict(params=0.001))


def test_compact_weights_of_another_network(build, first):
    content = torch.load(first / 'compact.pth', weights_only=False)
    content['meta']['channel_units']['architecture'] = 'another'
    torch.save(content, first / 'other.pth')
    with pytest.raises(CheckpointError, match='other shapes'):
        build(first / 'other.pth', target_pruning_ratio=0.3)


# ---------------------------------------------------------------- where a job goes on


def job(folder: Path, rounds: int = 3, **settings: Any) -> RoundsJob:
    config = Config(dict(section(rounds, target_pruning_ratio=0.2), work_dir=str(folder), **settings))
    return RoundsJob(config, targets_of(config))


def remember(folder: Path, *done: bool, ratio: float = 0.2) -> None:
    """Write what a job remembers of rounds that have begun, and are done or not."""
    entries = [{'round': number, 'target': {'target_pruning_ratio': ratio}, **({'parameters': 1} if is_done else {})}
               for number, is_done in enumerate(done, 1)]
    (folder / 'rounds.json').write_text(json.dumps({'schema': 1, 'dense': None, 'rounds': entries}))


def leave(folder: Path, number: int) -> str:
    """Leave a checkpoint in the folder of a round, as mmengine does."""
    place = folder / f'round_{number}'
    place.mkdir(exist_ok=True)
    torch.save(dict(meta=dict(epoch=1, round=number), state_dict=dict(weight=torch.zeros(1))), place / 'epoch_1.pth')
    (place / 'last_checkpoint').write_text(str(place / 'epoch_1.pth'))
    return str(place / 'epoch_1.pth')


STARTS: Mapping[str, tuple[tuple[bool, ...] | None, tuple[int, ...], tuple[int, int | None]]] = {
    'an empty folder': (None, (), (1, None)),
    'what nothing remembers': (None, (1, 2), (1, None)),
    'before the first checkpoint': ((False,), (), (1, None)),
    'in the first round': ((False,), (1,), (1, 1)),
    'in the second': ((True, False), (1, 2), (2, 2)),
    'in the second, before its first checkpoint': ((True, False), (1,), (2, None)),
    'between rounds': ((True,), (1,), (2, None)),
    'between rounds, beside a later one of an earlier job': ((True,), (1, 2, 3), (2, None)),
    'all done': ((True, True, True), (1, 2, 3), (3, 3)),
}


@pytest.mark.parametrize('name', STARTS)
def test_where_a_job_goes_on(name, tmp_path):
    done, left, (number, checkpoint) = STARTS[name]
    if done is not None:
        remember(tmp_path, *done)
    paths = {count: leave(tmp_path, count) for count in left}
    assert job(tmp_path, resume=True).start() == (number, paths.get(checkpoint))
    assert job(tmp_path).start() == (1, None)  # not resumed


def test_fewer_rounds_than_have_begun_are_refused(tmp_path):
    paths = {number: leave(tmp_path, number) for number in (1, 2, 3, 4)}
    remember(tmp_path, True, True, True, False)
    with pytest.raises(ConfigError, match='round 4 has begun, but the config has 3 rounds; resume with that many'):
        job(tmp_path, resume=True).start()
    assert job(tmp_path, resume=True, load_from=paths[2]).start() == (2, paths[2])


def test_a_folder_of_rounds_is_resumed_by_rounds_alone(tmp_path):
    remember(tmp_path, True)
    config = Config(dict(model=dict(type='L1Norm'), work_dir=str(tmp_path)))
    with pytest.raises(CheckpointError, match='holds a job of rounds; give --rounds'):
        runs.set_resume(config, True)
    (tmp_path / 'last_checkpoint').write_text('gone.pth')  # of a run of its own
    with pytest.raises(CheckpointError, match='gone.pth: no such file'):
        runs.set_resume(config, True)


def test_a_checkpoint_says_its_round(tmp_path):
    paths = {number: leave(tmp_path, number) for number in (1, 2, 4)}
    remember(tmp_path, True, True, True)
    assert job(tmp_path, resume=True, load_from=paths[2]).start() == (2, paths[2])
    with pytest.raises(ConfigError, match='is of round 4, but the config has 3 rounds'):
        job(tmp_path, resume=True, load_from=paths[4]).start()


def test_dense_weights_of_a_job_that_has_nothing_to_resume(dense_checkpoint, tmp_path):
    """`load_from` still names them, and no checkpoint of an ordinary run in the folder is taken for a round's."""
    (tmp_path / 'last_checkpoint').write_text(str(dense_checkpoint))
    config = Config(dict(section(2, target_pruning_ratio=0.2), work_dir=str(tmp_path), load_from=str(dense_checkpoint)))
    assert (runs.set_resume(config, True) or runs.set_start(config)) is None
    assert (config.model.checkpoint, config.load_from) == (str(dense_checkpoint), None)
    assert RoundsJob(config, targets_of(config)).start() == (1, None)


def test_a_checkpoint_that_is_gone(tmp_path):
    """The old one is removed before the new one is named: a kill in between."""
    remember(tmp_path, False)
    Path(leave(tmp_path, 1)).unlink()
    assert job(tmp_path, resume=True).start() == (1, None)


def test_other_targets_than_those_of_the_rounds_before(tmp_path):
    remember(tmp_path, True, ratio=0.3)
    with pytest.raises(ConfigError, match="round 1 was pruned to {'target_pruning_ratio': 0.3}, but"):
        job(tmp_path, resume=True).start()
    assert job(tmp_path).start() == (1, None)


def test_more_rounds_of_a_budget_are_other_rounds(tmp_path):
    """Its steps are others."""
    targets = [targets_of(section(number, budget=dict(flops=0.25, input_size=[32, 32]))) for number in (2, 3)]
    jobs = [RoundsJob(Config(dict(work_dir=str(tmp_path), resume=resume)), wanted)
            for resume, wanted in zip((False, True), targets)]
    jobs[0].begin(1, False)
    with pytest.raises(ConfigError, match="round 1 was pruned to {'budget': {'flops': 0.5}}"):
        jobs[1].start()


@pytest.mark.parametrize('content', ['', '[]', '{"rounds": [{}]}', '{"rounds": [{"round": "1", "target": {}}]}'])
def test_a_spoilt_memory(content, tmp_path):
    (tmp_path / 'rounds.json').write_text(content)
    with pytest.raises(ConfigError, match='rounds.json: not what a job of rounds wrote'):
        job(tmp_path, resume=True).start()
    job(tmp_path).begin(1, False)
    assert job(tmp_path, resume=True).start() == (1, None)


def test_a_file_in_the_place_of_a_round(tmp_path):
    (tmp_path / 'round_2').touch()
    with pytest.raises(ConfigError, match='round_2 is a file, where round 2 is to work'):
        job(tmp_path)


@pytest.mark.parametrize(('number', 'resumed', 'left'), [
    (1, False, []), (1, True, [1]), (2, False, [1]), (2, True, [1, 2]), (3, True, [1, 2, 3])])
def test_what_lies_behind_is_forgotten(number, resumed, left, tmp_path):
    for other in (1, 2, 3, 10):
        leave(tmp_path, other)
    remember(tmp_path, True, True, True)
    job(tmp_path).begin(number, resumed)
    assert sorted(path.parent.name for path in tmp_path.glob('*/last_checkpoint')) == [f'round_{n}' for n in left]
    entries = json.loads((tmp_path / 'rounds.json').read_text())['rounds']
    assert [('parameters' in entry) for entry in entries] == [True] * (number - 1) + [False]


def test_the_config_of_a_round(tmp_path):
    settings = dict(load_from='dense.pth', visualizer=dict(name='vis'), custom_hooks=[dict(type='EMAHook')])
    config = Config(dict(section(3, budget=dict(flops=0.125), checkpoint='dense.pth',
                                 calibration=dict(partial='sums')), work_dir=str(tmp_path), **settings))
    whole = RoundsJob(config, targets_of(config))
    one, three = whole.part(1), whole.part(3)
    assert (one.load_from, one.model.checkpoint, one.resume) == ('dense.pth', 'dense.pth', False)
    compact = tmp_path / 'round_2' / 'compact' / 'compact.pth'
    assert (three.load_from, three.model.checkpoint, three.resume) == (None, str(compact), False)
    assert (one.model.budget['flops'], three.model.budget['flops']) == (pytest.approx(0.5), 0.125)
    assert three.work_dir == str(tmp_path / 'round_3') and three.custom_hooks == settings['custom_hooks']
    assert three.visualizer.name == 'vis_round_3' and three.model.calibration.partial == 'sums.round_3'
    assert not {'rounds', 'runner_type'} & set(three)
    going_on = whole.part(2, 'round_2/epoch_1.pth')
    assert (going_on.load_from, going_on.model.units, going_on.resume) == (*['round_2/epoch_1.pth'] * 2, True)
    assert config.model.budget.flops == 0.125 and config.load_from == 'dense.pth'
