"""Two processes repair as one does."""
from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mmprune_ext.repair import repair_least_squares
from tests.test_repair.test_least_squares import images, networks

ROOT = Path(__file__).resolve().parents[2]
RANK = """
import sys
import torch
import torch.distributed as dist
from mmprune_ext.repair import repair_least_squares

dist.init_process_group('gloo')
dense, pruned, units, x = torch.load(f'{sys.argv[1]}/networks.pth', weights_only=False)
loader = x[dist.get_rank()::2].split(4)
report = repair_least_squares(pruned, dense, units, loader, len(x), quiet=True)
torch.save((pruned.state_dict(), report.num_images, report.layers), f'{sys.argv[1]}/rank{dist.get_rank()}.pth')
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.e2e
def test_two_processes_repair_as_one(tmp_path):
    torch.manual_seed(0)
    dense, pruned, units = networks(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False),
                                                  nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)), seed=2)
    torch.save((dense, pruned, units, images(21)), tmp_path / 'networks.pth')
    (tmp_path / 'rank.py').write_text(RANK)
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'PYTHONPATH': str(ROOT)}
    run = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2', f'--master_port={port}',
                          tmp_path / 'rank.py', tmp_path], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    alone = repair_least_squares(pruned, dense, units, images(21).split(4), 21, quiet=True)
    ranks = [torch.load(tmp_path / f'rank{rank}.pth', weights_only=False) for rank in range(2)]
    for state, count, layers in ranks:
        assert count == alone.num_images == 21
        assert list(layers) == list(alone.layers)
        for name, value in state.items():
            assert torch.equal(value, ranks[0][0][name]), name
            torch.testing.assert_close(value, pruned.state_dict()[name], rtol=1e-8, atol=1e-10)
