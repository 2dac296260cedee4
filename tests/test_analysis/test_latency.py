"""Latency: what is measured, in which order, and that nothing stays changed."""
import importlib
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmprune_ext.analysis import compare_latency, latency
from mmprune_ext.errors import PruningError

now = 0.0


@pytest.fixture(autouse=True)
def clock(monkeypatch) -> None:
    """Replace the clock by one that only :class:`Sleeper` moves: the machine may be busy."""
    module = importlib.import_module('mmprune_ext.analysis.latency')
    monkeypatch.setattr(module, 'time', SimpleNamespace(perf_counter=lambda: now))


class Sleeper(nn.Module):
    """Takes a known time and notes each call."""

    def __init__(self, name: str, seconds: float, calls: list) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)
        self.norm = nn.BatchNorm2d(2)
        self.name, self.seconds, self.calls = name, seconds, calls

    def forward(self, x):
        self.calls.append((self.name, tuple(x.shape), torch.is_grad_enabled(),
                           self.norm.training, torch.get_num_threads()))
        global now
        now += self.seconds * (1 + 0.1 * (len(self.calls) % 3))
        return self.norm(self.conv(x))


def test_times_and_settings():
    calls = []
    result = latency(Sleeper('a', 0.004, calls), (3, 8, 8), batch_size=2, repeats=5, warmup=2)
    assert calls == [('a', (2, 3, 8, 8), False, False, torch.get_num_threads())] * 7
    # Calls 3 to 7 take 4.0, 4.4, 4.8, 4.0, 4.4 ms.
    assert result.median_ms == pytest.approx(4.4)
    assert result.p10 == pytest.approx(4.0) and result.p90 == pytest.approx(4.64)
    assert result.to_dict() == {
        'median_ms': result.median_ms, 'p10': result.p10, 'p90': result.p90, 'batch_size': 2,
        'input_shape': (3, 8, 8), 'repeats': 5, 'warmup': 2,
        'threads': torch.get_num_threads(), 'device': 'cpu', 'proposals': None}


def test_comparison_alternates_and_finds_the_faster():
    calls = []
    pair = compare_latency(Sleeper('dense', 0.006, calls), Sleeper('compact', 0.002, calls),
                           (3, 8, 8), repeats=4, warmup=1)
    order = [call[0] for call in calls]
    assert len(order) == 10
    assert all({order[i], order[i + 1]} == {'dense', 'compact'} for i in range(0, 10, 2))
    assert order[2] != order[4]  # neither is always the first
    assert 6 <= pair.dense.median_ms <= 7.2 and 2 <= pair.compact.median_ms <= 2.4
    assert 2.5 <= pair.speedup <= 3.6
    assert pair.to_dict()['dense'] == pair.dense.to_dict()


def test_threads_are_set_and_restored():
    calls, before = [], torch.get_num_threads()
    result = latency(Sleeper('a', 0, calls), (8, 8), repeats=1, warmup=0, threads=before + 1)
    assert calls[0][4] == result.threads == before + 1
    assert torch.get_num_threads() == before


def test_model_stays_as_it_was():
    model = Sleeper('a', 0, [])
    state = {key: value.clone() for key, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    latency(model, (8, 8), repeats=2)
    assert model.training and model.norm.training
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_demo_pass_of_the_users_own():
    calls = []
    result = latency(Sleeper('a', 0, calls), lambda m: m(torch.ones(1, 3, 2, 5)), repeats=1,
                     warmup=0)
    assert calls[0][1] == (1, 3, 2, 5) and result.input_shape is None


@pytest.mark.parametrize(('arguments', 'message'), [
    ({'repeats': 0}, 'repeats should be an integer of at least 1, but got 0'),
    ({'batch_size': -1}, 'batch_size should be an integer of at least 1, but got -1'),
    ({'warmup': -1}, 'warmup should be an integer of at least 0, but got -1'),
    ({'threads': 0}, 'threads should be an integer of at least 1, but got 0'),
    ({'repeats': 2.5}, 'repeats should be an integer of at least 1, but got 2.5')])
def test_wrong_arguments(arguments, message):
    with pytest.raises(PruningError, match=message):
        latency(nn.Conv2d(3, 2, 1), (8, 8), **arguments)


def test_model_that_does_not_run():
    before = torch.get_num_threads()
    with pytest.raises(PruningError, match=r'Sleeper does not run on an input of shape \(5, 8, 8\)'):
        latency(Sleeper('a', 0, []), (5, 8, 8), threads=before + 1)
    assert torch.get_num_threads() == before
