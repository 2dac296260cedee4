"""Measure how sensitive each unit of a model is: prune it alone, without fine-tuning, and test.

Source: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017 (arXiv 1608.08710), section 3.2.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import hashlib
import io
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import CheckpointHook
from mmengine.logging import MMLogger, print_log
from mmengine.runner import Runner, set_random_seed
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from mmprune_ext.algorithms import OneShotAlgorithm
from mmprune_ext.analysis.plots import curves_png
from mmprune_ext.atomic import atomic_write
from mmprune_ext.compact.checkpoint import load_weights
from mmprune_ext.compact.compact_model import build_architecture
from mmprune_ext.draws import preserved_random_state
from mmprune_ext.errors import ConfigError, PruningError
from mmprune_ext.evaluation.folding import folded
from mmprune_ext.evaluation.metering import Meter
from mmprune_ext.evaluation.validation import KeptBatches, Validation
from mmprune_ext.mutators import ChannelMutator
from mmprune_ext.mutators.score_file import ScoreFile
from mmprune_ext.nearest import nearest
from mmprune_ext.registry import MODELS
from mmprune_ext.repair.batch_norm import batch_norms, reestimate_batch_norm
from mmprune_ext.settings.reading import make_known, require_training_data
from mmprune_ext.targets import Curve, Point, Sensitivity
from mmprune_ext.units.demo_inputs import set_training
from mmprune_ext.units.parameters.fingerprint import weights_digest
from mmprune_ext.units.slimming import slim_checked
from mmprune_ext.workflows.processes import in_processes
from mmprune_ext.workflows.pruning import mutator_config, one_shot_algorithm, require_dense

FILE, TABLE, PICTURE, SCORES = 'sensitivity.json', 'sensitivity.csv', 'sensitivity.png', 'scores.json'
# What a user would change to get what an earlier run in the same folder had.
_ARGUMENTS = {
    'algorithm': '--algorithm', 'architecture': 'CONFIG (another model)', 'weights': 'CHECKPOINT (other weights)',
    'ratios': '--ratios', 'samples': '--samples', 'bn_batches': '--bn-batches',
    'metric': '--metric', 'rule': '--rule', 'channels_last': '--channels-last', 'fold': '--fold',
    'units': '--scope, --exclude (other units)', 'rounding': '--divisor, --min-channels', 'scores': '--scores',
    'calibration': '--calib-batches', 'data': 'the data or the evaluator of the config'}


@dataclass(frozen=True)
class Measurement:
    """What is to be measured.

    Attributes:
        ratios: Shares of a unit's channels that go, in rising order.
        samples: How many validation samples each point is measured on; 0 for all.
        bn_batches: On how many training batches batch statistics are re-estimated before each point and before the
            dense metric; 0 leaves them as they are.
        metric: Name of the metric; by default that which the config keeps the best checkpoint by, else the first.
        rule: ``greater`` or ``less``, whichever is better; by default as mmengine's CheckpointHook knows it.
        mutator: Settings of the mutator; values of ``None`` are left to its defaults.
        scores: A file that :func:`mmprune_ext.workflows.scoring.score_model` wrote, instead of scoring.
        input_size: ``(H, W)`` to trace on; the config's own by default.
        channels_last: Whether weights and maps lie channels last in memory: faster on CPUs, with other rounding.
        fold: Whether units are measured with batch normalisation folded into the convolutions, where the model stays
            the same function: faster, with other rounding. Not with ``bn_batches``.
        sharing: Whether what a unit leaves as it is in all its points is computed once for all.
        jobs: How many processes measure, a unit at a time each.
    """

    ratios: Sequence[float] = tuple(round(0.1 * i, 1) for i in range(1, 10))
    samples: int = 2000
    bn_batches: int = 0
    metric: str | None = None
    rule: str | None = None
    mutator: Mapping[str, Any] = field(default_factory=dict)
    scores: str | None = None
    input_size: Sequence[int] | None = None
    channels_last: bool = False
    fold: bool = False
    sharing: bool = True
    jobs: int = 1


def measure_sensitivity(config: Config, checkpoint: str, folder: str | Path, algorithm: str,
                        wanted: Measurement, overwrite: bool = False) -> Sensitivity:
    """Measure the sensitivity of all prunable units of a trained model, and write file, table and picture.

    What an interrupted run has left in the folder is gone on from.

    Args:
        config: The config of the dense model.
        checkpoint: Its weights.
        folder: Where to write.
        algorithm: Short name of the method by whose scores channels go, ``l1``.
        wanted: What to measure.
        overwrite: Begin anew, whatever was measured in the folder.

    Raises:
        PruningError: If the folder holds measurements of something else, or an input is bad.
    """
    method = one_shot_algorithm(algorithm)
    require_dense(config)
    if wanted.fold and wanted.bn_batches > 0:
        raise PruningError('--fold leaves no batch statistics that --bn-batches could re-estimate; give one of them')
    MMLogger.get_instance('mmprune_ext')
    if wanted.bn_batches > 0:
        require_training_data(config, 'to re-estimate batch statistics (or give --bn-batches 0)')
    given = None if wanted.scores is None else ScoreFile.load(wanted.scores)
    folder = Path(folder)
    bench = _Bench.of(config, checkpoint, method, wanted, folder)
    worker, units = bench.worker, bench.worker.units
    scores = None if given is None else given.checked(bench.model, units, method.short_name)
    empty = Sensitivity(method.short_name, units.architecture, weights_digest(bench.model), '', True, math.nan,
                        bench.validation.size, wanted.bn_batches, False, {},
                        _settings(config, checkpoint, wanted, worker, scores, bench.validation), str(folder / FILE))
    found = None if overwrite else _earlier(folder / FILE, empty)
    if found is None or not found.complete:
        with preserved_random_state():
            if found is None:
                found = bench.measure_dense(empty)
                for name in (SCORES, f'{SCORES}.partial', TABLE, PICTURE):  # of something else
                    (folder / name).unlink(missing_ok=True)
                found.save(folder / FILE)
            if scores is None:
                scores = _scores(worker, bench.model, method.short_name, folder / SCORES)
            build = functools.partial(_worker, config, checkpoint, method, wanted, folder, found, scores)
            found = _measure_units(found, scores, bench, build, folder / FILE)
    write_pictures(found, folder)
    return found


def write_pictures(found: Sensitivity, folder: Path) -> None:
    """Write the table and the figure of a measurement."""
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator='\n')
    writer.writerow(['unit', 'channels', 'ratio', 'keep', found.metric, 'drop'])
    for name, curve in found.curves.items():
        writer.writerows([name, curve.channels, point.ratio, point.keep, f'{point.metric:.6g}',
                          f'{found.drop(point):.6g}'] for point in curve.points)
    atomic_write(rows.getvalue(), folder / TABLE)
    curves = {name: [(point.ratio, point.metric) for point in curve.points] for name, curve in found.curves.items()}
    title = f'{found.settings.get("config", "")}: one unit pruned by {found.algorithm}, {found.samples} samples'
    atomic_write(curves_png(curves, found.dense, found.metric, title), folder / PICTURE)


class _Bench:
    """A trained model with the data to measure it on."""

    @classmethod
    def of(cls, config: Config, checkpoint: str, method: type[OneShotAlgorithm], wanted: Measurement,
           folder: Path) -> _Bench:
        """Build the model of a config and trace it."""
        validation = Validation(config, wanted.samples)
        model = build_architecture(config.model.to_dict(), config.get('data_preprocessor'))
        load_weights(model, checkpoint)
        partial = {'partial': str(folder / f'{SCORES}.partial')}
        settings = {**wanted.mutator, 'calibration': {**wanted.mutator.get('calibration', {}), **partial}}
        mutator = mutator_config(config, method, settings, wanted.input_size, wanted.scores is None)
        return cls(config, model, mutator, validation, wanted)

    def __init__(self, config: Config, model: nn.Module, mutator: Mapping[str, Any], validation: Validation,
                 wanted: Measurement) -> None:
        self.config, self.validation, self.wanted = config, validation, wanted
        self._mutator = mutator
        self._take(model, self._prepared(model))
        self._batches: KeptBatches | None = None
        if wanted.bn_batches > 0:
            loader = {**config.train_dataloader, 'persistent_workers': False}  # which would go on drawing
            self._batches = KeptBatches(Runner.build_dataloader(loader, seed=0), wanted.bn_batches)

    def _prepared(self, model: nn.Module) -> ChannelMutator:
        worker = MODELS.build(self._mutator)
        worker.prepare(model)
        return worker

    def _take(self, model: nn.Module, worker: ChannelMutator) -> None:
        layout = {'memory_format': torch.channels_last} if self.wanted.channels_last else {}
        self.model, self.worker = model.to(get_device(), **layout), worker
        set_training(model, False)
        self.meter = Meter(model, self.validation, self.wanted.sharing)

    def fold(self) -> None:
        """Measure from here with batch normalisation folded, where units and outputs are those of the model."""
        model = folded(self.model, next(iter(self.validation.batches)))
        worker = None if model is None else self._prepared(model)
        if worker is None or _widths(worker) != _widths(self.worker):
            print_log('--fold: batch normalisation cannot be folded into the convolutions of this model; it stays',
                      logger='current')
        else:
            self._take(model, worker)

    def measure_dense(self, empty: Sensitivity) -> Sensitivity:
        """Return what is to be measured with the dense model's metric, and with which metric that is."""
        metrics = self.meter.measure([self.meter.forms.make(self._renew)])[0]
        metric = _metric(self.config, metrics, self.wanted.metric)
        greater = _greater_is_better(self.config, metric, self.wanted.rule)
        print_log(f'dense: {metric} {metrics[metric]:.4f} on {empty.samples} samples', logger='current')
        if greater and metrics[metric] == 0:
            print_log(f'{metric} of the dense model is 0, below which nothing can fall: are checkpoint, classes and '
                      'metric those of the data?', logger='current', level=logging.WARNING)
        return dataclasses.replace(empty, metric=metric, greater_is_better=greater, dense=metrics[metric])

    def begin(self) -> None:
        """Prepare the dense model for the measurement of units: fold it, or give it the statistics to begin with."""
        if self.wanted.fold:
            self.fold()
        self._renew(self.model)

    def curve(self, name: str, found: Sensitivity, scores: Mapping[str, Tensor],
              advance: Callable[[float], None] = lambda share: None) -> Curve:
        """Measure a unit.

        Args:
            name: The unit.
            found: What is measured, with the dense metric.
            scores: Of all units, by name.
            advance: Called with the share of ratios that each step is.
        """
        unit, ratios = self.worker.units[name], self.wanted.ratios
        keeps = {ratio: unit.kept_number(ratio) for ratio in ratios}
        # Ratios that keep as many channels are one point, and one that keeps all is the dense model.
        metrics = {unit.num_channels: found.dense}
        first = {keep: ratio for ratio, keep in reversed(keeps.items()) if keep not in metrics}
        forms = [self.meter.forms.make(lambda model, ratio=ratio: self._prune(model, name, ratio, scores))
                 for ratio in first.values()]
        share = len(ratios) / max(len(forms) * self.meter.validation.num_batches, 1)
        if not forms:
            advance(len(ratios))
        measured = self.meter.measure(forms, lambda: advance(share)) if forms else []
        metrics.update((keep, values.get(found.metric, math.nan)) for keep, values in zip(first, measured))
        return Curve(unit.num_channels, tuple(Point(ratio, keep, metrics[keep]) for ratio, keep in keeps.items()))

    def _prune(self, model: nn.Module, name: str, ratio: float, scores: Mapping[str, Tensor]) -> None:
        slim_checked(model, self.worker.choose(model, {name: ratio}, scores=scores).copy())
        self._renew(model)

    def _renew(self, model: nn.Module) -> None:
        """Give a model batch statistics of its own, if that is asked for."""
        if self._batches is None:
            return
        for norm in batch_norms(model):
            for name, value in norm.named_buffers(recurse=False):
                norm._buffers[name] = value.clone()
        set_random_seed(0)
        reestimate_batch_norm(model, self._batches, self.wanted.bn_batches, quiet=True)


def _measure_units(found: Sensitivity, scores: Mapping[str, Tensor], bench: _Bench,
                   build: Callable[[], Callable[[str], Curve]], path: Path) -> Sensitivity:
    """Measure the units that are not there yet, and write the file after each.

    Args:
        found: What was measured before.
        scores: Of all units, by name.
        bench: Measures, unless several processes are to.
        build: Builds what measures in a process.
        path: The file.
    """
    names, ratios, jobs = list(bench.worker.units.prunable), len(bench.wanted.ratios), bench.wanted.jobs
    left = [name for name in names if name not in found.curves]
    if len(left) < len(names):
        print_log(f'{path}: goes on after {len(names) - len(left)} of {len(names)} units', logger='current')
    with _progress() as progress:
        task = progress.add_task('units', total=len(names) * ratios, completed=(len(names) - len(left)) * ratios)
        if jobs == 1:
            bench.begin()
            curves = ((name, bench.curve(name, found, scores, functools.partial(progress.advance, task)))
                      for name in left)
        else:
            curves = in_processes(build, left, jobs)
        for name, curve in curves:
            measured = {**found.curves, name: curve}
            found = dataclasses.replace(found, curves={name: measured[name] for name in names if name in measured},
                                        complete=len(measured) == len(names))
            found.save(path)
            if jobs > 1:
                progress.advance(task, ratios)
            if not progress.console.is_terminal:
                remaining = (progress.tasks[0].time_remaining or 0) / 60
                print_log(f'{len(found.curves)} of {len(names)} units, {remaining:.0f} min left', logger='current')
    return found


def _worker(config: Config, checkpoint: str, method: type[OneShotAlgorithm], wanted: Measurement,
                      folder: Path, found: Sensitivity, scores: Mapping[str, Tensor]) -> Callable[[str], Curve]:
    """Return what measures a unit, in a new process."""
    make_known(config)
    MMLogger.get_instance('mmprune_ext')
    bench = _Bench.of(config, checkpoint, method, wanted, folder)
    bench.begin()
    return functools.partial(bench.curve, found=found, scores=scores)


def _scores(worker: ChannelMutator, model: nn.Module, algorithm: str, path: Path) -> dict[str, Tensor]:
    """Return the scores of the dense model: those of this measurement's earlier run, or new ones."""
    if path.is_file():
        return ScoreFile.load(path).checked(model, worker.units, algorithm)
    scores = worker.scores(model)
    ScoreFile(algorithm, worker.units.architecture, weights_digest(model), scores, worker.score_settings(),
              str(path)).save(path)
    return scores


def _settings(config: Config, checkpoint: str, wanted: Measurement, worker: ChannelMutator,
              scores: Mapping[str, Tensor] | None, validation: Validation) -> dict[str, Any]:
    """Return what a measurement depends on beside the model, and where it comes from."""
    given = '' if scores is None else hashlib.sha256(
        repr({name: values.tolist() for name, values in scores.items()}).encode()).hexdigest()[:16]
    return {'config': Path(config.filename or '').stem, 'checkpoint': Path(checkpoint).name,
            'ratios': list(wanted.ratios), 'samples': wanted.samples, 'bn_batches': wanted.bn_batches,
            'metric': wanted.metric, 'rule': wanted.rule, 'channels_last': wanted.channels_last,
            **({'fold': True} if wanted.fold else {}), 'units': list(worker.units.prunable),
            'rounding': [worker.divisor, worker.min_channels], 'scores': given,
            'calibration': worker.score_settings() if scores is None else {},
            'data': f'{validation.split} {validation.digest}', 'torch': torch.__version__}


def _earlier(path: Path, empty: Sensitivity) -> Sensitivity | None:
    """Return what an earlier run has left.

    Raises:
        PruningError: If it is of something else.
    """
    if not path.is_file():
        return None
    found = Sensitivity.load(path)
    then, now = ({**run.settings, 'algorithm': run.algorithm, 'architecture': run.architecture,
                  'weights': run.weights} for run in (found, empty))
    for key, argument in _ARGUMENTS.items():
        if then.get(key) != now.get(key):
            raise PruningError(f'{path}: was measured with other settings: {argument}: {_short(then.get(key))} there, '
                               f'{_short(now.get(key))} here; give another -o, or --overwrite, or delete the file')
    return found


def _short(value: Any) -> str:
    text = ', '.join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 80 else f'{text[:76]} ...'


def _widths(worker: ChannelMutator) -> dict[str, int]:
    return {name: unit.num_channels for name, unit in worker.units.prunable.items()}


def _metric(config: Config, metrics: Mapping[str, float], wanted: str | None) -> str:
    """Return the name of the metric that is measured."""
    if not metrics:
        raise ConfigError('the evaluator gives no metric for the dense model: does it predict anything on these '
                          'samples? Test it with tools/test.py')
    if wanted is None:
        best = ((config.get('default_hooks') or {}).get('checkpoint') or {}).get('save_best')
        named = [best] if isinstance(best, str) else best or []
        return next((name for name in named if name in metrics), next(iter(metrics)))
    if wanted not in metrics:
        near = nearest(wanted, metrics, 3, cutoff=0.4)
        hint = f'did you mean {", ".join(near)}?' if near else f'it gives {_short(list(metrics))}'
        raise ConfigError(f'--metric: the evaluator gives no "{wanted}"; {hint}')
    return wanted


def _greater_is_better(config: Config, metric: str, rule: str | None) -> bool:
    """Return whether more of a metric is better, as the config or mmengine knows it."""
    hook = (config.get('default_hooks') or {}).get('checkpoint') or {}
    best, rules = _listed(hook.get('save_best')), _listed(hook.get('rule'))
    if rule is None and metric in best:
        rule = rules[best.index(metric) if len(rules) == len(best) else 0]
    keys = {key: hook[key] for key in ('greater_keys', 'less_keys') if hook.get(key)}
    try:
        return (rule or CheckpointHook(save_best=metric, **keys).rules[0]) == 'greater'
    except ValueError:  # a name that mmengine does not know
        raise ConfigError(f'it is not known whether more or less of "{metric}" is better; say so with --rule greater '
                          'or --rule less') from None


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _progress() -> Progress:
    # On stderr: what metrics print is kept away from stdout.
    return Progress(TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                    console=Console(stderr=True), transient=True, speed_estimate_period=3600)
