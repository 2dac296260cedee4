"""The L1 norm of filters."""
import numpy as np
import pytest
import torch

from mmprune_ext.errors import PruningError
from mmprune_ext.scores import l1_norm


def loops(weight: np.ndarray) -> list[float]:
    """The formula in plain loops, output channels first."""
    return [sum(abs(float(v)) for v in row.reshape(-1)) for row in weight]


@pytest.mark.parametrize('shape', [(4, 3, 3, 3), (5, 7), (6,), (2, 1, 5)])
def test_agrees_with_plain_loops(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert l1_norm(weight).tolist() == pytest.approx(loops(weight.numpy()), rel=1e-12)


def test_transposed_convolution_has_its_channels_in_dimension_1():
    layer = torch.nn.ConvTranspose2d(3, 5, 2)
    scores = l1_norm(layer.weight, dim=1)
    assert scores.tolist() == pytest.approx(loops(layer.weight.detach().numpy().swapaxes(0, 1)))
    assert not scores.requires_grad


def test_ranks_as_the_paper_does():
    weight = torch.stack([torch.full((2, 3, 3), v) for v in (0.5, -2.0, 0.0, 1.0)])
    assert l1_norm(weight).tolist() == [9.0, 36.0, 0.0, 18.0]


def test_accumulates_in_double_precision():
    # In float16 the sum overflows at 65504; in float32 the ones vanish beside 2 ** 24.
    half = torch.full((1, 1024), 100.0, dtype=torch.float16)
    assert l1_norm(half).tolist() == [102400.0]
    mixed = torch.cat([torch.full((1, 1), 2.0 ** 24), torch.ones(1, 101)], 1)
    assert l1_norm(mixed).tolist() == [2.0 ** 24 + 101]
    assert l1_norm(mixed).dtype == torch.float64


def test_input_is_not_changed():
    weight = torch.tensor([[-1.0, 2.0]])
    l1_norm(weight)
    assert weight.tolist() == [[-1.0, 2.0]]


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_values_that_are_not_finite_are_named(value):
    weight = torch.ones(3, 2, 1, 1)
    weight[2, 1] = value
    with pytest.raises(PruningError, match=r'output channel 2 of a weight of shape \(3, 2, 1, 1\)'):
        l1_norm(weight)


def test_wrong_dimension():
    with pytest.raises(PruningError, match='has no dimension 2'):
        l1_norm(torch.ones(2, 2), dim=2)
