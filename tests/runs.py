"""Training a config inside the test process, and comparing the weights of runs."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner


def train(config: Config, *hooks: Hook) -> Runner:
    """Train by mmengine's own Runner while hooks of the test look on, and return it."""
    runner = Runner.from_cfg(config)
    for hook in hooks:
        runner.register_hook(hook)
    runner.train()
    return runner


class StopAt(Hook):
    """End a run before an epoch or an iteration, as a signal would."""

    def __init__(self, epoch: int | None = None, iteration: int | None = None) -> None:
        self.epoch, self.iteration = epoch, iteration

    def before_train_epoch(self, runner: Runner) -> None:
        if runner.epoch == self.epoch:
            raise KeyboardInterrupt

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if runner.iter == self.iteration:
            raise KeyboardInterrupt


def state(path: Path) -> dict[str, Any]:
    """Return the state dict of a checkpoint, on the CPU."""
    return torch.load(path, map_location='cpu', weights_only=False)['state_dict']


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Return the names under which two state dicts of the same names hold different values."""
    assert first.keys() == second.keys()
    return [key for key in first if not torch.equal(first[key], second[key])]
