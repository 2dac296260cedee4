"""How a device's numbers are judged: against float64, by what the CPU's own float32 is off.

Two orders of the same sums differ by rounding, and how far that reaches, through 56 layers, a matrix that is nearly
singular, a greedy choice, no fixed tolerance knows. So each computation is done three times: in float64 on the CPU,
which is taken for the truth, in float32 on the CPU, and in float32 on the device. The device may be off by
:data:`FACTOR` times what the CPU is, and by a floor in any case, where the CPU happens to be lucky. That is larger for
gradients: an activation within rounding of 0 has the gradient of a whole step on one side of it, and none on the other.
With other kernels of the same CPU (mkldnn off, ResNet-20, 16 images) gradients were off by up to 5.5e-4 where the usual
ones were off by 1e-6, and losses by 2e-5. A wrong kernel, a tensor that was left behind or a step that was left out is
off by a part of the values themselves. TF32 is off meanwhile: its 10 bits of a mantissa would be all that is seen.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from mmengine.device import utils as device_utils
from torch import Tensor

from benchmarks.gpu.results import FAIL, PASS

FACTOR, FLOOR = 10.0, 1e-4
# By how the names of values begin.
FLOORS = {'gradients': 1e-2, 'scores by gradients': 1e-2, 'scores': 1e-3, 'logarithms': 1e-2, 'solved': 1e-3}
Values = Mapping[str, Tensor]


@contextlib.contextmanager
def computing_on(device: str) -> Iterator[None]:
    """Let what asks mmengine for the device of this machine be told this one, for a block."""
    before = device_utils.DEVICE
    device_utils.DEVICE = device
    try:
        yield
    finally:
        device_utils.DEVICE = before


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Compute products and convolutions of float32 in float32, for a block."""
    flags = [(torch.backends.cuda.matmul, 'allow_tf32'), (torch.backends.cudnn, 'allow_tf32')]
    before = [getattr(*flag) for flag in flags]
    for flag in flags:
        setattr(*flag, False)
    try:
        yield
    finally:
        for flag, value in zip(flags, before):
            setattr(*flag, value)


def synchronize(device: str) -> None:
    """Wait until a device has done what it was told."""
    if device.startswith('cuda'):
        torch.cuda.synchronize()


def timed(run: Callable[[], Any], device: str) -> tuple[Any, float]:
    """Return what a call returns, and its seconds by the clock until the device has done its work."""
    synchronize(device)
    start = time.perf_counter()
    found = run()
    synchronize(device)
    return found, time.perf_counter() - start


def compared(run: Callable[[str, torch.dtype], Values], device: str, times: bool = False) -> dict[str, Any]:
    """Run something three times and judge what the device gives.

    Args:
        run: Takes device and type, and returns values by name.
        device: The device.
        times: Whether to take the time of both in float32; the device runs twice then, once to warm up.

    Returns:
        A result (:meth:`benchmarks.gpu.results.Results.put`), with what was allowed under ``allowed``.
    """
    with exact_float32():
        exact = run('cpu', torch.float64)
        plain, seconds = timed(lambda: run('cpu', torch.float32), 'cpu')
        if times:
            run(device, torch.float32)
        found, device_seconds = timed(lambda: run(device, torch.float32), device)
    result = judged(exact, plain, found)
    if times:
        result['seconds'] = {'cpu': seconds, 'device': device_seconds}
    return result


def judged(exact: Values, plain: Values, found: Values) -> dict[str, Any]:
    """Return a result: each value's error on the device, beside that on the CPU, and whether it may be so."""
    rows, allowed, good = {}, {}, True
    for name, wanted in exact.items():
        error, own = relative(found[name], wanted), relative(plain[name], wanted)
        floor = next((value for start, value in FLOORS.items() if name.startswith(start)), FLOOR)
        allowed[name] = max(FACTOR * own, floor)
        good = good and error <= allowed[name]
        rows[name] = f'{error:.1e} (CPU {own:.1e}, allowed {allowed[name]:.1e})'
    return {'status': PASS if good else FAIL, 'text': 'off from float64 by', 'numbers': rows, 'allowed': allowed}


def relative(found: Tensor, wanted: Tensor) -> float:
    """Return ``|found - wanted| / |wanted|``, infinite where shapes differ or a value is not finite."""
    if found.shape != wanted.shape:
        return math.inf
    found, wanted = (value.detach().cpu().double() for value in (found, wanted))
    size = float(wanted.norm())
    error = float((found - wanted).norm()) / (size or 1.0)
    return error if math.isfinite(error) else math.inf


def other_choices(found: Values, wanted: Values, share: float = 0.5) -> tuple[int, int, float]:
    """Return how two sets of scores choose: channels chosen otherwise, of how many, and how near to a tie these are.

    Args:
        found: Scores ``(C,)`` by unit.
        wanted: Those they should be.
        share: Of the channels of each unit that stays.

    Returns:
        The number, the number of all channels, and how far, at most, the wanted score of one that was chosen
        otherwise is from the border between those that stay and go, as a share of the unit's largest score.
    """
    others, total, farthest = 0, 0, 0.0
    for name, scores in wanted.items():
        keep = max(int(len(scores) * share), 1)
        order = scores.argsort(descending=True, stable=True)
        stay = set(found[name].argsort(descending=True, stable=True)[:keep].tolist())
        differ = sorted(stay ^ set(order[:keep].tolist()))
        border = scores[order[keep - 1:keep + 1]].mean()
        for channel in differ:
            farthest = max(farthest, float((scores[channel] - border).abs() / scores.abs().max()))
        others, total = others + len(differ) // 2, total + len(scores)
    return others, total, farthest
