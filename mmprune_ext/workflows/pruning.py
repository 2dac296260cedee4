"""What the command-line tools do with a model: trace it, prune it once, export a run."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn

from mmprune_ext import registry
from mmprune_ext.algorithms import OneShotAlgorithm, PruneAlgorithm
from mmprune_ext.analysis import complexity
from mmprune_ext.analysis.report import MetricDrop
from mmprune_ext.compact.checkpoint import load_weights, read_checkpoint
from mmprune_ext.compact.compact_model import (
    CompactModel,
    Units,
    build_architecture,
    forget_pretrained,
    load_units,
)
from mmprune_ext.compact.export import Exported, Extras, export
from mmprune_ext.errors import CheckpointError, ConfigError
from mmprune_ext.model_config import architecture_of, is_compact, is_pruning, take_student
from mmprune_ext.mutators import Budget, ChannelMutator
from mmprune_ext.nearest import nearest
from mmprune_ext.repair.batch_norm import reestimate_batch_norm
from mmprune_ext.repair.mending import Mending, mend
from mmprune_ext.settings.as_tested import training_images
from mmprune_ext.settings.completion import prepare_pruning
from mmprune_ext.settings.finetune import Finetune, with_schedule
from mmprune_ext.settings.reading import require_training_data
from mmprune_ext.targets.sensitivity_choice import predicted_drop
from mmprune_ext.units import UnitSet, slim, trace_units
from mmprune_ext.units.demo_inputs import counting_inputs, tracing_inputs

# Unless a number of images is asked for, a repair takes as many as cost so much in the dense model, within limits.
# Solving takes several times that: minutes on one core, seconds on a GPU.
REPAIR_MACS, LEAST_IMAGES = 10 ** 12, 16


def trace_config(config: Config, scope: Sequence[str] | None = None,
                 size: Sequence[int] | None = None, whole_heads: bool = False) -> UnitSet:
    """Build the model of a config, or the architecture of a pruning config, and trace its units.

    Where a method chooses by number alone (DCFF), the units of its pruning config carry the choice,
    unless they are asked for in another scope.

    Args:
        config: The config.
        scope: Submodules to prune; what the config says by default.
        size: ``(H, W)`` to trace on; from the config by default.
        whole_heads: Whether a channel of attention is one of its heads; or as the mutator of a pruning config says.
    """
    inputs, settings = tracing_inputs(config, size), config.model
    pruning = is_pruning(settings)
    model = build_architecture(settings.architecture if pruning else settings, config.get('data_preprocessor'))
    if not pruning:
        return trace_units(model, inputs, scope or 'backbone', whole_heads)
    default = getattr(MODELS.get(settings.type), 'mutator_type', '')
    mutator = MODELS.build({'type': default, **(settings.get('mutator') or {})})
    mutator.demo_inputs = inputs
    mutator.scope, mutator.whole_heads = scope or mutator.scope, whole_heads or mutator.whole_heads
    units = mutator.trace(model)
    if scope is None:
        _choose_by_number(mutator, settings, model, units)
    return units


def _choose_by_number(mutator: ChannelMutator, config: Mapping[str, Any], model: nn.Module, units: UnitSet) -> None:
    target, budget = config.get('target_pruning_ratio'), config.get('budget')
    if not mutator.needs_scores and (target is not None or budget is not None):
        mutator.prepare(model, units)
        mutator.choose(model, target, budget)


def one_shot_algorithm(name: str) -> type[OneShotAlgorithm]:
    """Return the one-shot method with a short name.

    Raises:
        ConfigError: If there is none, listing those there are.
    """
    registered = [*MODELS.module_dict.values(), *registry.MODELS.module_dict.values()]
    known = {cls.short_name: cls for cls in registered
             if isinstance(cls, type) and issubclass(cls, OneShotAlgorithm) and cls.short_name}
    if name not in known:
        raise ConfigError(f'unknown algorithm "{name}"; choose from {", ".join(sorted(known))} '
                          '(other methods choose channels while training: write a pruning config)')
    return known[name]


def prune_model(config: Config, checkpoint: str, folder: str | Path, algorithm: str,
                mutator: Mapping[str, Any], ratios: Any = None,
                budget: Mapping[str, Any] | None = None, input_size: Sequence[int] | None = None,
                bn_batches: int = 20, scores: str | None = None,
                extras: Extras | None = None, finetune: Finetune | None = None,
                repair_images: int | None = 0) -> Exported:
    """Prune a trained model by a one-shot method and export the result.

    Args:
        config: The config of the dense model.
        checkpoint: Its weights.
        folder: Where to write.
        algorithm: Short name of the method, ``l1``.
        mutator: Settings of the mutator; values of ``None`` are left to its defaults.
        ratios: Per-unit target, or
        budget: global target.
        input_size: ``(H, W)`` to trace and to count on; the config's own by default.
        bn_batches: Training batches to re-estimate batch statistics on.
        scores: A file that :func:`score_model` wrote, instead of scoring.
        extras: What the report tells beside costs.
        finetune: What the compact config's schedule is to fit; by default it is the config's own.
        repair_images: Training images to repair the weights on (:func:`mmprune_ext.repair.mending.mend`), with new
            batch statistics where these come nearer to the dense model; with 0 the statistics are always taken anew.
            ``None`` for as many as :func:`mending_of` finds affordable.
    """
    method = one_shot_algorithm(algorithm)
    require_dense(config)
    MMLogger.get_instance('mmprune_ext')
    config = with_schedule(config, finetune)
    architecture = config.model.to_dict()
    counted_on = counting_inputs(config, input_size)
    if budget is not None:
        budget = {'input_size': counted_on, **budget}
    measured = None if budget is None else Budget.from_config(budget).sensitivity
    mending = mending_of(config, repair_images, bn_batches, counted_on)
    pruned = method(architecture, mutator_config(config, method, mutator, input_size, scores is None),
                    ratios, budget, scores=scores, checkpoint=checkpoint,
                    data_preprocessor=config.get('data_preprocessor'),
                    **({} if mending is None else {'repair': mending}))
    if measured is not None:
        keeps = {name: unit.keep for name, unit in pruned.units.items()}
        extras = replace(extras or Extras(), drop=MetricDrop(
            measured.metric, predicted_drop(measured, keeps), measured.source))
    if mending is not None:
        extras = replace(extras or Extras(), mended=pruned.mended)
    model = pruned.export_model()
    if mending is None:
        _renew_statistics(model, config, bn_batches)
    return export(model, pruned.units, config, architecture, folder, counted_on,
                  read_checkpoint(checkpoint)['meta'], extras)


def prune_by_units(config: Config, checkpoint: str, folder: str | Path, units: Units,
                   scope: str | Sequence[str] = 'backbone', input_size: Sequence[int] | None = None,
                   bn_batches: int = 20, extras: Extras | None = None, finetune: Finetune | None = None,
                   repair_images: int | None = 0) -> Exported:
    """Prune a trained model to the channels that another model keeps, and export the result.

    Args:
        config: The config of the dense model, which may have other outputs than the one that the
            channels were chosen for.
        checkpoint: Its weights.
        folder: Where to write.
        units: The channel units of the other model, with choices; mostly the path of their file, or
            of a checkpoint of its pruning run.
        scope: Submodules whose units may be pruned.
        input_size: ``(H, W)`` to trace and to count on; the config's own by default.
        bn_batches: Training batches to re-estimate batch statistics on.
        extras: What the report tells beside costs.
        finetune: What the compact config's schedule is to fit; by default it is the config's own.
        repair_images: As of :func:`prune_model`.

    Raises:
        UnitFileError: If the choices do not fit the model, or there are none.
    """
    require_dense(config)
    source = str(units) if isinstance(units, (str, Path)) else 'units'
    chosen = load_units(units)
    chosen.require_choice(source)
    MMLogger.get_instance('mmprune_ext')
    config = with_schedule(config, finetune)
    architecture = config.model.to_dict()
    model = build_architecture(architecture, config.get('data_preprocessor'))
    meta = load_weights(model, checkpoint)
    own = _traced_like(chosen, model, tracing_inputs(config, input_size), scope)
    own.take_choices(chosen, source)
    counted_on = counting_inputs(config, input_size)
    mending = mending_of(config, repair_images, bn_batches, counted_on)
    dense = None if mending is None else copy.deepcopy(model)
    slim(model, own)
    forget_pretrained(model)
    if mending is None:
        _renew_statistics(model, config, bn_batches)
    else:
        extras = replace(extras or Extras(), mended=mend(model, dense, own, mending))
    return export(model, own, config, architecture, folder, counted_on, meta, extras)


def _traced_like(chosen: UnitSet, model: nn.Module, inputs: Any, scope: str | Sequence[str]) -> UnitSet:
    """Trace a model; with whole heads where only those are as many as the channels that other units choose from."""
    def fits(units: UnitSet) -> bool:
        return all(unit.num_channels == units[name].num_channels for name, unit in chosen.items()
                   if unit.keep < unit.num_channels and name in units)
    own = trace_units(model, inputs, scope)
    other = own if fits(own) else trace_units(model, inputs, scope, whole_heads=True)
    return other if fits(other) else own


def mending_of(config: Config, images: int | None, bn_batches: int, counted_on: Any) -> Mending | None:
    """Return how a pruned model is mended on the training data of a config, ``None`` if it is not.

    Args:
        config: The config.
        images: Training images to repair the weights on; 0 for none. ``None`` for as many as the dense model takes
            10^12 multiply-accumulates for, at least 16 and at most 1,024; pruning does not end then where the repair
            fails, and without ``bn_batches`` no data are looked at.
        bn_batches: Training batches for new batch statistics.
        counted_on: What the multiply-accumulates are counted on.
    """
    if images == 0 or (images is None and bn_batches == 0):
        return None
    if images is None:
        return Mending(_affordable_images(config, counted_on), bn_batches, training_images(config), required=False)
    return Mending(images, bn_batches, training_images(config))


def _affordable_images(config: Config, counted_on: Any) -> int:
    dense = build_architecture(config.model.to_dict(), config.get('data_preprocessor'))
    macs = complexity(dense, counted_on, flops=False).macs
    return min(max(REPAIR_MACS // max(macs, 1), LEAST_IMAGES), Mending.num_images)


def _renew_statistics(model: nn.Module, config: Config, batches: int) -> None:
    if batches > 0:
        reestimate_batch_norm(model, Runner.build_dataloader(config.train_dataloader, seed=0), batches)


def require_dense(config: Config) -> None:
    """Check that a config's model is no pruning algorithm.

    Raises:
        ConfigError: If it is one.
    """
    if is_pruning(config.model):
        raise ConfigError(f'the config\'s model is a {config.model.type}, already a pruning '
                          'algorithm; train it with tools/train.py, or give the config of the '
                          'dense model')


def mutator_config(config: Config, method: type[OneShotAlgorithm], settings: Mapping[str, Any],
                   input_size: Sequence[int] | None, scoring: bool = True) -> dict[str, Any]:
    """Return the config of a method's mutator for the model of a config.

    Args:
        config: The config of the dense model.
        method: The method.
        settings: Settings of the mutator; values of ``None`` are left to its defaults. The dataloader
            of a ``calibration`` is the config's ``train_dataloader`` unless one is given. ``options`` are further
            ones, which only this method has.
        input_size: ``(H, W)`` to trace on; the config's own by default.
        scoring: Whether the mutator is going to score, which may need data.

    Raises:
        ConfigError: If the method needs data, and the config has none or it does not exist; for an option that
            the method does not have.
    """
    settings = dict(settings)
    options = settings.pop('options', {})
    _check_options(method, options)
    found = {**options, 'type': method.mutator_type,
             'demo_inputs': tracing_inputs(config, input_size),
             **{key: value for key, value in settings.items() if value is not None}}
    if method.needs_data and scoring:
        require_training_data(config, f'to calibrate {method.__name__} on')
        found['calibration'] = {'dataloader': config.get('train_dataloader'),
                                **found.get('calibration', {})}
    else:
        found.pop('calibration', None)
    return found


def _check_options(method: type[OneShotAlgorithm], options: Mapping[str, Any]) -> None:
    """Refuse settings that a method's mutator does not have, and those of all methods, which have their own flags."""
    common = inspect.signature(ChannelMutator).parameters
    own = [name for name in inspect.signature(MODELS.get(method.mutator_type)).parameters
           if name not in common and name != 'calibration']
    for name in options:
        if name not in own:
            near = nearest(name, own, 1)
            known = f'did you mean {near[0]}?' if near else f'it has {", ".join(own) or "none"}'
            raise ConfigError(f'--method-options: {method.short_name} has no setting of its own "{name}"; {known}')


def export_run(config: Config, checkpoint: str, folder: str | Path,
               input_size: Sequence[int] | None = None, extras: Extras | None = None,
               bn_batches: int = 0, finetune: Finetune | None = None) -> Exported:
    """Export a trained pruning run, or a compact model that was trained further.

    Args:
        config: The run's config.
        checkpoint: A checkpoint of the run.
        folder: Where to write.
        input_size: ``(H, W)`` to count on; the config's own by default.
        extras: What the report tells beside costs.
        bn_batches: Training batches to re-estimate batch statistics on; with 0 they are those of the run.
        finetune: What the compact config's schedule is to fit; by default it is that of the run.

    Raises:
        ConfigError: If the config is neither.
        CheckpointError: If the checkpoint is of another run.
    """
    config = copy.deepcopy(config)
    take_student(config)
    if not (is_pruning(config.model) or is_compact(config.model)):
        raise ConfigError(f'the config\'s model is a {config.model.get("type")}, neither a pruning '
                          'algorithm nor a compact model; prune it with tools/prune.py')
    config = with_schedule(config, finetune)
    stored = read_checkpoint(checkpoint)
    architecture = architecture_of(config.model.to_dict())
    if is_compact(config.model):
        units = load_units(config.model.units)
        model = CompactModel(architecture, units, data_preprocessor=config.get('data_preprocessor'))
        load_weights(model, checkpoint)
    else:
        model, units = compact_of_run(config, checkpoint, stored)
    _renew_statistics(model, config, bn_batches)
    return export(model, units, config, architecture, folder,
                  counting_inputs(config, input_size), stored['meta'], extras)


def compact_of_run(config: Config, checkpoint: str, stored: Mapping[str, Any]) -> tuple[nn.Module, UnitSet]:
    """Return the compact model of a pruning run, and its units.

    Args:
        config: The run's config.
        checkpoint: A checkpoint of the run.
        stored: Its content.

    Raises:
        CheckpointError: If the checkpoint is of another run.
        ConfigError: If the config's model is no pruning algorithm.
    """
    if stored['run_units'] is None:
        raise CheckpointError(f'checkpoint {checkpoint} is not of a pruning run: it holds no '
                              'channel units; give a checkpoint that tools/train.py wrote for '
                              'this config')
    completed = copy.deepcopy(config)
    # In the place of the checkpoint that a resumed run began with, which it may have removed since.
    completed.model.units = stored['run_units'].to_json()
    prepare_pruning(completed)  # what the run's model was built from
    run = MODELS.build({**completed.model, 'data_preprocessor': config.get('data_preprocessor')})
    if not isinstance(run, PruneAlgorithm):
        raise ConfigError(f'the config\'s model {config.model.type} is no pruning algorithm')
    load_weights(run, checkpoint)
    return run.export_model(), run.exported_units
