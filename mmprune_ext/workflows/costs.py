"""What the model of a config costs: dense, and compact where its structure is known."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import MODELS
from torch import nn

from mmprune_ext.analysis import (
    Complexity,
    Latency,
    LatencyComparison,
    compare_latency,
    complexity,
    latency,
)
from mmprune_ext.analysis.conventions import CONVENTIONS
from mmprune_ext.analysis.report import conventions_text, cost_table, latency_table, removed
from mmprune_ext.compact.compact_model import CompactModel, build_architecture, is_unit_file, load_units
from mmprune_ext.errors import ConfigError
from mmprune_ext.model_config import architecture_of, is_compact, is_pruning
from mmprune_ext.mutators import Budget, ChannelMutator
from mmprune_ext.settings.completion import prepare_pruning
from mmprune_ext.units import slim
from mmprune_ext.units.demo_inputs import counting_inputs


@dataclass(frozen=True)
class Costs:
    """What the model of a config costs.

    Attributes:
        dense: The dense model.
        compact: The compact one; ``None`` for a config of a dense model, or where the structure
            follows from weights.
        missing: Why there is no compact one of a pruning config.
        latency: Of both in turn, or of the dense one, if it was measured.
    """

    dense: Complexity
    compact: Complexity | None = None
    missing: str = ''
    latency: Latency | LatencyComparison | None = None

    def text(self) -> str:
        """Return the numbers, and what they count, as text."""
        parts = [cost_table(self.dense, self.compact)]
        if self.latency is not None:
            parts.append(latency_table(self.latency))
        if self.missing:
            parts.append(f'Only the dense model is counted: {self.missing}\n')
        if self.dense.flops_missing:
            parts.append(f'No FLOPs by mmengine: {self.dense.flops_missing}\n')
        return '\n'.join([*parts, conventions_text()])

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers as plain values for JSON."""
        records = {name: None if value is None else value.to_dict() for name, value in
                   (('dense', self.dense), ('compact', self.compact), ('latency', self.latency))}
        for record in (records['dense'], records['compact'] or {}):
            record.pop('conventions', None)
        shares = {} if self.compact is None else removed(self.dense, self.compact)
        return {'conventions': dict(CONVENTIONS), **records, 'removed': shares,
                'compact_missing': self.missing}


def config_costs(config: Config, shape: Sequence[int] | None = None,
                 latency_batch: int | None = None) -> Costs:
    """Return what the model of a config costs, without reading any weights.

    Of a compact config, and of a pruning config whose target tells the widths without scores, the
    compact model is counted beside the dense one.

    Args:
        config: A config of a dense model, of a pruning run, or of a compact model.
        shape: ``(H, W)`` or ``(C, H, W)`` of a sample; the size of the config's data by default.
        latency_batch: Samples per pass to measure latency with; ``None`` measures none.

    Raises:
        PruningError: If a model cannot be built from the config, or does not run.
    """
    dense, compact, missing = _models(config)
    inputs = counting_inputs(config, shape)
    costs = [None if model is None else complexity(model, inputs) for model in (dense, compact)]
    speed = None
    if latency_batch is not None:
        models = [model.to(get_device()) for model in (dense, compact) if model is not None]
        measure = latency if compact is None else compare_latency
        speed = measure(*models, inputs, latency_batch)
    return Costs(*costs, missing, speed)


def _models(config: Config) -> tuple[nn.Module, nn.Module | None, str]:
    """Return the dense model of a config, the compact one if it is known, else why it is not."""
    settings = config.model
    preprocessor = config.get('data_preprocessor')
    dense = build_architecture(architecture_of(settings), preprocessor)
    if not (is_pruning(settings) or is_compact(settings)):
        return dense, None, ''
    if is_compact(settings):
        if settings.get('units') is None:
            raise ConfigError('the config\'s CompactModel has no "units", the channel-unit file that '
                              'says what is left')
        return dense, CompactModel(architecture_of(settings), settings.units, data_preprocessor=preprocessor), ''
    prepare_pruning(config)
    if settings.get('mutator') is None:
        return dense, None, f'{settings.type} has no channel mutator'
    mutator = MODELS.get(settings['mutator'].get('type', '')) if isinstance(settings['mutator'], Mapping) else None
    if settings.get('units') is None and getattr(mutator, 'learns_widths', False):
        return dense, None, 'its widths are learned in a search; count the compact config that this exports'
    budget = settings.get('budget')
    if (settings.get('units') is None and budget is not None
            and Budget.from_config(budget).by_rank):
        return dense, None, (f"its widths follow from scores (budget with spread '{budget['spread']}'); prune it "
                             'or count the exported compact config')
    return dense, _compact(dense, settings), ''


def _compact(dense: nn.Module, settings: Mapping[str, Any]) -> nn.Module:
    """Return a slimmed copy of the dense model; which channels stay does not matter for costs."""
    mutator = MODELS.build(settings['mutator'])
    if not isinstance(mutator, ChannelMutator):
        raise ConfigError('mutator should be a channel mutator such as L1Mutator, but got '
                          f'{type(mutator).__name__}')
    known = settings.get('units')
    if is_unit_file(known):
        units = mutator.transfer(dense, load_units(known), str(known))
    else:
        units = mutator.prepare(dense, None if known is None else load_units(known))
    if known is None:
        keeps = mutator.kept_numbers(dense, settings.get('target_pruning_ratio'),
                                     settings.get('budget'))
        for name, keep in keeps.items():
            units[name].choose(range(keep))
    return slim(copy.deepcopy(dense), units)
