"""Work on independent tasks in several processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from mmprune_ext.errors import PruningError

# Of a worker process. It is built at the first task: what that raises reaches the first process as the task's error.
_worker: dict[str, Callable[..., Any]] = {}


def in_processes(build: Callable[[], Callable[[Any], Any]], tasks: Sequence[Any],
                 jobs: int) -> Iterator[tuple[Any, Any]]:
    """Yield each task with its result, as they come.

    The processes share the threads of this one. They end with it, however it ends.

    Args:
        build: Called once in each process; returns what works on a task. It is pickled, as tasks and results are.
        tasks: The tasks.
        jobs: How many processes.

    Raises:
        PruningError: If a process was killed; what a task or ``build`` raises is raised here.
    """
    context = multiprocessing.get_context('spawn')  # a fork would inherit threads' locks, and no CUDA
    others = multiprocessing.active_children()
    threads = max(torch.get_num_threads() // jobs, 1)
    executor = ProcessPoolExecutor(jobs, context, _start, (build, threads))
    try:
        futures = {executor.submit(_run, task): task for task in tasks}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise PruningError(f'one of {jobs} processes was killed, maybe for want of memory: give fewer --jobs; the same '
                           'command goes on') from error
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            if process not in others:
                process.terminate()


def _start(build: Callable[[], Callable[[Any], Any]], threads: int) -> None:
    """Prepare a worker process."""
    _worker['build'] = build
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # which the first process answers
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _run(task: Any) -> Any:
    if 'work' not in _worker:
        _worker['work'] = _worker['build']()
    return _worker['work'](task)
