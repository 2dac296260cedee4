"""Training steps of classification networks, timed in turn."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from benchmarks.machine import timed


class StepTime(NamedTuple):
    """Processor seconds of a step: median, least, and the median ratio to the dense step of the same round."""

    median: float
    least: float
    to_dense: float


def step_of(model: nn.Module, inputs: Tensor) -> Callable[[], None]:
    """Return a function that does one training step: forward, losses, backward, optimizer.

    Args:
        model: A classification model of OpenMMLab.
        inputs: The images, ``(N, 3, H, W)``.
    """
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    label = torch.zeros(1, dtype=torch.int64, device=inputs.device)
    samples = [DataSample().set_gt_label(label) for _ in inputs]
    model.train()

    def step() -> None:
        optimizer.zero_grad()
        model.parse_losses(model(inputs, samples, mode='loss'))[0].backward()
        optimizer.step()
    return step


def time_in_turn(steps: Mapping[str, Callable[[], None]], count: int) -> dict[str, StepTime]:
    """Time steps of all kinds in turn, after one that is not counted; one kind is ``dense``.

    Compared are steps of the same round: other programs slow all of them alike, but not all rounds.
    """
    spent: dict[str, list[float]] = {kind: [] for kind in steps}
    for number in range(count + 1):
        for kind, step in steps.items():
            cpu = timed(step)[1].cpu
            if number:
                spent[kind].append(cpu)
                print(kind, f'{cpu:.2f}', file=sys.stderr, flush=True)
    return {kind: StepTime(statistics.median(values), min(values), statistics.median(
                value / dense for value, dense in zip(values, spent['dense'], strict=True)))
            for kind, values in spent.items()}
