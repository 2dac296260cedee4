"""Completing the config of a pruning run with what follows from the rest of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.config import Config

from mmprune_ext.algorithms import PruneAlgorithm
from mmprune_ext.model_config import is_pruning
from mmprune_ext.registry import MODELS
from mmprune_ext.settings.checks import calibration_of
from mmprune_ext.units.demo_inputs import counting_inputs, tracing_inputs


def prepare_pruning(config: Config) -> None:
    """Complete the config of a pruning run: demo inputs and data for its mutator, hooks."""
    model = config.model
    if not is_pruning(model):
        return
    kind = MODELS.get(model.type) if isinstance(model.type, str) else model.type
    default = getattr(kind, 'mutator_type', '')
    if default and isinstance(model.get('mutator'), (Mapping, type(None))):
        model.mutator = {'type': default, **(model.get('mutator') or {})}
    mutator = model.get('mutator')
    inputs = tracing_inputs(config)
    if isinstance(mutator, Mapping) and mutator.get('demo_inputs') is None and inputs is not None:
        mutator['demo_inputs'] = list(inputs) if isinstance(inputs, tuple) else inputs
    if isinstance(model.get('budget'), Mapping):
        model.budget.setdefault('input_size', counting_inputs(config))
    if getattr(kind, 'needs_data', False) and config.get('train_dataloader') is not None:
        calibration = calibration_of(model)
        if calibration.get('dataloader') is None and isinstance(model.get('calibration', {}), (Mapping, type(None))):
            model.calibration = {**calibration, 'dataloader': config.train_dataloader}
    if 'search' not in config:  # of a run of two parts, each is completed by itself
        _complete_paramwise(config, getattr(kind, 'paramwise', {}))
    for name in getattr(kind, 'required_hooks', PruneAlgorithm.required_hooks):
        hooks = list(config.get('custom_hooks') or [])
        if not any(_hook_name(hook) == name.rpartition('.')[2] for hook in hooks):
            config.custom_hooks = [*hooks, dict(type=name)]


def _complete_paramwise(config: Config, defaults: Mapping[str, Mapping[str, float]]) -> None:
    """Add settings of parameters that a method brings, unless the run's optimizer says otherwise for them."""
    wrapper = config.get('optim_wrapper')
    if not defaults or not isinstance(wrapper, Mapping) or wrapper.get('constructor') is not None:
        return
    paramwise = wrapper.get('paramwise_cfg') or {}
    wrapper['paramwise_cfg'] = {**paramwise, 'custom_keys': {**defaults, **(paramwise.get('custom_keys') or {})}}


def _hook_name(hook: Mapping[str, Any]) -> str:
    """Return the class name of a hook that a config gives by name or by class."""
    kind = hook.get('type')
    return getattr(kind, '__name__', str(kind).rpartition('.')[2])
