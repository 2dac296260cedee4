"""Filter fusion against its definition, written out term by term."""
from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.machine import extra_memory
from mmprune_ext.errors import PruningError
from mmprune_ext.scores import fusion_importance, fusion_matrix, fusion_temperature, similarity


def plain_similarity(weight: Tensor, temperature: float) -> Tensor:
    filters = weight.double().flatten(1)
    distances = (filters[:, None] - filters[None]).square().sum(-1).sqrt()
    return (-distances * temperature).softmax(1)


def plain_importance(weight: Tensor, temperature: float) -> Tensor:
    """The sum over k of KL(Q_j || Q_k), mean over the entries: a tensor of (C, C, C)."""
    q = plain_similarity(weight, temperature)
    return (q[:, None] * (q[:, None] / (q[None] + 1e-7)).log()).mean(2).sum(1)


def draw(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


# ---------------------------------------------------------------- against the definition


@pytest.mark.parametrize('temperature', [0.01, 0.3, 1.0, 4.0, 30.0, 300.0, 4621.0, 10000.0])
@pytest.mark.parametrize('scale', [1.0, 0.05, 1e-4], ids=['wide', 'trained', 'close'])
@pytest.mark.parametrize('shape', [(2, 3, 1, 1), (16, 8, 3, 3), (70, 40, 1, 1)], ids=str)
def test_importance_is_the_definition(shape, scale, temperature):
    weight = draw(*shape, scale=scale)
    expected = plain_importance(weight, temperature)
    found = fusion_importance(weight, temperature)
    assert found.shape == (shape[0],) and bool(found.isfinite().all())
    known = expected.isfinite()
    torch.testing.assert_close(found[known], expected[known], rtol=1e-5, atol=0)


def test_the_comparison_covers_what_is_finite():
    """The definition fails where a similarity underflows, and not before."""
    assert bool(plain_importance(draw(16, 8, 3, 3, scale=0.05), 300.0).isfinite().all())
    assert bool(plain_importance(draw(16, 8, 3, 3), 10000.0).isnan().all())


@pytest.mark.parametrize('temperature', [1.0, 50.0, 10000.0])
def test_filters_close_to_each_other_and_far_from_zero(temperature):
    """Distances of 1e-9 among filters of norm 1000: products of filters alone would lose them."""
    weight = draw(24, 9, scale=1e-5) + 100
    weight[3] = weight[2]
    weight[5] = weight[4] + 1e-9
    torch.testing.assert_close(similarity(weight, temperature), plain_similarity(weight, temperature),
                               rtol=1e-5, atol=1e-12)
    torch.testing.assert_close(fusion_importance(weight, temperature), plain_importance(weight, temperature),
                               rtol=1e-5, atol=0)


def test_pairs_near_within_a_wide_spread():
    weight = torch.cat([draw(12, 30), draw(12, 30) + 1e-8 * draw(12, 30, seed=1)])
    temperature = 1e7
    expected = plain_similarity(weight, temperature)
    assert 1e-6 < float(expected[0, 12]) < 0.5
    torch.testing.assert_close(similarity(weight, temperature), expected, rtol=1e-4, atol=1e-12)


def test_similarity_by_hand():
    """Filters 0, 3 and 7 on a line at temperature 1."""
    e = math.exp
    rows = [[1, e(-3), e(-7)], [e(-3), 1, e(-4)], [e(-7), e(-4), 1]]
    expected = torch.tensor([[v / sum(row) for v in row] for row in rows], dtype=torch.float64)
    torch.testing.assert_close(similarity(torch.tensor([0.0, 3.0, 7.0]), 1.0), expected)


# ---------------------------------------------------------------- degenerate weights


def test_duplicate_filters_share():
    weight = draw(4, 6)
    weight[1] = weight[0]
    expected = torch.tensor([[.5, .5, 0, 0], [.5, .5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(similarity(weight, 1e6), expected)
    found = fusion_importance(weight, 1e6)
    # 0 log 0 = 0: what the definition leaves undefined.
    expected = [(math.log(.5) * 4 - math.log(.5 + 1e-7) * 2 - math.log(1e-7) * 2) / 4] * 2 + [
        -(math.log(1 + 1e-7) + 3 * math.log(1e-7)) / 4] * 2
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize('weight', [torch.zeros(5, 2, 3, 3), torch.full((5, 4), 0.1)], ids=['zero', 'constant'])
def test_equal_filters(weight):
    matrix, chosen = fusion_matrix(weight, 2, 100.0)
    torch.testing.assert_close(matrix, torch.full((2, 5), 0.2, dtype=torch.float64))
    assert chosen.tolist() == [True, True, False, False, False]
    assert fusion_importance(weight, 100.0).abs().max() < 1e-5


def test_a_single_filter():
    matrix, chosen = fusion_matrix(draw(1, 3), 1, 1.0)
    assert matrix.tolist() == [[1.0]] and chosen.tolist() == [True]
    assert float(fusion_importance(draw(1, 3), 1.0)) == pytest.approx(-math.log(1 + 1e-7))


@pytest.mark.parametrize('bad', [math.nan, math.inf])
@pytest.mark.parametrize('shape', [(1, 2), (4, 2)])
def test_weights_that_are_not_finite(bad, shape):
    weight = draw(*shape)
    weight[0, 1] = bad
    for function in (lambda: fusion_importance(weight, 1.0), lambda: fusion_matrix(weight, 1, 1.0)):
        with pytest.raises(PruningError, match=r'shape \(\d, 2\) holds an infinite value or NaN'):
            function()


@pytest.mark.parametrize('temperature', [0.0, -1.0, math.nan, math.inf])
def test_temperatures_out_of_range(temperature):
    with pytest.raises(PruningError, match='temperature should be a positive number'):
        similarity(draw(3, 2), temperature)


@pytest.mark.parametrize('weight', [torch.tensor(1.0), torch.zeros(0, 3)], ids=['scalar', 'empty'])
def test_no_filters(weight):
    with pytest.raises(PruningError, match='holds no filter'):
        similarity(weight, 1.0)


@pytest.mark.parametrize('keep', [0, -1, 5])
def test_kept_number_out_of_range(keep):
    with pytest.raises(PruningError, match=f'keep should be 1 to 4, the number of filters, but got {keep}'):
        fusion_matrix(draw(4, 2), keep, 1.0)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_other_types_and_gradients(dtype):
    weight = draw(8, 5).to(dtype).requires_grad_()
    found = fusion_importance(weight, 2.0)
    assert found.dtype is torch.float64 and not found.requires_grad
    torch.testing.assert_close(found, plain_importance(weight.detach(), 2.0), rtol=1e-5, atol=0)


def test_the_weight_stays_as_it_is():
    weight = draw(8, 5)
    before = weight.clone()
    fusion_matrix(weight, 3, 2.0)
    assert torch.equal(weight, before)


# ---------------------------------------------------------------- what stays


@pytest.mark.parametrize('keep', [1, 5, 11, 12])
def test_rows_of_the_most_important(keep):
    weight = draw(12, 20, scale=0.2)
    scores = plain_importance(weight, 3.0)
    expected = sorted(scores.topk(keep).indices.tolist())
    matrix, chosen = fusion_matrix(weight, keep, 3.0)
    assert chosen.nonzero()[:, 0].tolist() == expected
    torch.testing.assert_close(matrix, plain_similarity(weight, 3.0)[expected])


def test_ties():
    """At high temperatures all are equally important: those chosen before stay, then the first."""
    weight = draw(6, 4)
    before = torch.tensor([False, False, False, True, False, True])
    for keep, expected in ((1, [3]), (2, [3, 5]), (4, [0, 1, 3, 5])):
        matrix, chosen = fusion_matrix(weight, keep, 1e6, before)
        assert chosen.nonzero()[:, 0].tolist() == expected
        assert torch.equal(matrix, torch.eye(6, dtype=torch.float64)[expected])
    assert fusion_matrix(weight, 4, 1e6)[1].nonzero()[:, 0].tolist() == [0, 1, 2, 3]


def test_a_difference_counts_more_than_the_choice_before():
    weight = draw(12, 20, scale=0.2)
    best = int(plain_importance(weight, 3.0).argmax())
    before = torch.ones(12, dtype=torch.bool)
    before[best] = False
    assert bool(fusion_matrix(weight, 1, 3.0, before)[1][best])


# ---------------------------------------------------------------- temperature


@pytest.mark.parametrize('total', [1, 2, 10, 300, 10 ** 6])
def test_temperature_is_the_formula(total):
    span = 2 * (10000 - 1) * (1 + math.exp(-total)) / (1 - math.exp(-total))
    for step in {0, 1, 2, total // 2, total - 1, total}:
        if 0 <= step <= total:
            expected = span / (1 + math.exp(-step)) + 1 - span / 2
            assert fusion_temperature(step, total) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert fusion_temperature(0, total) == 1
    assert fusion_temperature(total, total) == 10000


def test_temperature_rises():
    curve = [fusion_temperature(step, 40) for step in range(41)]
    assert all(a <= b for a, b in zip(curve, curve[1:])) and curve[1] > 1
    assert fusion_temperature(3, 6, start=2.0, end=2.0) == 2


@pytest.mark.parametrize(('step', 'total'), [(0, 0), (1, 0), (-1, 5), (6, 5), (math.nan, 5), (0, math.nan)])
def test_progress_out_of_range(step, total):
    with pytest.raises(PruningError, match='step should lie in 0 to total'):
        fusion_temperature(step, total)


# ---------------------------------------------------------------- cost


def seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def test_order_of_the_cost():
    """Far from the cubic definition already at 256 filters; benchmarks/dcff.py measures the rest."""
    weight = draw(256, 64)
    fast = min(seconds(lambda: fusion_importance(weight, 1.0)) for _ in range(5))
    slow = seconds(lambda: plain_importance(weight, 1.0))
    assert slow > 10 * fast


@pytest.mark.skipif(not os.access('/proc/self/clear_refs', os.W_OK), reason='Linux tells the peak of memory')
def test_memory():
    """2048 filters in less than 200 MB: three tensors of (C, C) and a share of the filters."""
    weight = torch.randn(2048, 9216)  # 151 MB in double precision
    fusion_importance(weight[:8], 1.0)
    # What malloc keeps from other tests moves single readings.
    assert 60 < statistics.median(extra_memory(lambda: fusion_matrix(weight, 1843, 1.0)) for _ in range(3)) < 200
