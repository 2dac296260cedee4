"""Prune as far as the metric, measured, allows."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import MMLogger, print_log
from mmengine.runner import Runner, set_random_seed
from torch import Tensor, nn

from mmprune_ext.analysis.report import Mended, MetricDrop
from mmprune_ext.compact.checkpoint import load_weights
from mmprune_ext.compact.compact_model import build_architecture, forget_pretrained
from mmprune_ext.compact.export import Exported, Extras, export
from mmprune_ext.errors import ConfigError, TargetError, UnitFileError
from mmprune_ext.evaluation.metering import Meter
from mmprune_ext.evaluation.validation import KeptBatches, Validation
from mmprune_ext.mutators import ChannelMutator
from mmprune_ext.mutators.score_file import ScoreFile
from mmprune_ext.registry import MODELS
from mmprune_ext.repair.batch_norm import reestimate_batch_norm
from mmprune_ext.repair.mending import Mending, mend
from mmprune_ext.settings.finetune import Finetune, with_schedule
from mmprune_ext.targets.budget import Keeps
from mmprune_ext.targets.drop_search import smallest_within
from mmprune_ext.targets.sensitivity import Sensitivity
from mmprune_ext.targets.sensitivity_choice import SensitivityChoice
from mmprune_ext.units import slim
from mmprune_ext.units.demo_inputs import counting_inputs, set_training
from mmprune_ext.workflows.pruning import mending_of, mutator_config, one_shot_algorithm, require_dense

# A drop of more than this share of the dense metric is one that hardly anyone wants.
LARGE_DROP = 0.25


def prune_to_drop(config: Config, checkpoint: str, folder: str | Path, algorithm: str,
                  mutator: Mapping[str, Any], sensitivity: str | Path, max_drop: float,
                  resource: str = 'flops', budget_scope: str = '', input_size: Sequence[int] | None = None,
                  bn_batches: int = 20, scores: str | None = None, extras: Extras | None = None,
                  finetune: Finetune | None = None, repair_images: int | None = 0) -> Exported:
    """Prune a trained model to the smallest network whose metric falls by at most so much, and export it.

    The metric is the sensitivity file's, measured on as many validation samples, without fine-tuning. Its fall is from
    that of the dense model with its own batch statistics.

    Args:
        config: The config of the dense model.
        checkpoint: Its weights.
        folder: Where to write.
        algorithm: Short name of the method, ``l1``.
        mutator: Settings of the mutator; values of ``None`` are left to its defaults.
        sensitivity: A sensitivity file of this model and method.
        max_drop: The largest drop allowed, in the metric's own unit.
        resource: What is to get smallest: ``flops``, ``params``, ``channels`` or ``volume``.
        budget_scope: Path of the submodule whose resource is measured; empty for the model.
        input_size: ``(H, W)`` to trace and to count on; the config's own by default.
        bn_batches: Training batches to re-estimate each candidate's batch statistics on.
        scores: A file that :func:`score_model` wrote, instead of scoring.
        extras: What the report tells beside costs.
        finetune: What the compact config's schedule is to fit; by default it is that of the dense model.
        repair_images: Training images to repair each candidate on, as of
            :func:`mmprune_ext.workflows.pruning.prune_model`.

    Raises:
        TargetError: If no smaller network falls by so little.
        UnitFileError: If the sensitivity file does not fit.
        ConfigError: If the config's evaluator does not give the file's metric.
    """
    method = one_shot_algorithm(algorithm)
    require_dense(config)
    file = Sensitivity.load(sensitivity)
    _check_allowed(file, max_drop)
    MMLogger.get_instance('mmprune_ext')
    _tell_allowed(file, max_drop)
    stored = None if scores is None else ScoreFile.load(scores)
    config = with_schedule(config, finetune)
    settings = mutator_config(config, method, mutator, input_size, stored is None)
    validation = _validation(config, file)
    architecture, counted_on = config.model.to_dict(), counting_inputs(config, input_size)
    model = build_architecture(architecture, config.get('data_preprocessor'))
    meta = load_weights(model, checkpoint)
    worker = MODELS.build(settings)
    units = worker.prepare(model)
    file.checked(model, units, method.short_name)
    choice = SensitivityChoice(file, units, resource, model, budget_scope, counted_on)
    known = worker.scores(model) if stored is None else stored.checked(model, units, method.short_name)
    trials = _Trials(model, worker, known, file, max_drop, validation)
    trials.mending = mending_of(config, repair_images, bn_batches, counted_on)
    if trials.mending is not None:  # the data set is built once
        trials.mending = replace(trials.mending, dataloader=trials.mending.build_dataloader())
    elif bn_batches > 0:
        loader = {**config.train_dataloader, 'persistent_workers': False}  # which would go on drawing
        trials.training = KeptBatches(Runner.build_dataloader(loader, seed=0), bn_batches)
    found = smallest_within(choice, trials.drop, max_drop)
    worker.choose_best(found.keeps, known)
    pruned = trials.best.cpu()
    forget_pretrained(pruned)
    drop = MetricDrop(file.metric, found.predicted, file.source, max_drop, resource, found.share, trials.dense,
                      trials.metric, found.measured, validation.size)
    return export(pruned, units, config, architecture, folder, counted_on, meta,
                  replace(extras or Extras(), drop=drop, mended=trials.mended))


class _Trials:
    """Candidates pruned and measured.

    Args:
        model: The dense model.
        worker: Its mutator.
        scores: The scores of its units.
        file: Says what the metric is.
        allowed: The largest drop allowed.
        validation: What to measure on.

    Attributes:
        dense: The metric of the dense model.
        training: Training batches that new batch statistics are taken on, if any.
        mending: How the candidates are mended, if not by new statistics alone.
        best: The last model within what is allowed, which is the smallest so far.
        metric: Its metric.
        mended: What became of it without training, where it was mended.
    """

    def __init__(self, model: nn.Module, worker: ChannelMutator, scores: Mapping[str, Tensor], file: Sensitivity,
                 allowed: float, validation: Validation) -> None:
        self.model, self.worker, self.scores = model, worker, scores
        self.file, self.allowed, self.validation = file, allowed, validation
        self.dense = _metric(model, validation, file.metric)
        self.training: KeptBatches | None = None
        self.mending: Mending | None = None
        self.best: nn.Module | None = None
        self.mended: Mended | None = None
        self.metric = math.nan

    def drop(self, keeps: Keeps) -> float:
        """Return the measured drop of kept numbers."""
        self.worker.choose_best(keeps, self.scores)
        pruned = slim(copy.deepcopy(self.model), self.worker.units)
        mended = None
        if self.mending is not None:
            mended = mend(pruned, self.model, self.worker.units, self.mending, quiet=True)
        elif self.training is not None:
            set_random_seed(0)  # each candidate draws what the others draw
            reestimate_batch_norm(pruned, self.training, self.training.number, quiet=True)
        metric = _metric(pruned, self.validation, self.file.metric)
        drop = self.file.fall(self.dense, metric)
        if drop <= self.allowed:
            self.best, self.metric, self.mended = pruned, metric, mended
        return drop


def _check_allowed(file: Sensitivity, max_drop: float) -> None:
    if file.greater_is_better and 0 < file.dense <= max_drop:
        raise TargetError(f'--max-drop {max_drop:g} is all of {file.metric}, which is {file.dense:g} of the dense '
                          "model; it counts in the metric's own unit, in which a point may be 0.01")


def _tell_allowed(file: Sensitivity, max_drop: float) -> None:
    """Say what a drop means, and warn where that is likely a slip: half a point of an mAP from 0 to 1 is 0.005."""
    if not 0 < file.dense < math.inf or not max_drop:
        return
    share = max_drop / file.dense
    direction, limit = ('fall', -max_drop) if file.greater_is_better else ('rise', max_drop)
    print_log(f'--max-drop {max_drop:g}: {file.metric} may {direction} by {share:.1%}, from {file.dense:.4g} of the '
              f'dense model to {file.dense + limit:.4g}'
              + ("; it counts in the metric's own unit, in which a point may be 0.01" if share > LARGE_DROP else ''),
              logger='current', level=logging.WARNING if share > LARGE_DROP else logging.INFO)


def _validation(config: Config, file: Sensitivity) -> Validation:
    """Return the samples that a file was measured on."""
    samples = file.settings.get('samples', file.samples)
    if type(samples) is not int or samples < 0:
        raise UnitFileError(f'{file.source}: settings: "samples" should be an integer of at least 0, got '
                            f'{samples!r:.80}')
    validation = Validation(config, samples)
    if file.settings.get('data', '') not in ('', f'{validation.split} {validation.digest}'):
        print_log(f'{file.source}: was measured on other data, or by another evaluator, than this config has; what it '
                  'predicts may be of little use', logger='current', level=logging.WARNING)
    return validation


def _metric(model: nn.Module, validation: Validation, name: str) -> float:
    """Return one metric of a model on validation samples; NaN where the evaluator gives no number for it.

    Raises:
        ConfigError: If the evaluator does not give it, but others.
    """
    set_training(model.to(get_device()), False)
    meter = Meter(model, validation, sharing=False)
    metrics, = meter.measure([meter.forms.make(lambda _: None)])
    if name not in metrics and metrics:
        raise ConfigError(f'{validation.split}_evaluator: gives no "{name}", which the sensitivity file was measured '
                          f'by, but {", ".join(metrics)}')
    return metrics.get(name, math.nan)
