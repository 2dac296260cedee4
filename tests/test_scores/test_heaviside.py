"""ChipNet's functions against their formulas, channel by channel (arXiv 2102.07156)."""
from __future__ import annotations

import math

import pytest
import torch

from mmprune_ext.errors import ConfigError
from mmprune_ext.scores import heaviside as h

PSI = [-7.0, -1.5, -0.2, 0.0, 0.004, 0.9, 3.0, 12.0]
SHARPNESS = [(1.0, 2.0), (1.4, 45.25), (6.0, 256.0)]


def gate_of(psi: float, beta: float, gamma: float) -> tuple[float, float]:
    relaxed = 1 / (1 + math.exp(-beta * psi))
    return relaxed, 1 - math.exp(-gamma * relaxed) + relaxed * math.exp(-gamma)


@pytest.mark.parametrize(('beta', 'gamma'), SHARPNESS)
def test_gates_and_losses_are_the_formulas(beta, gamma):
    psi = torch.tensor(PSI, dtype=torch.float64)
    relaxed = h.logistic(psi, beta)
    gates = h.heaviside(relaxed, gamma)
    want = [gate_of(value, beta, gamma) for value in PSI]
    assert relaxed.tolist() == pytest.approx([r for r, _ in want], rel=1e-12)
    assert gates.tolist() == pytest.approx([z for _, z in want], rel=1e-12)
    crispness = sum((z - r) ** 2 for r, z in want) / len(want)
    assert float(h.crispness_loss(relaxed, gates)) == pytest.approx(crispness, rel=1e-12)
    counts = h.soft_count(gates, 20.0).tolist()
    assert counts == pytest.approx([1 / (1 + math.exp(-20 * (z - 0.5))) for _, z in want], rel=1e-12)


def test_ends_are_exact():
    """Of an infinite psi the gate is 1, so that what is not gated passes as it is."""
    psi = torch.tensor([math.inf, -math.inf], requires_grad=True)
    gates = h.heaviside(h.logistic(psi, 1.3), 7.0)
    assert gates.tolist() == [1.0, 0.0]
    gates.sum().backward()
    assert psi.grad.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(('beta', 'gamma'), SHARPNESS)
@pytest.mark.parametrize('what', ['gates', 'crispness', 'counts'])
def test_gradients(what, beta, gamma):
    def function(psi):
        relaxed = h.logistic(psi, beta)
        gates = h.heaviside(relaxed, gamma)
        results = {'gates': gates, 'crispness': h.crispness_loss(relaxed, gates), 'counts': h.soft_count(gates, 10.0)}
        return results[what]
    psi = torch.tensor([-2.0, -0.7, 0.01, 0.6], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (psi,))


def test_crisp_share():
    assert h.crisp_share(torch.tensor([0.0, 0.049, 0.051, 0.5, 0.949, 0.951, 1.0, 1.0])) == pytest.approx(5 / 8)


@pytest.mark.parametrize('epoch', [0, 1, 2, 7, 14, 20, 100, 400, 100_000])
def test_schedule_is_that_of_the_paper(epoch):
    """Step by step as published: once an epoch beta += 0.1 / 5, gamma *= 2 ** (1 / 2), steepness += 5."""
    beta, gamma, steepness = 1.0, 2.0, 10.0
    for _ in range(min(epoch, 1000)):
        beta, gamma, steepness = min(6.0, beta + 0.1 / 5), min(256.0, gamma * 2 ** 0.5), min(60.0, steepness + 5)
    assert h.GateSchedule().at(epoch) == pytest.approx((beta, gamma, steepness), rel=1e-9)


def test_settling():
    """In the first two thirds of the last 30%; of any search the end is decided, and with no share nothing."""
    assert [h.settling(i, 20, 0.3) for i in range(12, 20)] == pytest.approx([0, 0, 0.25, 0.5, 0.75, 1, 1, 1])
    for total in range(1, 40):
        course = [h.settling(i, total, 0.1) for i in range(total)]
        assert course[-1] == 1 and course == sorted(course)
        assert sum(value > 0 for value in course) == max(round(0.1 * total), 1)
    assert h.settling(19, 20, 0.0) == 0


@pytest.mark.parametrize('settings', [{'beta': (0, 1, 2)}, {'gamma': (2.0, 2.0)}, {'steepness': 'steep'},
                                      {'gamma': (2, math.inf, 256)}])
def test_malformed_schedule(settings):
    with pytest.raises(ConfigError, match=f'schedule: {next(iter(settings))} should be three positive numbers'):
        h.GateSchedule(**settings)
