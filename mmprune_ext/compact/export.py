"""Write a compact model: checkpoint, channel-unit file, config and report."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from torch import nn

import mmprune_ext
from mmprune_ext.analysis import Report, compare_latency, complexity
from mmprune_ext.analysis.report import Mended, MetricDrop, Training
from mmprune_ext.analysis.stripe_forms import FormTimes, fastest_forms
from mmprune_ext.atomic import atomic_files
from mmprune_ext.compact.compact_model import build_architecture, relative_to_dense
from mmprune_ext.compact.padding import pad_widths
from mmprune_ext.compact.provenance import provenance_of, target_text
from mmprune_ext.compact.training import training_of
from mmprune_ext.errors import PruningError
from mmprune_ext.model_config import DISTILLATION, JOBS, compact_section, is_compact, is_pruning
from mmprune_ext.ops import StripeConv2d
from mmprune_ext.ops.stripe_conv2d import FORMS
from mmprune_ext.paths import COMPACT, DEPLOYED
from mmprune_ext.registry import HOOKS, SCOPE
from mmprune_ext.units import UnitSet
from mmprune_ext.units.demo_inputs import DemoInputs

CHECKPOINT, UNITS, CONFIG = 'compact.pth', 'units.json', 'compact_config.py'
# Where a run that exports itself writes them, in its work folder.
FOLDER = 'compact'


@dataclass(frozen=True)
class Extras:
    """What an export tells and measures beside costs and channels.

    Attributes:
        latency_batch: Samples per pass to measure latency with; ``None`` measures none.
        metrics: Metrics by stage, then by name (:class:`mmprune_ext.analysis.Report`).
        forms: How convolutions that have lost stripes compute: ``'dense'``, ``'stripes'``, ``'measure'`` for the
            faster one on this machine, or ``None`` for what is known, and measured where nothing is.
        forms_batch: Samples of a pass to measure that with.
        drop: What the choice costs of the metric, where a sensitivity file made it.
        mended: What became of the model without training, where more than new batch statistics was tried.
        pad_to: Pad the widths with zero channels to multiples of this.
        asked: What a command knows of where the model comes from
            (:func:`mmprune_ext.compact.provenance.provenance_of`).
    """

    latency_batch: int | None = None
    metrics: Mapping[str, Mapping[str, float]] | None = None
    forms: str | None = None
    forms_batch: int = 1
    drop: MetricDrop | None = None
    mended: Mended | None = None
    pad_to: int | None = None
    asked: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Exported:
    """Paths of what an export wrote, and its report."""

    checkpoint: Path
    units: Path
    config: Path
    report: Report


def export(model: nn.Module, units: UnitSet, config: Config, architecture: Mapping[str, Any],
           folder: str | Path, demo_inputs: DemoInputs = None,
           meta: Mapping[str, Any] | None = None, extras: Extras | None = None) -> Exported:
    """Write what is needed to test, fine-tune and ship a compact model.

    Args:
        model: The compact model, of plain layers.
        units: Its channel units, relative to the architecture.
        config: The config of the run: data, schedule, evaluator.
        architecture: Config of the model that was pruned. Where that was compact already, what is
            written is relative to the dense model behind it.
        folder: Where to write. The files of an earlier result are replaced, all at once, and those of a model that
            was deployed there go; others stay.
        demo_inputs: One sample's input (:func:`mmprune_ext.analysis.complexity`).
        meta: Entries of the source checkpoint's meta to keep (class names).
        extras: What else the report tells.

    Raises:
        PruningError: If the folder cannot be written to.
    """
    folder = Path(folder)
    architecture, units = relative_to_dense(architecture, units)
    dense = build_architecture(architecture, config.get('data_preprocessor'))
    extras = extras or Extras()
    padding = None
    if extras.pad_to is not None:
        model, units, padding = pad_widths(model, units, dense, extras.pad_to, demo_inputs)
    times = _choose_forms(model, units, demo_inputs, extras)
    standing_alone = compact_config(config, architecture)
    if isinstance(demo_inputs, Mapping):
        # A hook may have stood in the mutator, which the compact config does without.
        standing_alone.demo_inputs = dict(demo_inputs)
    training = training_of(standing_alone, _source(config))
    report = _report(dense, model, units, demo_inputs, extras, times, training)
    source = provenance_of(config, extras.asked)
    report = replace(report, provenance=source, title=_title(architecture, source) or report.title,
                     padding=() if padding is None else padding.lines())
    kept = {key: meta[key] for key in ('dataset_meta', 'CLASSES', 'PALETTE') if meta and key in meta}
    content = {'state_dict': {key: value.cpu() for key, value in model.state_dict().items()},
               'meta': {**kept, 'channel_units': units.to_json(),
                        'mmprune_ext_version': mmprune_ext.__version__}}
    try:
        with atomic_files(folder, CONFIG, (*COMPACT, *DEPLOYED)) as temporary:
            torch.save(content, temporary / CHECKPOINT)
            units.save(temporary / UNITS)
            (temporary / CONFIG).write_text(standing_alone.pretty_text)
            report.save(temporary)
    except (OSError, RuntimeError) as error:
        raise PruningError(f'cannot write {folder}: {error}') from error
    return Exported(folder / CHECKPOINT, folder / UNITS, folder / CONFIG, report)


def _choose_forms(model: nn.Module, units: UnitSet, demo_inputs: DemoInputs, extras: Extras) -> dict[str, FormTimes]:
    """Let the layers of a model that have lost stripes compute in their form, and tell the units."""
    layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, StripeConv2d)}
    times: dict[str, FormTimes] = {}
    if extras.forms == 'measure' or extras.forms is None and any(units.stripes[path].form is None for path in layers):
        print_log(f'measuring {len(layers)} convolutions that have lost stripes', logger='current')
        on_device = copy.deepcopy(model).to(get_device())
        times = fastest_forms(on_device, demo_inputs, extras.forms_batch)
    for path, stripes in units.stripes.items():
        known = extras.forms if extras.forms in FORMS else stripes.form if extras.forms is None else None
        form = known or (times[path].form if path in times else 'dense')
        units.stripes[path] = stripes.in_form(form)
        if path in layers:
            layers[path].set_form(form)
    return times


def _source(config: Config) -> str:
    """Return where the schedule of a run's config is from, in words."""
    model = config.get('model') or {}
    if is_pruning(model):
        return 'the pruning run'
    return 'the run that this model is of' if is_compact(model) else 'the dense model'


def _title(architecture: Mapping[str, Any], source: Mapping[str, Any]) -> str:
    """Return network, method and target in one line; empty where the method is not known."""
    if not source['method']:
        return ''
    parts = [architecture.get('type'), *((architecture.get('backbone') or {}).get(key) for key in ('type', 'depth'))]
    names = [str(getattr(part, '__name__', part)).rpartition('.')[2] for part in parts if part is not None]
    target = target_text(source)
    return f'{" ".join(names)}: {source["method"]}{f", {target}" if target else ""}'[:120]


def _report(dense: nn.Module, compact: nn.Module, units: UnitSet, demo_inputs: DemoInputs,
            extras: Extras, times: Mapping[str, FormTimes], training: Training | None) -> Report:
    costs = [complexity(model, demo_inputs) for model in (dense, compact)]
    speed = None
    if extras.latency_batch is not None:
        device = get_device()
        speed = compare_latency(dense.to(device), copy.deepcopy(compact).to(device), demo_inputs,
                                extras.latency_batch)
    return Report(*costs, units, speed, extras.metrics, forms=times, training=training, drop=extras.drop,
                  mended=extras.mended)


def compact_config(config: Config, architecture: Mapping[str, Any]) -> Config:
    """Return a config that stands alone and builds the compact model.

    ``{{ fileDirname }}`` is mmengine's name for the folder of the config file, so the exported
    folder can be moved.
    """
    content = copy.deepcopy(config.to_dict())
    jobs = [key for key in JOBS if content.get(key) is not None]
    for key in ('load_from', 'resume', 'work_dir', 'launcher', 'model', DISTILLATION, *JOBS,
                *(['runner_type'] if jobs else [])):
        content.pop(key, None)
    imports = (content.get('custom_imports') or {}).get('imports', [])
    imports = [imports] if isinstance(imports, str) else list(imports)
    content['custom_imports'] = {
        'imports': imports if 'mmprune_ext' in imports else [*imports, 'mmprune_ext'],
        'allow_failed_imports': False}
    hooks = [h for h in content.get('custom_hooks') or [] if not _for_pruning_only(h)]
    if not any(h.get('type') == 'mmprune_ext.EpochSeedHook' for h in hooks):
        # Fine-tuning that is killed and resumed ends as if it had not been.
        hooks.append({'type': 'mmprune_ext.EpochSeedHook'})
    content['custom_hooks'] = hooks
    preprocessor = content.get('data_preprocessor')
    if preprocessor and not architecture.get('data_preprocessor') and content.get('default_scope') != 'mmpretrain':
        # The Runner hands it to the model; of the libraries' own APIs mmpretrain's alone does.
        architecture = {**architecture, 'data_preprocessor': preprocessor}
    content['model'] = compact_section(without_pretrained(architecture), '{{ fileDirname }}/' + UNITS,
                                       '{{ fileDirname }}/' + CHECKPOINT)
    return Config(content)


def _for_pruning_only(hook: Mapping[str, Any]) -> bool:
    """Whether a hook serves a pruning algorithm, and has nothing to do for a plain model."""
    kind = hook.get('type')
    if isinstance(kind, str):
        kind = HOOKS.get(kind) if kind.startswith(f'{SCOPE}.') else None
    return getattr(kind, 'for_pruning_only', False)


def without_pretrained(value: Any) -> Any:
    """Return a copy of a model config without the checkpoints that its parts start from."""
    if isinstance(value, Mapping):
        return {key: without_pretrained(item) for key, item in value.items()
                if not (key == 'pretrained' or (
                    key == 'init_cfg' and isinstance(item, Mapping)
                    and item.get('type') == 'Pretrained'))}
    if isinstance(value, (list, tuple)):
        return type(value)(without_pretrained(item) for item in value)
    return value
