"""Completing the config of a pruning run with what follows from the rest of it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.registry import OPTIMIZERS

from mmprune_ext.algorithms import OneShotAlgorithm, PruneAlgorithm
from mmprune_ext.compact.compact_model import load_units
from mmprune_ext.errors import ConfigError
from mmprune_ext.model_config import is_pruning
from mmprune_ext.nearest import did_you_mean
from mmprune_ext.registry import MODELS
from mmprune_ext.settings.as_tested import training_images
from mmprune_ext.settings.checks import calibration_of
from mmprune_ext.units.demo_inputs import counting_inputs, tracing_inputs


def prepare_pruning(config: Config) -> None:
    """Complete the config of a pruning run: demo inputs and data for its mutator, parameters' settings, hooks.

    Raises:
        ConfigError: If the optimizer leaves what the method learns as it is, nothing reads its section ``search``,
            the method cannot be repaired, or does not have a setting or a mutator that the model section names.
    """
    model = config.model
    kind = MODELS.get(model.type) if isinstance(model.type, str) else model.type
    if isinstance(kind, type) and issubclass(kind, PruneAlgorithm):
        _check_keys(model, kind)
    if not is_pruning(model):
        return
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
    _complete_repair(config, kind)
    search, units = config.get('search'), model.get('units')
    if search is not None and config.get('runner_type') is None:
        raise ConfigError("the config has a section search, which only runner_type='mmprune_ext.SearchRunner' reads; "
                          'set it, or take search out')
    if config.get('rounds') is not None and config.get('runner_type') is None:
        raise ConfigError("the config has rounds, which only runner_type='mmprune_ext.RoundsRunner' reads; set it, "
                          'or take rounds out')
    # Of a run of two parts it is the first that trains what a method adds to the parameters.
    section, where = (search, 'search.') if isinstance(search, Mapping) and 'optim_wrapper' in search else (config, '')
    own = getattr(kind, 'paramwise', {})
    if own and (units is None or not load_units(units).has_choices):
        _complete_paramwise(section.get('optim_wrapper'), own, f'{where}optim_wrapper')
    for name in getattr(kind, 'required_hooks', PruneAlgorithm.required_hooks):
        hooks = list(config.get('custom_hooks') or [])
        if not any(_hook_name(hook) == name.rpartition('.')[2] for hook in hooks):
            config.custom_hooks = [*hooks, dict(type=name)]


def _check_keys(model: Mapping[str, Any], kind: type[PruneAlgorithm]) -> None:
    """Check that a method has the settings that a model section names.

    Raises:
        ConfigError: If not; mostly they are those of the config that it has as its base.
    """
    parameters = inspect.signature(kind.__init__).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    own = [name for name in parameters if name != 'self']
    unknown = [key for key in model if key not in (*own, 'type', 'repair')]  # of a repair more is told below
    if 'architecture' not in model:
        raise ConfigError(f'model: {kind.__name__} needs an architecture, the model section of the dense model, and '
                          f'the section has {", ".join(model)}; where a base config has the dense model: '
                          f"model = dict(_delete_=True, type='mmprune_ext.{kind.__name__}', "
                          'architecture={{_base_.model}}, ...)')
    inherited = [key for key in unknown if key in (model['architecture'] or {})]
    if inherited:
        raise ConfigError(f'model: {kind.__name__} has no setting {", ".join(inherited)}, which are those of the dense '
                          'model in a base config; put _delete_=True into this model section, so that it stands in the '
                          'place of that one')
    if unknown:
        raise ConfigError(f'model: {kind.__name__} has no setting "{unknown[0]}"'
                          f'{did_you_mean(unknown[0], own) or "; it has " + ", ".join(own)}')


def _complete_repair(config: Config, kind: Any) -> None:
    """Give the repair of a one-shot method the training images, unless it names its own.

    Raises:
        ConfigError: If the method is none that prunes before it trains.
    """
    repair = config.model.get('repair')
    if repair is None:
        return
    if isinstance(kind, type) and not issubclass(kind, OneShotAlgorithm):
        raise ConfigError(f'model.repair: {kind.__name__} finds its channels while it trains; a repair is for methods '
                          'that prune before they train. Take repair out')
    if isinstance(repair, Mapping) and repair.get('dataloader') is None and config.get('train_dataloader') is not None:
        config.model.repair = {**repair, 'dataloader': training_images(config)}


def _complete_paramwise(wrapper: Any, defaults: Mapping[str, Mapping[str, float]], where: str) -> None:
    """Add settings of parameters that a method brings, unless the run's optimizer says otherwise for them.

    Raises:
        ConfigError: If it does not train them.
    """
    if not isinstance(wrapper, Mapping) or wrapper.get('constructor') is not None:
        return
    optimizer = wrapper.get('optimizer')
    if any(defaults.values()) and isinstance(optimizer, Mapping) and optimizer.get('weight_decay') is None:
        # Without a stated one, mmengine takes no factor of it.
        optimizer['weight_decay'] = _default_weight_decay(optimizer.get('type'))
    paramwise = wrapper.get('paramwise_cfg') or {}
    keys = dict(paramwise.get('custom_keys') or {})
    for key, settings in defaults.items():
        if not (settings or key in keys):
            continue  # an entry would stand before those of other keys that the names hold
        keys[key] = {**settings, **(keys.get(key) or {})}
        if keys[key].get('lr_mult') == 0:
            raise ConfigError(f'{where}.paramwise_cfg.custom_keys.{key}: lr_mult is 0, so that nothing would be '
                              'learned; set it to a positive number')
    if keys:
        wrapper['paramwise_cfg'] = {**paramwise, 'custom_keys': keys}


def _default_weight_decay(kind: Any) -> float:
    """Return the weight decay that an optimizer has when none is given."""
    if isinstance(kind, str):
        with OPTIMIZERS.switch_scope_and_registry(None) as registry:
            kind = registry.get(kind)
    stated = inspect.signature(kind).parameters.get('weight_decay') if kind is not None else None
    return 0.0 if stated is None else stated.default


def _hook_name(hook: Mapping[str, Any]) -> str:
    """Return the class name of a hook that a config gives by name or by class."""
    kind = hook.get('type')
    return getattr(kind, '__name__', str(kind).rpartition('.')[2])
