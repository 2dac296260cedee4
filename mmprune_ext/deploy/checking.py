"""Comparing what was exported with the model in PyTorch: outputs, sizes, time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mmprune_ext.deploy.runtimes import Runtime
from mmprune_ext.errors import PruningError
from mmprune_ext.units.demo_inputs import failure_of

TOLERANCE = 1e-4


def shapes_to_check(shape: Sequence[int], dynamic: Sequence[str], divisor: int) -> list[tuple[int, ...]]:
    """Return the shapes of inputs to compare outputs on: the exported one, and others where it is dynamic."""
    number, channels, height, width = shape
    step = int(np.lcm(divisor, 32))
    sizes = [(height, width), (height + step, width + 2 * step)] if 'size' in dynamic else [(height, width)]
    numbers = dict.fromkeys([number, 1, 3]) if 'batch' in dynamic else [number]
    return [(count, channels, *size) for size in sizes for count in numbers]


def check_shapes(module: nn.Module, shapes: Sequence[Sequence[int]]) -> None:
    """Check that a model runs in PyTorch on inputs of these shapes: what is fixed in it cannot be dynamic elsewhere.

    Raises:
        PruningError: If it does not, naming the shape.
    """
    for shape in shapes:
        try:
            with torch.no_grad():
                module(torch.randn(*shape))
        except Exception as error:  # the user's model, which may fail in any way
            fixed = ('; its size is fixed: leave it out of --dynamic' if tuple(shape[2:]) != tuple(shapes[0][2:])
                     else '; its batch is fixed: leave it out of --dynamic' if shape[0] != shapes[0][0] else '')
            raise PruningError(f'the model does not run on images {"x".join(map(str, shape))}, in PyTorch either: '
                               f'{failure_of(module, error)}{fixed}') from error


def compare_outputs(module: nn.Module, runtime: Runtime, shapes: Sequence[Sequence[int]],
                    names: Sequence[str]) -> list[dict[str, Any]]:
    """Return how far the outputs of a runtime are from those of PyTorch, on noise of each shape.

    Distance is the largest difference of an output, as a share of its largest value.

    Raises:
        PruningError: If an output is not within :data:`TOLERANCE`, of another shape, or not there.
    """
    found = []
    for shape in shapes:
        images = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            wanted = [value.numpy() for value in module(images)]
        where = f'images {"x".join(map(str, shape))}'
        try:
            got = runtime(images.numpy())
        except Exception as error:  # each runtime has errors of its own
            text = ' '.join(str(error).split())[:240]
            raise PruningError(f'the exported model does not run on {where}: {type(error).__name__}: {text}') from error
        if len(got) != len(wanted):
            raise PruningError(f'the exported model is not the model in PyTorch: it has {len(got)} outputs and not '
                               f'{len(wanted)}; nothing was written')
        worst = max((_distance(*pair), name) for *pair, name in zip(wanted, got, names))
        if not worst[0] <= TOLERANCE:
            raise PruningError(f'the exported model is not the model in PyTorch: on {where} output {worst[1]} differs '
                               f'by {worst[0]:.1e} of its largest value (at most {TOLERANCE:.0e} is rounding); nothing '
                               'was written')
        found.append({'shape': list(shape), 'difference': worst[0], 'output': worst[1]})
    return found


def _distance(wanted: np.ndarray, got: np.ndarray) -> float:
    if wanted.shape != got.shape or not np.isfinite(got).all():
        return np.inf
    return float(np.abs(wanted - got).max() / max(np.abs(wanted).max(), 1e-12)) if wanted.size else 0.


def compare_times(module: nn.Module, runtime: Runtime, shape: Sequence[int], repeats: int = 15,
                  warmup: int = 3) -> dict[str, Any]:
    """Return the median milliseconds of a pass in PyTorch and in a runtime, measured in turn."""
    images = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    array = images.numpy()
    calls: list[Callable[[], Any]] = [lambda: module(images), lambda: runtime(array)]
    times = np.zeros((2, repeats))
    with torch.no_grad():
        for turn in range(-warmup, repeats):
            for place in ((0, 1) if turn % 2 else (1, 0)):
                start = time.perf_counter()
                calls[place]()
                if turn >= 0:
                    times[place, turn] = (time.perf_counter() - start) * 1e3
    pytorch, other = np.median(times, 1)
    return {'shape': list(shape), 'threads': torch.get_num_threads(), 'repeats': repeats, 'torch_ms': float(pytorch),
            'runtime_ms': float(other), 'speedup': float(np.median(times[0] / times[1]))}


def file_sizes(files: Sequence[Path], module: nn.Module) -> dict[str, int]:
    """Return the bytes of the files of a model, and of its weights in memory."""
    return {'file_bytes': sum(file.stat().st_size for file in files),
            'weight_bytes': sum(value.nbytes for value in (*module.parameters(), *module.buffers()))}
