"""Two processes repair as one does."""
from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmprune_ext.repair import RepairReport, repair_least_squares
from tests.ranks import on_two_ranks
from tests.test_repair.test_least_squares import images, networks

IMAGES = 21


def repaired(rank: int, ranks: int) -> tuple[dict[str, Tensor], RepairReport]:
    """Return the weights that a process repairs on its share of the images, and the report."""
    torch.manual_seed(0)
    dense, pruned, units = networks(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False),
                                                  nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)), seed=2)
    report = repair_least_squares(pruned, dense, units, images(IMAGES)[rank::ranks].split(4), IMAGES, quiet=True)
    return pruned.state_dict(), report


def repaired_on_rank() -> tuple[dict[str, Tensor], RepairReport]:
    return repaired(dist.get_rank(), 2)


@pytest.mark.e2e
def test_two_processes_repair_as_one(tmp_path):
    ranks = on_two_ranks(repaired_on_rank, tmp_path)
    weights, alone = repaired(0, 1)
    for state, report in ranks:
        assert report.num_images == alone.num_images == IMAGES
        assert list(report.layers) == list(alone.layers)
        for name, value in state.items():
            assert torch.equal(value, ranks[0][0][name]), name
            torch.testing.assert_close(value, weights[name], rtol=1e-8, atol=1e-10)
