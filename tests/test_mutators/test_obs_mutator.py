"""Scores of the readers of real units, against weights solved for anew with each channel gone."""
from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from mmprune_ext.errors import ConfigError, PruningError
from mmprune_ext.mutators import OBSMutator
from tests.test_repair.test_least_squares import Chain, Residual, images

SIZE = (3, 9, 8)


def scored(model: nn.Module, x: Tensor, **options: float) -> tuple[OBSMutator, dict[str, Tensor]]:
    mutator = OBSMutator(dict(num_batches=2, dataloader=x.split(len(x) // 2)), **{'positions': 1.0, **options},
                         demo_inputs=SIZE)
    mutator.prepare(model)
    model.double()
    return mutator, mutator.scores(model)


def lost(layer: nn.Module, read: Tensor, wanted: Tensor, gone: list[int], groups: int = 1) -> float:
    """Return the squared error of the best weights and bias that do not read some channels of the input."""
    silenced = read.clone()
    silenced[:, gone] = 0
    if isinstance(layer, nn.Linear):
        columns, rows = silenced.T, wanted.T
    else:
        kernel = dict(kernel_size=layer.kernel_size, stride=layer.stride, padding=layer.padding)
        columns = nn.functional.unfold(silenced, **kernel).transpose(0, 1).flatten(1)
        rows = wanted.transpose(0, 1).flatten(1)
    total = 0.0
    for some, given in zip(columns.chunk(groups), rows.chunk(groups)):
        matrix = torch.cat([some, torch.ones_like(some[:1])])
        found = torch.linalg.lstsq(matrix.T, given.T, driver='gelsd').solution
        total += float((matrix.T @ found - given.T).square().sum())
    return total


@pytest.mark.parametrize(('layer', 'groups'), [
    (nn.Conv2d(8, 5, 3, stride=2, padding=1), 1), (nn.Conv2d(8, 6, 2, groups=2), 2)], ids=['convolution', 'groups'])
def test_of_a_convolution(layer, groups):
    torch.manual_seed(0)
    model = Chain(nn.Conv2d(3, 8, 3), copy.deepcopy(layer), nn.Conv2d(layer.out_channels, 2, 1))
    x = images(40)
    mutator, scores = scored(model, x, ridge=1e-10)
    with torch.no_grad():
        read = torch.tanh(model.layers[0](x))
        wanted = model.layers[1](read)
    power = float((wanted - wanted.mean((0, 2, 3), keepdim=True)).square().sum())
    unit = mutator.units['layers.0']
    places = [[c, c + 4] for c in range(4)] if groups == 2 else [[c] for c in range(8)]
    assert unit.num_channels == len(places)
    errors = [lost(model.layers[1], read, wanted, gone, groups) / power for gone in places]
    order = scores['layers.0'].argsort().tolist()
    assert order[0] == min(range(len(errors)), key=errors.__getitem__)
    assert float(scores['layers.0'].min()) == pytest.approx(min(errors), rel=1e-5)
    both = [place for c in order[:2] for place in places[c]]
    assert float(scores['layers.0'].sort().values[1]) == pytest.approx(
        lost(model.layers[1], read, wanted, both, groups) / power, rel=1e-5)


def test_after_a_flatten():
    torch.manual_seed(0)
    model = Chain(nn.Conv2d(3, 5, 3, stride=4), nn.Flatten(), nn.Linear(20, 7), nn.Linear(7, 3))
    x = images(60)
    _, scores = scored(model, x, ridge=1e-10)
    with torch.no_grad():
        read = torch.tanh(model.layers[0](x)).flatten(1)
        wanted = model.layers[2](read)
    power = float((wanted - wanted.mean(0)).square().sum())
    errors = [lost(model.layers[2], read, wanted, list(range(4 * c, 4 * c + 4))) / power for c in range(5)]
    assert float(scores['layers.0'].min()) == pytest.approx(min(errors), rel=1e-5)
    assert int(scores['layers.0'].argmin()) == min(range(5), key=errors.__getitem__)


def test_all_readers_of_a_sum_count():
    torch.manual_seed(0)
    model = nn.Sequential(Residual(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1))
    x = images(40)
    mutator, scores = scored(model, x, ridge=1e-10)
    name = next(unit.name for unit in mutator.units.values() if any(m.module == '0.conv2' for m in unit.producers))
    with torch.no_grad():
        block = model.double().eval()[0]
        stem = torch.relu(block.stem(x))
        inner, wanted = block.conv1(stem), model[1](block(x))
        read = block(x)
    power = sum(float((y - y.mean((0, 2, 3), keepdim=True)).square().sum()) for y in (inner, wanted))
    errors = [(lost(block.conv1, stem, inner, [c]) + lost(model[1], read, wanted, [c])) / power for c in range(8)]
    assert int(scores[name].argmin()) == min(range(8), key=errors.__getitem__)
    assert float(scores[name].min()) == pytest.approx(min(errors), rel=1e-5)


def test_what_cannot_work():
    for options, message in (({'ridge': 0}, 'ridge should be above 0, but got 0'),
                             ({'positions': 2}, 'positions is a share, above 0 and at most 1, but got 2')):
        with pytest.raises(ConfigError, match=message):
            OBSMutator(**options)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3))
    with pytest.raises(ConfigError, match='ended after 1 of 2 batches'):
        mutator = OBSMutator(dict(num_batches=2, dataloader=iter([images(2).float()])), demo_inputs=SIZE)
        mutator.prepare(model)
        mutator.scores(model)
    with pytest.raises(PruningError, match='layer "1": its inputs hold NaN or infinity'):
        scored(model, images(2) * torch.nan)
