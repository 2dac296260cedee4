"""The report of a pruned model: what it cost before and after, and which channels went."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmprune_ext.analysis.complexity import Complexity
from mmprune_ext.analysis.conventions import CONVENTIONS
from mmprune_ext.analysis.latency import Latency, LatencyComparison
from mmprune_ext.analysis.plots import stripes_png, widths_png
from mmprune_ext.analysis.stripe_forms import FormTimes
from mmprune_ext.analysis.tables import render
from mmprune_ext.atomic import atomic_write
from mmprune_ext.errors import PruningError
from mmprune_ext.units.reasons import Reason
from mmprune_ext.units.unit import ChannelUnit
from mmprune_ext.units.unit_set import UnitSet

_COSTS = (('params', 'parameters, whole model'), ('macs', 'MACs, whole model'),
          ('backbone_params', 'parameters, backbone'), ('backbone_macs', 'MACs, backbone'),
          ('volume', 'volume (output values), whole model'),
          ('matmul_macs', 'MACs of attention products'), ('flops', 'FLOPs by mmengine'),
          ('flops_mm', "FLOPs by mmcv's former counter"), ('flops_thop', 'FLOPs by thop 0.0.31'))


@dataclass(frozen=True)
class Training:
    """How the compact config trains, as it was written.

    Attributes:
        optimizer: Its name.
        learning_rate: What the schedule starts from, after a warm-up.
        first_learning_rate: That of the first iteration; ``None`` where only a run can tell.
        length: Number of epochs or iterations.
        unit: ``epochs`` or ``iterations``.
        schedulers: Names of the schedulers.
        source: Where the schedule is from, such as ``the dense model``; of no meaning where it was fitted.
        fitted: Whether it was written for this fine-tuning.
        notes: What was adapted to its length, a line each.
    """

    optimizer: str
    learning_rate: float
    first_learning_rate: float | None
    length: int
    unit: str
    schedulers: tuple[str, ...]
    source: str
    fitted: bool
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return what the tools print last: how it trains, and a warning where that may ruin a good start."""
        first = self.first_learning_rate
        start = f' ({first:g} in the first iteration)' if first not in (None, self.learning_rate) else ''
        unit = self.unit[:-1] if self.length == 1 else self.unit
        found = [f'compact_config.py trains {self.length} {unit} by {self.optimizer}, learning rate '
                 f'{self.learning_rate:g}{start}, {", ".join(self.schedulers) or "constant"}']
        if not self.fitted:
            found.append(f'warning: this is the schedule of {self.source}, which may undo a good start; --finetune '
                         'EPOCHS writes one that fits')
        return found


@dataclass(frozen=True)
class MetricDrop:
    """What a choice by a sensitivity file costs of the metric, before any fine-tuning.

    Attributes:
        metric: Name of the metric; its drop is in its own unit.
        predicted: The drop that the file predicts.
        source: The file.
        allowed: The largest drop that the network was searched for; ``None`` without a search.
        resource: What was to get least in that search.
        share: The share of it that remains.
        dense: The metric of the dense model, measured in that search.
        pruned: That of the pruned model, by its new batch statistics.
        measured: Its drop.
        samples: How many samples both were measured on.
    """

    metric: str
    predicted: float
    source: str
    allowed: float | None = None
    resource: str = ''
    share: float | None = None
    dense: float | None = None
    pruned: float | None = None
    measured: float | None = None
    samples: int | None = None

    def lines(self) -> list[str]:
        """Return what the report and the tools say of it."""
        found = [f'predicted drop of {self.metric}: {self.predicted:.4g} (by {self.source})']
        if self.allowed is not None:
            found += [f'measured drop of {self.metric}: {self.measured:.4g} ({self.dense:.4g} to {self.pruned:.4g} '
                      f'on {self.samples} samples; allowed {self.allowed:.4g})',
                      f'budget found: {self.resource} {self.share:.4f}']
        return found


@dataclass(frozen=True)
class Mended:
    """What became of a pruned model without training.

    Attributes:
        kept: Which state of its weights was kept.
        distances: How far the outputs of each state are from the dense model's
            (:func:`mmprune_ext.repair.states.distances`), by name.
        compared: Training images that this was measured on.
        unseen: Whether the weights were solved for on others.
        images: Training images that the weights were solved for on.
        seconds: What all of it took.
        layers: Of each layer that was solved for, by path, the squared error of its outputs as a share of their
            variance: with the weights that pruning left, and with the new ones.
        skipped: Why other layers were left as they were, by path.
    """

    kept: str
    distances: Mapping[str, float]
    compared: int
    unseen: bool
    images: int
    seconds: float
    layers: Mapping[str, tuple[float, float]]
    skipped: Mapping[str, str]

    def lines(self) -> list[str]:
        """Return what the report and the tools say of it."""
        found = [f'kept: {self.kept}, whose outputs are nearest to the dense model\'s',
                 f'distance on {self.compared} {"other" if self.unseen else "of these"} training images (0: no '
                 'difference, 1: about that of a constant answer): '
                 + '; '.join(f'{name} {value:.4f}' for name, value in self.distances.items()),
                 f'least squares for {len(self.layers)} layers on {self.images:,} training images; all of it took '
                 f'{self.seconds:.0f} s']
        worst = sorted(self.layers.items(), key=lambda item: -item[1][1])[:3]
        if worst:
            found.append('least exact: ' + '; '.join(f'{path} {before:.3g} to {after:.3g}'
                                                     for path, (before, after) in worst)
                         + ' (squared error of the outputs, as a share of their variance)')
        found += [f'left as it was: {path} ({reason})' for path, reason in self.skipped.items()]
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; a distance that is infinite is ``None``."""
        return {**asdict(self), 'distances': {name: value if math.isfinite(value) else None
                                              for name, value in self.distances.items()}}


@dataclass(frozen=True)
class Report:
    """Dense and compact model side by side.

    Attributes:
        dense: Complexity of the dense model.
        compact: Complexity of the compact model, for the same input.
        units: Channel units of the dense model, with the choices that made the compact one.
        latency: Latency of both, if it was measured.
        metrics: Metrics by stage, then by name: ``{'dense': {'accuracy/top1': 93.4}, 'compact':
            {...}}``; the stages are columns in the given order.
        forms: Time of both forms of the layers that have lost stripes, where it was measured.
        title: What was pruned and how, one line.
        training: How the compact config trains, where it says so.
        drop: What the choice costs of the metric, where a sensitivity file made it.
        mended: What became of it without training, where more than new batch statistics was tried.
        padding: What zero channels were added, in lines.
        provenance: Where the compact model comes from: command, config, checkpoint with its digest, method and
            settings, seed, versions, machine, date.

    Raises:
        PruningError: If the two complexities are of different inputs.
    """

    dense: Complexity
    compact: Complexity
    units: UnitSet
    latency: LatencyComparison | None = None
    metrics: Mapping[str, Mapping[str, float]] | None = None
    title: str = 'Pruning report'
    forms: Mapping[str, FormTimes] | None = None
    training: Training | None = None
    drop: MetricDrop | None = None
    mended: Mended | None = None
    padding: Sequence[str] = ()
    provenance: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.dense.sample != self.compact.sample:
            raise PruningError(f'report: the dense model was counted on {self.dense.sample}, the '
                               f'compact one on {self.compact.sample}; count both on the same')

    # ------------------------------------------------------------ text

    def text(self) -> str:
        """Return the report as plain text."""
        parts = [f'{self.title}\n{"=" * len(self.title)}\n', cost_table(self.dense, self.compact)]
        if self.latency is not None:
            parts.append(latency_table(self.latency))
        if self.metrics:
            parts.append(self._metrics_table())
        if self.drop is not None:
            parts.append('Ratios from sensitivity\n' + ''.join(f'  {line}\n' for line in self.drop.lines()))
        if self.mended is not None:
            parts.append('Repair\n' + ''.join(f'  {line}\n' for line in self.mended.lines()))
        if self.padding:
            parts.append('Padding\n' + ''.join(f'  {line}\n' for line in self.padding))
        parts.append(self._unit_table())
        if self.units.stripes or self.units.shortcuts:
            parts.append(self._stripe_table())
        if self.provenance:
            parts.append('Where it comes from\n' + ''.join(f'  {line}\n' for line in provenance_lines(self.provenance)))
        parts.append(conventions_text())
        if self.training is not None:
            parts.append('Fine-tuning\n' + ''.join(f'  {line}\n' for line in (
                *self.training.lines(), *self.training.notes)))
        return '\n'.join(parts)

    def _metrics_table(self) -> str:
        names = list(dict.fromkeys(name for column in self.metrics.values() for name in column))
        rows = [(name, *(f'{column[name]:.4g}' if name in column else ''
                         for column in self.metrics.values())) for name in names]
        return render(('', *self.metrics), rows, 'Metrics',
                      numbers=range(1, len(self.metrics) + 1))

    def _unit_table(self) -> str:
        outside = [unit for unit in self.units.values() if unit.reason is Reason.OUT_OF_SCOPE]
        rows = [(unit.name, unit.num_channels, keep, _percent(1 - keep / unit.num_channels), unit.why())
                for unit, keep in ((unit, self._kept(unit)) for unit in self.units.values()) if unit not in outside]
        if outside:
            count, left = (sum(numbers) for numbers in zip(*((u.num_channels, self._kept(u)) for u in outside)))
            rows.append((f'{len(outside)} units outside the scope', count, left, _percent(1 - left / count), ''))
        total = sum(unit.num_channels for unit in self.units.values())
        kept = sum(self._kept(unit) for unit in self.units.values())
        rows.append(('all units', total, kept, _percent(1 - kept / total if total else 0), ''))
        return render(('unit', 'channels', 'kept', 'removed', 'not prunable because'), rows,
                      'Channel units', numbers=(1, 2, 3))

    def _kept(self, unit: ChannelUnit) -> int:
        """Return how many channels of a unit stay: none where all that makes them lies in blocks that are gone."""
        shortcuts = self.units.shortcuts.items()
        gone = all(any(shortcut.leaves_out(block, member.module) for block, shortcut in shortcuts)
                   for member in unit.producers)
        return 0 if gone else unit.keep

    def _stripe_table(self) -> str:
        rows, left, total = [], 0, 0
        for path, layer in self.units.stripes.items():
            times = (self.forms or {}).get(path)
            measured = ('', '') if times is None else (f'{times.dense_ms:.3f}', f'{times.stripes_ms:.3f}')
            shares = ' '.join(f'{100 * share:.0f}' for share in layer.keep.mean(0).ravel())
            rows.append((path, 'x'.join(map(str, layer.kernel_size)), layer.keep.size, int(layer.keep.sum()), shares,
                         layer.form or '', *measured))
            left, total = left + int(layer.keep.sum()), total + layer.keep.size
        rows.append(('all of these', '', total, left, '', '', '', ''))
        text = render(('convolution', 'kernel', 'stripes', 'kept', '% of filters by kernel position', 'form',
                       'dense ms', 'stripes ms'), rows, 'Stripes', numbers=(2, 3, 6, 7))
        text += (f'Beside the parameters: {left} indices, one a stripe. MACs and parameters are those of the stripes '
                 'that are left.\n')
        if self.units.shortcuts:
            text += f'Blocks that are their shortcuts, without a line above: {", ".join(self.units.shortcuts)}\n'
        return text

    # ------------------------------------------------------------ data

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values for JSON; shares named ``removed`` are of 1."""
        dense, compact = self.dense.to_dict(), self.compact.to_dict()
        for record in (dense, compact):
            record.pop('conventions')
        return {
            'title': self.title, 'conventions': dict(CONVENTIONS), 'dense': dense,
            'compact': compact, 'removed': removed(self.dense, self.compact),
            'latency': None if self.latency is None else self.latency.to_dict(),
            'metrics': {stage: dict(values) for stage, values in (self.metrics or {}).items()},
            'units': {unit.name: {
                'num_channels': unit.num_channels, 'keep': keep, 'removed': 1 - keep / unit.num_channels,
                'prunable': unit.prunable, 'reason': unit.why()}
                for unit, keep in ((unit, self._kept(unit)) for unit in self.units.values())},
            'stripes': {path: {
                'kernel_size': list(layer.kernel_size), 'stripes': layer.keep.size, 'keep': int(layer.keep.sum()),
                'by_position': layer.keep.sum(0).tolist(), 'form': layer.form,
                'times': self.forms[path].to_dict() if self.forms and path in self.forms else None}
                for path, layer in self.units.stripes.items()},
            'shortcuts': {path: shortcut.to_dict() for path, shortcut in self.units.shortcuts.items()},
            'training': None if self.training is None else asdict(self.training),
            'drop': None if self.drop is None else asdict(self.drop),
            'repair': None if self.mended is None else self.mended.to_dict(),
            'padding': list(self.padding),
            'provenance': None if self.provenance is None else dict(self.provenance)}

    def save(self, folder: str | Path) -> list[Path]:
        """Write ``report.txt``, ``report.json``, ``widths.png`` and, with stripes, ``stripes.png``.

        Each appears whole or not at all.

        Returns:
            The paths.

        Raises:
            PruningError: If the folder cannot be written to.
        """
        folder = Path(folder)
        # Everything is made before anything is written.
        text, data = self.text(), json.dumps(self.to_dict(), indent=1) + '\n'
        content = {'report.txt': text, 'report.json': data, 'widths.png': widths_png(self.units, self.title)}
        if self.units.stripes:
            content['stripes.png'] = stripes_png(self.units)
        paths = [folder / name for name in content]
        for path, value in zip(paths, content.values()):
            atomic_write(value, path)
        return paths


def provenance_lines(found: Mapping[str, Any]) -> list[str]:
    """Return where a model comes from as lines, without what is not known."""
    def words(value: Any) -> str:
        if isinstance(value, Mapping):
            return ', '.join(f'{key} {words(item)}' if isinstance(item, str) else f'{key}={words(item)}'
                             for key, item in value.items())
        return str(value)
    return [f'{key}: {words(value)}' for key, value in found.items() if value not in (None, {}, '')]


def cost_table(dense: Complexity, compact: Complexity | None = None) -> str:
    """Return the costs of a model, or of a dense and a compact one side by side, as text."""
    title = f'Cost of {dense.sample}'
    if compact is None:
        rows = [(words, f'{value:,}') for key, words in _COSTS if (value := getattr(dense, key))]
        return render(('', 'model'), rows, title, numbers=(1, ))
    shares = removed(dense, compact)
    rows = [(words, f'{getattr(dense, key):,}', f'{getattr(compact, key):,}', _percent(shares[key]))
            for key, words in _COSTS if key in shares]
    return render(('', 'dense', 'compact', 'removed'), rows, title, numbers=(1, 2, 3))


def latency_table(measured: Latency | LatencyComparison) -> str:
    """Return the latency of a model, or of a dense and a compact one, as text."""
    pair = isinstance(measured, LatencyComparison)
    items = ({'dense': measured.dense, 'compact': measured.compact} if pair
             else {'model': measured})
    rows = [(name, f'{item.median_ms:.2f}', f'{item.p10:.2f}', f'{item.p90:.2f}')
            for name, item in items.items()]
    one = next(iter(items.values()))
    title = (f'Latency in ms of a batch of {one.batch_size} on {one.device}, {one.threads} '
             f'thread(s), {one.repeats} runs')
    if pair:
        title += (f' in turn; dense takes {measured.speedup:.2f}x as long (median ratio of '
                  'neighbouring runs)')
    return render(('', 'median', 'p10', 'p90'), rows, title, numbers=(1, 2, 3))


def conventions_text() -> str:
    """Return what each number counts, as text."""
    return 'What the numbers count\n' + ''.join(
        textwrap.fill(f'{name}: {words}', 100, initial_indent='  ', subsequent_indent='    ')
        + '\n' for name, words in CONVENTIONS.items())


def removed(dense: Complexity, compact: Complexity) -> dict[str, float]:
    """Return the share, of 1, that is gone of each cost that both models have."""
    return {key: 1 - getattr(compact, key) / getattr(dense, key) for key, _ in _COSTS
            if getattr(dense, key) and getattr(compact, key) is not None}


def _percent(share: float) -> str:
    return f'{100 * share:.1f}%'
