"""How a config trains: its optimizer, its learning rate, the length and the schedule of its run."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.registry import OPTIMIZERS, PARAM_SCHEDULERS

from mmprune_ext.analysis.report import Training

# What a config that was written with a fitted schedule says about it.
RECORD = 'finetune'
# Iterations of an epoch, for schedules that are converted to iterations; their first value does not depend on it.
_ANY_EPOCH = 1000


def training_of(config: Mapping[str, Any], source: str) -> Training | None:
    """Return how a config trains from its first iteration on, ``None`` if it does not say so.

    Args:
        config: The config.
        source: Where its schedule is from, such as ``'the dense model'``.
    """
    optimizer, length = optimizer_of(config), length_of(config)
    rate = learning_rate(config)
    if optimizer is None or length is None or rate is None:
        return None
    record = config.get(RECORD) or {}
    schedulers = schedulers_of(config)
    return Training(
        optimizer=name_of(optimizer), learning_rate=rate, first_learning_rate=_first_rate(schedulers, rate, *length),
        length=length[1], unit=length[0], schedulers=tuple(map(name_of, schedulers)), source=source,
        fitted=bool(record), notes=tuple(record.get('notes', ())))


def optimizer_of(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the settings of a config's only optimizer; ``None`` if it has none, or several."""
    wrapper = config.get('optim_wrapper')
    optimizer = wrapper.get('optimizer') if isinstance(wrapper, Mapping) else None
    return optimizer if isinstance(optimizer, Mapping) else None


def schedulers_of(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the settings of a config's schedulers, of the learning rate and of other parameters."""
    schedulers = config.get('param_scheduler') or []
    schedulers = [schedulers] if isinstance(schedulers, Mapping) else schedulers
    return [entry for entry in schedulers if isinstance(entry, Mapping) and 'type' in entry]


def length_of(config: Mapping[str, Any]) -> tuple[str, int] | None:
    """Return ``('epochs', n)`` or ``('iterations', n)``, ``None`` if a config does not say how long it trains."""
    loop = config.get('train_cfg')
    for unit, key in (('iterations', 'max_iters'), ('epochs', 'max_epochs')):
        if isinstance(loop, Mapping) and loop.get(key) is not None:
            return unit, int(loop[key])
    return None


def learning_rate(config: Mapping[str, Any]) -> float | None:
    """Return the learning rate that a config trains with; ``None`` if its optimizer has none.

    It is the optimizer's, its default where none is stated, but for ``OneCycleLR``, whose peak stands in the place of
    the optimizer's.
    """
    for entry in schedulers_of(config):
        peak = entry.get('eta_max')
        if name_of(entry) == 'OneCycleLR' and isinstance(peak, (int, float)):
            return float(peak)
    optimizer = optimizer_of(config)
    if optimizer is None:
        return None
    rate = optimizer.get('lr', default_of(optimizer.get('type'), 'lr', OPTIMIZERS))
    return float(rate) if isinstance(rate, (int, float)) else None


def default_of(kind: Any, argument: str, registry: Any) -> Any:
    """Return the default of an argument of a class that a config gives by name or by class, ``None`` without one."""
    if isinstance(kind, str):
        with registry.switch_scope_and_registry(None) as present:  # of the default scope
            kind = present.get(kind)
    stated = inspect.signature(kind).parameters.get(argument) if inspect.isclass(kind) else None
    return None if stated is None or stated.default is inspect.Parameter.empty else stated.default


def name_of(entry: Mapping[str, Any]) -> str:
    """Return the class name of what a config gives by name or by class."""
    kind = entry.get('type')
    return getattr(kind, '__name__', str(kind).rpartition('.')[2])


def _first_rate(schedulers: list[Mapping[str, Any]], rate: float, unit: str, length: int) -> float | None:
    """Return the learning rate of the first iteration, by mmengine's own schedulers; ``None`` if they need a run."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate, momentum=0.9)
    try:
        for entry in schedulers:
            converted = unit == 'epochs' and not entry.get('by_epoch', True)
            settings = {'end': length * _ANY_EPOCH if converted else length, **copy.deepcopy(dict(entry))}
            PARAM_SCHEDULERS.build(settings, default_args=dict(optimizer=optimizer, epoch_length=_ANY_EPOCH))
    except Exception:  # a scheduler of the user's own may ask for anything
        return None
    return float(optimizer.param_groups[0]['lr'])
