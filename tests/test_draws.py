"""The states of the random number generators: taken, compared, put back."""
import random

import numpy as np
import pytest
import torch

from mmprune_ext.draws import Draws, preserved_random_state

DRAW = {'python': random.random, 'numpy': np.random.rand, 'torch': lambda: float(torch.rand(()))}


@pytest.mark.parametrize('name', DRAW)
def test_what_is_put_back_draws_the_same_again(name):
    before = Draws.now()
    first = [DRAW[name]() for _ in range(3)]
    assert Draws.now() != before
    before.put_back()
    assert Draws.now() == before
    assert [DRAW[name]() for _ in range(3)] == first


@pytest.mark.parametrize('name', DRAW)
def test_a_block_leaves_no_trace_even_if_it_fails(name):
    before = Draws.now()
    with pytest.raises(ZeroDivisionError), preserved_random_state():
        torch.manual_seed(5)
        DRAW[name]()
        raise ZeroDivisionError
    assert Draws.now() == before


def test_odd_draws_of_normal_numbers_are_put_back_whole():
    """Both generators make two normal numbers at once and keep the second."""
    before = Draws.now()
    np.random.randn(), random.gauss(0, 1)
    between = Draws.now()
    second = np.random.randn(), random.gauss(0, 1)
    between.put_back()
    assert (np.random.randn(), random.gauss(0, 1)) == second
    before.put_back()
