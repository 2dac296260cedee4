"""Time of a forward pass, measured."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from mmprune_ext.analysis.passes import InferencePass, inference_pass
from mmprune_ext.analysis.preserve import untouched
from mmprune_ext.errors import PruningError
from mmprune_ext.units.demo_inputs import DemoInputs, Forward


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one forward pass in eval mode, over repeated runs.

    Attributes:
        median_ms: Median.
        p10: 10th percentile in milliseconds.
        p90: 90th percentile in milliseconds.
        batch_size: Samples per pass.
        input_shape: Shape of one sample, ``None`` for a demo pass of the user's own.
        repeats: Timed passes.
        warmup: Passes before, not timed.
        threads: CPU threads of torch.
        device: Where the model's parameters were, ``cpu`` or ``cuda:0``.
        proposals: Proposals an image of a two-stage detector, else ``None``.
    """

    median_ms: float
    p10: float
    p90: float
    batch_size: int
    input_shape: tuple[int, ...] | None
    repeats: int
    warmup: int
    threads: int
    device: str
    proposals: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class LatencyComparison:
    """Latency of two models whose runs alternated.

    Attributes:
        dense: Latency of the first model.
        compact: Latency of the second.
        speedup: Median of dense time over compact time of neighbouring runs, above 1 where the
            compact model is faster.
    """

    dense: Latency
    compact: Latency
    speedup: float

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain values for JSON."""
        return asdict(self)


def latency(model: nn.Module, input_shape: DemoInputs = None,
            batch_size: int = 1, repeats: int = 30, warmup: int = 5,
            threads: int | None = None) -> Latency:
    """Return the time of a forward pass of a model, which stays as it was.

    The pass is the one that :func:`mmprune_ext.analysis.complexity` counts, on the same noise.

    Args:
        model: Any module, on the device that counts.
        input_shape: As of :func:`mmprune_ext.analysis.complexity`; ``batch_size`` has no meaning
            for a demo pass of the user's own.
        batch_size: Samples per pass.
        repeats: Timed passes, at least 1.
        warmup: Passes before, not timed.
        threads: CPU threads while measuring; the present number by default.

    Raises:
        PruningError: If a number is out of range or the model does not run on the input.
    """
    times, measured, used = _measure([model], input_shape, batch_size, repeats, warmup, threads)
    return _summary(model, times[0], measured, batch_size, warmup, used)


def compare_latency(dense: nn.Module, compact: nn.Module,
                    input_shape: DemoInputs = None, batch_size: int = 1,
                    repeats: int = 30, warmup: int = 5, threads: int | None = None,
                    ) -> LatencyComparison:
    """Return the times of two models measured in turn, so that both see the same machine load.

    The arguments and errors are those of :func:`latency`.
    """
    times, measured, used = _measure([dense, compact], input_shape, batch_size, repeats, warmup,
                                  threads)
    return LatencyComparison(
        _summary(dense, times[0], measured, batch_size, warmup, used),
        _summary(compact, times[1], measured, batch_size, warmup, used),
        float(np.median(times[0] / times[1])))


def _measure(models: Sequence[nn.Module], input_shape: DemoInputs, batch_size: int, repeats: int,
             warmup: int, threads: int | None) -> tuple[np.ndarray, InferencePass, int]:
    """Return milliseconds ``(models, repeats)``, the pass and the thread number."""
    _check(batch_size=batch_size, repeats=repeats, warmup=warmup + 1,
           threads=1 if threads is None else threads)
    times = np.zeros((len(models), repeats))
    with untouched(*models), _threads(threads):
        passes = [inference_pass(m, input_shape, batch_size) for m in models]
        for turn in range(-warmup, repeats):
            # The order alternates too: the second of a pair may find a warmer processor.
            order = range(len(models)) if turn % 2 == 0 else reversed(range(len(models)))
            for i in order:
                elapsed = _time(passes[i].run, models[i])
                if turn >= 0:
                    times[i, turn] = elapsed
        used = torch.get_num_threads()
    return times, passes[0], used


def _check(**numbers: int) -> None:
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            least = 0 if name == 'warmup' else 1
            raise PruningError(f'latency: {name} should be an integer of at least {least}, but got '
                               f'{value - 1 if name == "warmup" else value!r}')


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device('cpu'))


def _time(forward: Forward, model: nn.Module) -> float:
    """Return the milliseconds of one pass, including the work that a GPU does after the call."""
    on_gpu = _device(model).type == 'cuda'
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    forward(model)
    if on_gpu:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3


def _summary(model: nn.Module, times: np.ndarray, measured: InferencePass, batch_size: int,
             warmup: int, threads: int) -> Latency:
    p10, median, p90 = (float(v) for v in np.percentile(times, [10, 50, 90]))
    return Latency(median, p10, p90, batch_size, measured.shape, len(times), warmup, threads,
                   str(_device(model)), measured.regions.proposals if measured.regions else None)
