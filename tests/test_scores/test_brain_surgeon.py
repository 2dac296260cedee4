"""Which channels go, against least squares solved anew for every candidate."""
from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmprune_ext.errors import PruningError
from mmprune_ext.scores import brain_surgeon
from mmprune_ext.scores.brain_surgeon import Reader

Data = tuple[Tensor, Tensor, Tensor]


def layer(seed: int, channels: int, taps: int, outputs: int, mixed: bool = False) -> Data:
    """Return inputs that depend on each other ``(K, n)``, weights ``(O, K)`` and the inputs of each channel."""
    generator = torch.Generator().manual_seed(seed)
    size = channels * taps
    values = torch.randn(size, 200, generator=generator, dtype=torch.float64)
    values = torch.randn(size, size, generator=generator, dtype=torch.float64) @ values
    weight = torch.randn(outputs, size, generator=generator, dtype=torch.float64)
    order = torch.randperm(size, generator=generator) if mixed else torch.arange(size)
    return values, weight, order.reshape(channels, taps)


def error(data: Data, gone: list[int], ridge: float) -> float:
    """Return the least of ``|W' X - W X|^2 + lambda |W' - W|^2`` over ``W'`` that do not read some channels."""
    values, weight, columns = data
    size = len(values)
    lam = ridge * float(values.square().sum()) / size
    kept = torch.tensor([k for k in range(size) if k not in columns[gone].flatten().tolist()], dtype=torch.int64)
    stacked = torch.cat([values, lam ** 0.5 * torch.eye(size, dtype=torch.float64)], 1)
    wanted = weight @ stacked
    found = torch.linalg.lstsq(stacked[kept].T, wanted.T).solution.T
    return float((found @ stacked[kept] - wanted).square().sum())


def by_trying_all(layers: list[Data], ridge: float) -> tuple[list[int], list[float]]:
    gone: list[int] = []
    errors = []
    count = len(layers[0][2])
    while len(gone) < count:
        tried = {c: sum(error(data, [*gone, c], ridge) for data in layers) for c in range(count) if c not in gone}
        best = min(tried, key=tried.get)
        gone.append(best)
        errors.append(tried[best])
    return gone, errors


@pytest.mark.parametrize('ridge', [1e-3, 0.1])
@pytest.mark.parametrize('layers', [
    [layer(0, 7, 1, 3)], [layer(1, 6, 4, 5, mixed=True)], [layer(2, 6, 1, 3), layer(3, 6, 4, 2), layer(4, 6, 2, 9)]],
    ids=['linear', 'patches', 'three readers'])
def test_the_cheapest_goes_each_time(layers, ridge):
    order, errors = by_trying_all(layers, ridge)
    scores = brain_surgeon([Reader(x @ x.T, w, columns) for x, w, columns in layers], ridge)
    size = sum(float((w @ x).square().sum()) for x, w, _ in layers)
    assert scores.argsort().tolist() == order
    assert (scores.sort().values * size).tolist() == pytest.approx(errors, rel=1e-8)


def test_a_channel_that_others_make_up_goes_first():
    values, weight, columns = layer(5, 6, 1, 4)
    values[3] = 0.5 * values[0] - 3 * values[5]
    scores = brain_surgeon([Reader(values @ values.T, weight, columns)], 1e-12)
    assert scores.argmin() in (0, 3, 5)
    assert scores.min() < 1e-9
    assert scores.sort().values[1] > 1e-6


def test_a_silent_channel_costs_nothing():
    values, weight, columns = layer(5, 6, 2, 4)
    values[columns[2]] = 0
    scores = brain_surgeon([Reader(values @ values.T, weight, columns)], 1e-9)
    assert scores.argmin() == 2
    assert scores[2] < 1e-6
    assert not brain_surgeon([Reader(torch.zeros(12, 12), weight, columns)]).any()


def test_in_rounds_the_first_are_those_that_cost_least_by_themselves():
    data = layer(6, 12, 2, 5)
    alone = torch.tensor([error(data, [c], 1e-3) for c in range(12)])
    values, weight, columns = data
    scores = brain_surgeon([Reader(values @ values.T, weight, columns)], 1e-3, rounds=3)
    assert scores.argsort()[:4].tolist() == alone.argsort()[:4].tolist()
    assert len(scores.unique()) == 12
    # Those of the second round are scored with the weights that followed the first.
    gone = alone.argsort()[:4].tolist()
    further = {c: error(data, [*gone, c], 1e-3) for c in range(12) if c not in gone}
    assert scores.argsort()[4:8].tolist() == sorted(further, key=further.get)[:4]


def test_what_cannot_be():
    values, weight, columns = layer(5, 6, 2, 4)
    with pytest.raises(PruningError, match='no layer reads'):
        brain_surgeon([])
    with pytest.raises(PruningError, match='hold NaN or infinity'):
        brain_surgeon([Reader(values @ values.T * torch.nan, weight, columns)])


def test_a_matrix_of_rounding_errors():
    values, weight, columns = layer(5, 6, 2, 4)
    rounding = torch.randn(12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rounding = 1e-9 * (rounding + rounding.T)
    assert float(torch.linalg.eigvalsh(rounding).min()) < 0
    alone = brain_surgeon([Reader(rounding, weight, columns)])
    assert bool(alone.isfinite().all()) and bool((alone >= 0).all())
    plain = Reader(values @ values.T, weight, columns)
    assert torch.allclose(brain_surgeon([plain, Reader(rounding, weight, columns)]), brain_surgeon([plain]), atol=1e-9)
