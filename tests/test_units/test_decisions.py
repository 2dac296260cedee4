"""Discrete decisions of one run are replayed in another run of a like model."""

import pytest
import torch
from torch.nn import functional as F

from mmprune_ext.units.checking.decisions import Decisions


class Overlapping(torch.autograd.Function):
    """Stands for a compiled operator that gives the numbers of boxes: as many as it likes."""

    @staticmethod
    def forward(ctx, scores, threshold):
        return torch.tensor([i for i, score in enumerate(scores.tolist()) if score > threshold])


def replayed(first, second, run):
    """Return what ``run`` gives of the second input with the decisions that it takes of the first."""
    decisions = Decisions()
    with decisions.recorded():
        run(first)
    with decisions.replayed():
        return run(second)


def test_order():
    """The second input's values, in the first one's order, where they differ by rounding only."""
    values, order = replayed(torch.tensor([1.0, 3.0001, 3.0]), torch.tensor([1.0, 3.0, 3.0001]),
                             lambda x: x.sort(descending=True))
    assert order.tolist() == [1, 2, 0]
    assert values.tolist() == torch.tensor([3.0001, 3.0, 1.0]).tolist()


@pytest.mark.parametrize('run', [lambda x: x.argmax(), lambda x: x.topk(1).indices[0], lambda x: x.sort()[1][-1],
                                 lambda x: (x > 2.5).nonzero()[0, 0], lambda x: Overlapping.apply(x, 2.5)[0]],
                         ids=['argmax', 'topk', 'sort', 'mask', 'function'])
def test_from_other_numbers(run):
    """What the second run would decide from other numbers is its own decision."""
    first = torch.tensor([1.0, 3.0, 2.0])
    assert replayed(first, torch.tensor([1.0, 2.0, 3.0]), run) == 2
    assert replayed(first, torch.tensor([float('nan'), 2.0, 3.0]).nan_to_num(4.0), run) == run(
        torch.tensor([4.0, 2.0, 3.0]))


def test_behind_a_function():
    """What is compared to find out whether a function's decision is the same, is no decision itself."""
    first = torch.tensor([1.0, 3.0001, 3.0])
    chosen, order = replayed(first, first[[0, 2, 1]],
                             lambda x: (Overlapping.apply(x, 2.5), x.sort(descending=True).indices))
    assert chosen.tolist() == [1, 2] and order.tolist() == [1, 2, 0]


def test_infinite_numbers():
    """What is masked out before a decision is the same in both."""
    masked = torch.tensor([-torch.inf, 3.0001, 3.0])
    assert replayed(masked, masked[[0, 2, 1]], torch.argmax) == 1
    assert replayed(masked, torch.tensor([3.0, 3.0001, -torch.inf]), lambda x: (x == -torch.inf).int().argmax()) == 2


def test_after_a_pooling_over_fewer_channels():
    """The pooling's indices differ in shape; what is decided after it is replayed all the same."""
    def run(x):
        pooled = F.max_pool2d(x, 2)
        return pooled, pooled.amax((0, 1, 3)).argmax()
    dense = torch.zeros(1, 4, 4, 4)
    dense[:, :, 1] = 1
    dense[:, :, 3] = 1.0001
    slim = torch.zeros(1, 2, 4, 4)
    slim[:, :, 0] = 1.0001
    slim[:, :, 2] = 1
    pooled, place = replayed(dense, slim, run)
    assert place == 1
    assert pooled.shape == (1, 2, 2, 2)


def test_comparison_over_fewer_channels():
    """Its shape is the model's, not a decision."""
    mask = replayed(torch.ones(1, 4, 3), -torch.ones(1, 2, 3), lambda x: x > 0)
    assert mask.shape == (1, 2, 3)
    assert not mask.any()


def test_another_number_is_a_decision():
    first, second = torch.tensor([0.9, 0.4999, 0.8]), torch.tensor([0.9, 0.5001, 0.8])
    assert replayed(first, second, lambda x: Overlapping.apply(x, 0.5)).tolist() == [0, 2]
    assert replayed(first, second, lambda x: (x > 0.5).nonzero()).tolist() == [[0], [2]]


def test_runs_that_part():
    """From an operator of another name on, the second run decides by itself."""
    def run(x):
        first = x.argmax() if len(x) == 3 else x.argmin()
        return int(first), int(x[:3].argmax())
    assert replayed(torch.tensor([1.0, 3.0001, 3.0]), torch.tensor([1.0, 3.0, 3.0001, 0.0]), run) == (3, 2)
