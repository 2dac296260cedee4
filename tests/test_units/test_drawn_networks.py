"""Networks that nobody thought of: slimmed, they compute what they do with the removed channels silenced."""
from __future__ import annotations

import copy
import os
import re

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, event, given, note, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mmprune_ext.units import Reason, UnitSet, slim, trace_units
from tests.test_units.drawn_base import SHAPE, Drawn
from tests.test_units.drawn_networks import networks
from tests.test_units.reference import assert_close, choose, outputs_of, silenced

# More than the 20 of each run (CONTRIBUTING.md) are others each time, or those of --hypothesis-seed.
MANY = os.environ.get('MMPRUNE_DRAWN')
NUMBER = int(MANY or 20)
TOLERANCE = 1e-9  # in double precision
FOUND_BY_EXECUTION = (Reason.FIXED_SIZE, Reason.VALUES)


def inputs(samples: int, seed: int) -> Tensor:
    return torch.randn(samples, *SHAPE, generator=torch.Generator().manual_seed(seed))


def run(net: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(5)
        return outputs_of(net(x))


def compare(dense: nn.Module, units: UnitSet, x: Tensor) -> None:
    reference, slimmed = silenced(dense, units), slim(copy.deepcopy(dense), units)
    assert_close(run(slimmed, x), run(reference, x), TOLERANCE)


@pytest.mark.timeout(600 + 5 * NUMBER)  # a failing network is made smaller for at most five minutes
@settings(max_examples=NUMBER, derandomize=MANY is None, deadline=None, database=None, report_multiple_bugs=False,
          suppress_health_check=list(HealthCheck))
@given(networks(), st.integers(0, 2 ** 16))
def test_slimmed_equals_silenced_or_refused(network: Drawn, seed: int) -> None:
    """Of all units together, and of some alone."""
    note(network.source())
    dense = network.build()
    units = trace_units(dense, inputs(1, 0), 'all')
    dense, x = dense.double(), inputs(3, seed).double()
    assume(all(bool(out.isfinite().all()) for out in run(dense, x)))
    for unit in units.values():
        assert unit.prunable or unit.reason is not None
        if unit.reason in FOUND_BY_EXECUTION:
            event(f'{unit.reason.name}: {re.sub("[0-9]+", "N", unit.detail)}')
    assert units.coverage.unexplained == 0
    together = units.copy()
    choose(together, seed)
    compare(dense, together, x)
    names = list(units.prunable)
    for name in np.random.default_rng(seed).permutation(names)[:2]:
        alone = units.copy()
        alone[name].choose(together[name].indices)
        compare(dense, alone, x)
