"""Pictures of gates: drawn for any number of records, and different where the gates are."""
from __future__ import annotations

import mmcv
import pytest

from mmprune_ext.analysis.gate_plots import BINS, GateRecord, gates_png


def record(time: int, place: int) -> GateRecord:
    histogram = [0] * BINS
    histogram[place] = 40
    return GateRecord(time, histogram, {'crisp': 0.5, 'learned': 0.4, 'soft_flops': 0.4, 'hard_flops': 0.39,
                                        'soft_params': 0.3, 'hard_params': 0.29})


@pytest.mark.parametrize('times', [[1], [1, 2], [5, 10, 12], list(range(1, 101))], ids=len)
def test_draws(times):
    image = mmcv.imfrombytes(gates_png([record(time, i % BINS) for i, time in enumerate(times)],
                                       {'flops': 0.4, 'params': 0.3}))
    assert image.shape == (420, 1100, 3) and image.std() > 20


def test_shows_where_gates_are():
    """All gates are in one bin: dark in its row, pale elsewhere."""
    for place in (0, 19):
        image = mmcv.imfrombytes(gates_png([record(1, place)], {'flops': 0.4}), flag='grayscale')
        left = image[30:370, 100:450].mean(1)
        rows = left < 120
        share = rows.nonzero()[0].mean() / len(rows)
        assert share > 0.9 if place == 0 else share < 0.1
