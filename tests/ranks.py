"""Two gloo processes on this machine, as a distributed run has them."""
from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[1]


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def environment(*paths: Path) -> dict[str, str]:
    """Return the variables for processes on one CPU thread each that find modules in these folders, too."""
    return {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '',
            'PYTHONPATH': os.pathsep.join(map(str, (*paths, ROOT)))}


def on_two_ranks(function: Callable[..., Any], folder: Path, *arguments: str | Path) -> list[Any]:
    """Call a function of a test module in two processes that know each other, and return what each of them found.

    Args:
        function: It is imported there by its name; what it returns is saved by torch.
        folder: For what is saved.
        arguments: Given to it as text.
    """
    run = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node=2',
                          f'--master-port={free_port()}', __file__, function.__module__, function.__name__, folder,
                          *arguments], env=environment(), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return [torch.load(folder / f'rank{rank}.pth', weights_only=False) for rank in range(2)]


def main() -> None:
    """Be one of the processes."""
    module, name, folder, *arguments = sys.argv[1:]
    # As pytest makes it known: another distribution has installed a package of this name.
    sys.modules['tests'] = ModuleType('tests')
    sys.modules['tests'].__path__ = [str(ROOT / 'tests')]
    dist.init_process_group('gloo')
    found = getattr(importlib.import_module(module), name)(*arguments)
    torch.save(found, f'{folder}/rank{dist.get_rank()}.pth')
    dist.barrier()
    dist.destroy_process_group()


if __name__ == '__main__':
    main()
