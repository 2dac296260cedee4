"""Re-estimate batch normalisation statistics after channels were removed."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from mmengine.dist import all_reduce, broadcast
from mmengine.logging import print_log
from rich.progress import track
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmprune_ext.units.demo_inputs import set_training


def reestimate_batch_norm(model: nn.Module, dataloader: Iterable[Any], num_batches: int, quiet: bool = False) -> int:
    """Replace all running statistics by the average over training batches, of all processes.

    Removing channels shifts the distribution of every later activation; without new statistics a
    pruned network looks far worse than its weights are.

    Args:
        model: An OpenMMLab model; only its batch statistics change.
        dataloader: The training data.
        num_batches: How many batches each process averages over.
        quiet: Neither show progress nor log, as one of many steps of something else.

    Returns:
        The number of batches used, 0 if the model has no such layer.
    """
    norms = batch_norms(model)
    if not norms or num_batches <= 0:
        return 0
    flags = {module: module.training for module in model.modules()}
    momenta = {norm: norm.momentum for norm in norms}
    set_training(model, False)
    used = 0
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # cumulative average
            norm.training = True
        with torch.no_grad():
            for batch in track(islice(dataloader, num_batches), 'batch statistics',
                               total=num_batches, transient=True, disable=quiet):
                data = model.data_preprocessor(batch, True)
                model(**data, mode='loss')
                used += 1
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        for module, flag in flags.items():
            module.training = flag
    for norm in norms:
        for values in (norm.running_mean, norm.running_var):
            all_reduce(values, 'mean')
            broadcast(values)  # to the last bit
    if not quiet:
        print_log(f'batch statistics re-estimated on {used} training batches', logger='current')
    return used


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """Return the layers of a model that keep batch statistics."""
    return [module for module in model.modules()
            if isinstance(module, _BatchNorm) and module.track_running_stats]
