"""Budgets: reached from below, to within 1% or one step of one unit."""
from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from mmprune_ext.analysis import complexity
from mmprune_ext.errors import PruningError, TargetError
from mmprune_ext.mutators import Budget, L1Mutator
from mmprune_ext.targets.budget import fill_by_rank, fit, measure_of, rank_path
from mmprune_ext.targets.target import keeps_from_budget
from mmprune_ext.units import ChannelUnit, Reason, UnitSet, slim, trace_units
from mmprune_ext.units.unit import InitArgs

NETS = {
    'resnet8': (dict(type='mmprune_ext.CifarResNet', depth=8), 64, 32),
    'resnet20-B': (dict(type='mmprune_ext.CifarResNet', depth=20, shortcut='B'), 64, 32),
    'vgg11': (dict(type='mmprune_ext.CifarVGG', depth=11), 512, 32),
    'mobilenet_v2': (dict(type='MobileNetV2', widen_factor=0.25), 1280, 64),
}


def prepared(classifier: Callable[..., nn.Module], net: str, **settings: Any) -> tuple[L1Mutator, nn.Module]:
    backbone, features, size = NETS[net]
    model = classifier(backbone, features)
    mutator = L1Mutator(demo_inputs=(size, size), **settings)
    mutator.prepare(model)
    return mutator, model


def measured(model: nn.Module, units: UnitSet, size: int) -> dict[str, int]:
    """Return the resources, counted on the model itself and not by the cost model."""
    counted = complexity(model, (size, size))
    return {'flops': counted.macs, 'params': counted.params, 'volume': counted.volume,
            'channels': sum(unit.keep for unit in units.prunable.values())}


def chosen(units: UnitSet) -> dict[str, list[int]]:
    return {name: list(unit.indices) for name, unit in units.prunable.items()}


@pytest.mark.parametrize(('net', 'resource', 'spread'), [
    *((net, resource, spread) for net in ('resnet8', 'resnet20-B')
      for resource in ('flops', 'params', 'channels', 'volume') for spread in ('uniform', 'global')),
    ('vgg11', 'flops', 'uniform'), ('vgg11', 'params', 'global'), ('mobilenet_v2', 'flops', 'global'),
    ('mobilenet_v2', 'volume', 'uniform')])
def test_reached_from_below(classifier, net, resource, spread):
    mutator, model = prepared(classifier, net)
    size = NETS[net][2]
    dense = measured(model, mutator.units, size)
    units = mutator.choose(model, budget={resource: 0.5, 'spread': spread})
    reached = measured(slim(model, units), units, size)[resource] / dense[resource]
    assert 0.49 <= reached <= 0.5


@pytest.mark.parametrize(('spread', 'scope'), [('uniform', 'backbone'), ('global', 'backbone')])
def test_measured_on_a_part(classifier, spread, scope):
    """ChipNet and others count the backbone alone; here the classifier is a large part."""
    backbone, features, size = NETS['resnet8']
    model = classifier(backbone, features, classes=1000)
    mutator = L1Mutator(demo_inputs=(size, size))
    mutator.prepare(model)
    dense = complexity(model, (size, size))
    units = mutator.choose(model, budget=dict(params=0.5, spread=spread, scope=scope))
    compact = complexity(slim(model, units), (size, size))
    assert 0.49 <= compact.backbone_params / dense.backbone_params <= 0.5
    # The same budget on the whole model is another one.
    assert not 0.49 <= compact.params / dense.params <= 0.5


@pytest.mark.parametrize('spread', ['uniform', 'global'])
def test_divisor_and_min_channels(classifier, spread):
    mutator, model = prepared(classifier, 'vgg11', divisor=8, min_channels=48)
    units = mutator.choose(model, budget=dict(flops=0.3, spread=spread))
    keeps = [unit.keep for unit in units.prunable.values()]
    assert all(keep % 8 == 0 and keep >= 48 for keep in keeps)
    size = NETS['vgg11'][2]
    dense = complexity(model, (size, size))
    compact = complexity(slim(model, units), (size, size))
    assert compact.macs <= 0.3 * dense.macs
    # At least one unit could not be widened by one step without exceeding the budget.
    assert compact.macs >= 0.27 * dense.macs


def test_excluded_units_stay_whole(classifier):
    mutator, model = prepared(classifier, 'resnet8', exclude=['backbone.layer1.*', 'backbone.conv1'])
    units = mutator.choose(model, budget=dict(params=0.5))
    whole = [name for name, unit in units.items() if unit.keep == unit.num_channels]
    assert whole == ['backbone.conv1', 'backbone.layer1.0.conv1', 'head.fc']
    assert mutator.units['backbone.conv1'].why().endswith('(backbone.conv1)')


def test_exclude_pattern_without_match(classifier):
    with pytest.raises(PruningError, match=r'exclude: no channel unit matches "backbone.layer9.\*"'):
        prepared(classifier, 'resnet8', exclude='backbone.layer9.*')


def test_everything_remains(classifier):
    for spread in ('uniform', 'global'):
        mutator, model = prepared(classifier, 'resnet8')
        units = mutator.choose(model, budget=dict(flops=1.0, spread=spread))
        assert all(unit.keep == unit.num_channels for unit in units.values())


@pytest.mark.parametrize('spread', ['uniform', 'global'])
def test_smallest_budget_is_reachable_and_less_is_not(classifier, spread):
    mutator, model = prepared(classifier, 'resnet8', min_channels=4)
    dense = complexity(model, (32, 32)).params
    with pytest.raises(TargetError, match=r'params cannot be reduced to 1\.0%; the smallest widths that '
                       r'min_channels and the units that cannot be pruned allow leave (\d+\.\d)%') as caught:
        mutator.choose(model, budget=dict(params=0.01, spread=spread))
    least = float(str(caught.value).rsplit('leave ', 1)[1].rstrip('%')) / 100
    # Rounded to 0.1%, hence the margin.
    units = mutator.choose(model, budget=dict(params=least + 0.0006, spread=spread))
    assert {unit.keep for unit in units.prunable.values()} <= {4, 5}
    assert complexity(slim(model, units), (32, 32)).params == pytest.approx(least * dense, abs=0.0012 * dense)


@pytest.mark.parametrize('spread', ['uniform', 'global'])
def test_global_takes_the_lowest_scores(classifier, spread):
    """With one unit's filters made tiny, a global ranking empties it first; a uniform spread does not."""
    mutator, model = prepared(classifier, 'resnet8')
    with torch.no_grad():
        # Relative to the unit's mean: half of the channels are far below it.
        model.backbone.layer2[0].conv1.weight[::2] *= 1e-3
    units = mutator.choose(model, budget=dict(channels=0.9, spread=spread))
    kept = units['backbone.layer2.0.conv1'].indices
    removed = {name: unit.num_channels - unit.keep for name, unit in units.prunable.items()}
    if spread == 'global':
        assert kept == list(range(1, 32, 2))
        assert removed['backbone.layer2.0.conv1'] == 16
    else:
        assert max(removed.values()) <= 7


def test_uniform_is_uniform(classifier):
    mutator, model = prepared(classifier, 'vgg11')
    units = mutator.choose(model, budget=dict(flops=0.4))
    shares = [unit.keep / unit.num_channels for unit in units.prunable.values()]
    assert max(shares) - min(shares) < 0.02


@pytest.mark.parametrize('config', [
    {}, {'flops': 0.5, 'params': 0.5}, {'channels': 0.5, 'volume': 0.5}, {'flop': 0.5},
    {'flops': 0.5, 'spread': 'even'}, {'flops': 0}, {'volume': 0}, {'flops': 1.5}, {'flops': -0.5},
    {'flops': '0.5'}, {'flops': True}, {'flops': float('nan')},
], ids=repr)
def test_malformed_budget(config):
    with pytest.raises(TargetError, match='budget'):
        Budget.from_config(config)


def test_exactly_one_target(classifier):
    mutator, model = prepared(classifier, 'resnet8')
    for ratios, budget in ((None, None), (0.5, dict(flops=0.5))):
        with pytest.raises(TargetError, match='give either target_pruning_ratio or budget'):
            mutator.choose(model, ratios, budget)


def test_unknown_part(classifier):
    mutator, model = prepared(classifier, 'resnet8')
    with pytest.raises(PruningError, match='no submodule "neckk"'):
        mutator.choose(model, budget=dict(flops=0.5, scope='neckk'))


def test_units_from_a_file(classifier, tmp_path):
    """They hold no costs; the mutator counts them on its demo inputs."""
    mutator, model = prepared(classifier, 'resnet8')
    mutator.units.save(tmp_path / 'units.json')
    known = L1Mutator(demo_inputs=(32, 32))
    known.prepare(model, UnitSet.load(tmp_path / 'units.json'))
    for budget in (dict(flops=0.5), dict(params=0.5), dict(volume=0.5)):
        known.choose(model, budget=budget)
        mutator.choose(model, budget=budget)
        assert chosen(known.units) == chosen(mutator.units)
    with pytest.raises(TargetError, match='flops needs units traced on this model'):
        keeps_from_budget(known.units, Budget('flops', 0.5), model, {})
    with pytest.raises(TargetError, match='volume needs an input_size'):
        keeps_from_budget(mutator.units, Budget('volume', 0.5), model, {})


def test_measured_on_a_size_of_its_own(classifier):
    """Traced on small images, where the classifier is most of the cost, it is counted on large ones."""
    backbone, features, _ = NETS['resnet8']
    model = classifier(backbone, features, classes=1000)
    mutator = L1Mutator(demo_inputs=(8, 8))
    mutator.prepare(model)
    kept = []
    for size in (8, 64):
        dense = measured(model, mutator.units, size)['flops']
        units = mutator.choose(model, budget=dict(flops=0.5, input_size=(size, size)))
        kept.append(chosen(units))
        reached = measured(slim(copy.deepcopy(model), units), units, size)['flops'] / dense
        assert 0.49 <= reached <= 0.5
    assert kept[0] != kept[1]


# ---------------------------------------------------------------- the search by itself


def two_units() -> UnitSet:
    """Units a (4 channels) and b (6 channels, never below 2), and one that cannot be pruned."""
    units = UnitSet([ChannelUnit('a', 4), ChannelUnit('b', 6, init_args=InitArgs(1, 2)), ChannelUnit('c', 3)])
    units['c'].forbid(Reason.OUTPUT)
    return units


@pytest.mark.parametrize(('resource', 'scope', 'expected'), [
    # backbone.0: 3 -> 4 channels, 3 x 3; backbone.1: normalisation; head: 4 -> 2; one image of 5 x 5
    ('flops', '', lambda k: 25 * 27 * k + 25 * 2 * k), ('flops', 'backbone', lambda k: 25 * 27 * k),
    ('params', '', lambda k: 28 * k + 2 * k + 2 * k + 2), ('params', 'backbone', lambda k: 28 * k + 2 * k),
    ('volume', '', lambda k: 25 * k + 25 * 2), ('volume', 'backbone', lambda k: 25 * k),
    ('channels', '', lambda k: k), ('channels', 'backbone', lambda k: k)])
def test_measures_by_hand(resource, scope, expected):
    model = nn.Sequential(OrderedDict(
        backbone=nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)), head=nn.Conv2d(4, 2, 1)))
    units = trace_units(model, (8, 8), scope='all')
    measure = measure_of(units, resource, model, scope, (5, 5))
    assert measure({}) == expected(4)
    assert measure({'backbone.0': 1}) == expected(1)


def test_unknown_resource(classifier):
    mutator, model = prepared(classifier, 'resnet8')
    with pytest.raises(TargetError, match="one of flops, params, channels, volume, but got 'macs'"):
        measure_of(mutator.units, 'macs', model)


def test_rank_path_takes_scores_as_they_are():
    """The lowest of all go first; what a unit's mean is does not matter, and it never gets below its least width."""
    scores = {'a': torch.tensor([0.9, 0.1, 0.8, 0.7], requires_grad=True),
              'b': torch.tensor([0.2, 0.3, 0.4, 0.05, 0.06, 0.07])}
    path = rank_path(two_units(), scores)
    order = sorted((score, name) for name, values in scores.items() for score in values.tolist())
    for gone in range(11):
        lost = [name for _, name in order[:gone]]
        assert path(gone / 10) == {'a': max(4 - lost.count('a'), 1), 'b': max(6 - lost.count('b'), 2)}


def test_fit_is_the_best_along_the_path():
    """Against every point of the path: the widest within the limit, and no wider one of a single unit."""
    units, price = two_units(), {'a': 5, 'b': 3}
    scores = {'a': torch.tensor([0.9, 0.1, 0.8, 0.7]), 'b': torch.tensor([0.2, 0.3, 0.4, 0.05, 0.06, 0.07])}

    def measure(keeps):
        return sum(price[name] * keeps[name] for name in price)
    path = rank_path(units, scores)
    points = [path(i / 10) for i in range(11)]
    for limit in range(measure(points[-1]), measure(points[0]) + 2):
        kept = fit(units, path, measure, limit)
        # No two channels have one score, so that one channel lies between two points.
        assert kept == max((p for p in points if measure(p) <= limit), key=measure)
    assert fit(units, path, measure, 0) == {'a': 1, 'b': 2}


def test_fill_by_rank_takes_the_next_channels_that_fit():
    """Against a walk down the ranking of all channels; what is left buys no unit's next channel."""
    units, price = two_units(), {'a': 5, 'b': 3}
    scores = {'a': torch.tensor([0.9, 0.1, 0.8, 0.7]), 'b': torch.tensor([0.2, 0.3, 0.4, 0.05, 0.06, 0.07])}
    ranking = sorted(((score, name) for name, values in scores.items() for score in values.tolist()), reverse=True)

    def measure(keeps):
        return sum(price[name] * keeps[name] for name in price)
    for limit in range(11, 40):
        kept = fit(units, rank_path(units, scores), measure, limit)
        want, blocked, seen = dict(kept), set(), {'a': 0, 'b': 0}
        for _, name in ranking:
            seen[name] += 1
            if seen[name] <= kept[name] or name in blocked:
                continue
            if measure(want) + price[name] <= limit:
                want[name] += 1
            else:
                blocked.add(name)
        filled = fill_by_rank(units, kept, scores, measure, limit)
        assert filled == want
        assert all(measure(filled) + price[name] > limit for name in price if filled[name] < len(scores[name]))
    assert fill_by_rank(units, {'a': 1, 'b': 2}, scores, measure, 15) == {'a': 1, 'b': 3}


def test_fit_keeps_as_many_of_equal_scores_as_the_limit_allows():
    units = two_units()
    scores = {name: torch.ones(units[name].num_channels) for name in 'ab'}
    path = rank_path(units, scores)
    assert path(0.0) == path(0.9) == {'a': 4, 'b': 6}
    for limit in range(3, 11):
        kept = fit(units, path, lambda keeps: sum(keeps.values()), limit)
        assert sum(kept.values()) == limit


def test_a_budget_beyond_the_scope_names_the_scope_and_the_cure():
    """Each weight is used once a pixel, so that shares of MACs are those of weights."""
    model = nn.Sequential(OrderedDict(
        backbone=nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)),
        neck=nn.Sequential(nn.Conv2d(8, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1)),
        head=nn.Conv2d(32, 4, 1)))
    weights = {'backbone': 8 * 3 * 9 + 8 * 8 * 9, 'neck': 32 * 8 * 9 + 32 * 32 * 9, 'head': 4 * 32}
    share = weights['backbone'] / sum(weights.values())

    def refused(**budget: Any) -> str:
        mutator = L1Mutator(demo_inputs=(8, 8))
        mutator.prepare(model)
        with pytest.raises(TargetError, match=r'flops cannot be reduced to 50\.0%; .* leave ') as met:
            mutator.choose(model, budget={'flops': 0.5, 'input_size': (8, 8), **budget})
        return str(met.value)

    assert refused().partition('%; backbone')[2] == (
        f', which may be pruned, has {share:.1%} of the flops of the model: prune more of it (--scope all, --scope '
        "backbone neck; scope of the mutator in a config), or let the share be one of backbone alone (--budget-scope "
        "backbone; budget=dict(scope='backbone'))")
    assert '--scope' not in refused(scope='neck')  # which says by itself what it is a share of
