"""L1 scores of whole units against plain loops, and which channels a mutator keeps by them."""
from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmprune_ext.errors import PruningError
from mmprune_ext.mutators import L1Mutator


class Residual(nn.Module):
    """A stem, a grouped and a plain convolution that are added, a transposed one, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.backbone.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.backbone.up = nn.ConvTranspose2d(8, 12, 2, stride=2, groups=2)
        self.backbone.last = nn.Conv2d(12, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.backbone.stem(x).relu()
        x = (x + self.backbone.grouped(x)).relu()
        x = self.backbone.last(self.backbone.up(x).relu()).relu()
        return self.head(x.mean((2, 3)))


def filters(module: nn.Module) -> list[float]:
    """Return the L1 norm of each output channel's filter, weight by weight."""
    weight, groups = module.weight, module.groups
    found = []
    for channel in range(module.out_channels):
        total = 0.0
        if isinstance(module, nn.ConvTranspose2d):
            per_group = module.out_channels // groups
            group, place = divmod(channel, per_group)
            ins = module.in_channels // groups
            for i in range(group * ins, (group + 1) * ins):
                total += sum(abs(w) for w in weight[i, place].flatten().tolist())
        else:
            total = sum(abs(w) for w in weight[channel].flatten().tolist())
        found.append(total)
    return found


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Residual()


def prepared(model: nn.Module, **settings: Any) -> L1Mutator:
    mutator = L1Mutator(demo_inputs=(8, 8), **settings)
    mutator.prepare(model)
    return mutator


def test_scores_are_sums_over_producers(model):
    mutator = prepared(model)
    scores = mutator.scores(model)
    layers = model.backbone
    # Positions of a unit's channels in a layer need not be in order: the units say where they are.
    expected = {}
    for name, unit in mutator.units.prunable.items():
        expected[name] = torch.zeros(unit.num_channels, dtype=torch.float64)
        for member in unit.producers:
            norms = filters(model.get_submodule(member.module))
            for channel, places in enumerate(member.positions(unit.num_channels)):
                expected[name][channel] += sum(norms[p] for p in places)
    assert scores.keys() == expected.keys()
    for name in scores:
        torch.testing.assert_close(scores[name], expected[name], rtol=1e-6, atol=0)
    # What must hold whatever the units are: each filter counts once.
    total = sum(float(score.sum()) for score in scores.values())
    assert total == pytest.approx(sum(sum(filters(m)) for m in layers.children()), rel=1e-6)


def test_added_layers_share_a_unit(model):
    mutator = prepared(model)
    unit = next(u for u in mutator.units.values() if len(u.producers) > 1)
    assert [m.module for m in unit.producers] == ['backbone.stem', 'backbone.grouped']
    # A channel of this unit is one channel of each of the two groups.
    stem, grouped = (filters(model.get_submodule(m.module)) for m in unit.producers)
    score = mutator.score(model, unit)
    places = unit.producers[0].positions(unit.num_channels)
    by_hand = [sum(stem[p] + grouped[p] for p in row) for row in places]
    assert score.tolist() == pytest.approx(by_hand)


def test_best_channels_stay(model):
    mutator = prepared(model)
    units = mutator.choose(model, 0.5)
    last = torch.tensor(filters(model.backbone.last))
    assert units['backbone.last'].indices == sorted(last.topk(3).indices.tolist())


def test_equal_scores_keep_the_lower_index(model):
    mutator = prepared(model)
    with torch.no_grad():
        model.backbone.last.weight.fill_(0.5)
        model.backbone.last.weight[4] = 1.0
    assert mutator.choose(model, 0.5)['backbone.last'].indices == [0, 1, 4]


def test_choice_is_repeatable(model):
    first, second = (prepared(model).choose(model, budget=dict(params=0.6, spread='global')) for _ in range(2))
    assert [u.indices for u in first.values()] == [u.indices for u in second.values()]


def test_a_channel_of_nan_is_an_error(model):
    mutator = prepared(model)
    with torch.no_grad():
        model.backbone.last.weight[2, 0] = float('nan')
    with pytest.raises(PruningError, match='unit "backbone.last": .*NaN'):
        mutator.choose(model, 0.5)


def test_scoring_leaves_the_model_alone(model):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    prepared(model).choose(model, 0.5)
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_nothing_to_prune_lists_the_reasons():
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.backbone(x)

    with pytest.raises(PruningError, match='no channel unit of the model can be pruned:\n.*output of the model'):
        prepared(Head())


def test_unknown_scope_is_an_error(model):
    with pytest.raises(PruningError, match='neckk'):
        prepared(model, scope='neckk')


def test_scope_of_all_adds_what_is_outside_the_backbone(classifier):
    neck = dict(type='LinearNeck', in_channels=512, out_channels=64, gap_dim=0, norm_cfg=dict(type='BN1d'))
    model = classifier(dict(type='mmprune_ext.CifarVGG', depth=11), 64, neck=neck)
    own = L1Mutator(demo_inputs=(32, 32)).prepare(model)
    everything = L1Mutator('all', demo_inputs=(32, 32)).prepare(model)
    assert set(everything.prunable) - set(own.prunable) == {'neck.fc'}
    assert set(L1Mutator(['neck'], demo_inputs=(32, 32)).prepare(model).prunable) == {'neck.fc'}


@pytest.mark.parametrize('settings', [{'divisor': 0}, {'divisor': 1.5}, {'min_channels': 0}, {'divisor': True}],
                         ids=repr)
def test_bad_rounding(model, settings):
    with pytest.raises(PruningError, match='should be an integer of at least 1'):
        prepared(model, **settings)


def test_units_before_prepare():
    with pytest.raises(RuntimeError, match='call prepare'):
        _ = L1Mutator().units
