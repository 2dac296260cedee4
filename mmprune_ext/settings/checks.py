"""Checks of what a run reads, before any long work starts."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.registry import DATASETS

from mmprune_ext.compact.compact_model import is_unit_file
from mmprune_ext.errors import ConfigError
from mmprune_ext.model_config import is_compact, is_pruning
from mmprune_ext.paths import missing, require_file
from mmprune_ext.settings.annotations import check_annotations, check_classes


def check_datasets(config: Mapping[str, Any], splits: Sequence[str]) -> None:
    """Check the data that a config names: folders and files exist, annotations fit the model.

    Raises:
        ConfigError: Naming the first that does not.
    """
    for split in splits:
        _check_batch_size(config.get(f'{split}_dataloader'), f'{split}_dataloader')
        dataset, kind = _dataset(config.get(f'{split}_dataloader'))
        for key, path in _existing_paths(dataset, kind, f'{split}_dataloader'):
            if key == 'ann_file':
                check_annotations(path, dataset, kind, split)
        check_classes(config, dataset, kind, split)
        _check_evaluators(config.get(f'{split}_evaluator'), split)


def check_calibration(model: Mapping[str, Any]) -> None:
    """Check the data that a pruning config calibrates and repairs on; a run that does neither needs none.

    Raises:
        ConfigError: Naming the first folder or file that does not exist.
    """
    if model.get('units') is None and model.get('scores') is None:
        _existing_paths(*_dataset(calibration_of(model).get('dataloader')), 'model.calibration.dataloader')
    repair = model.get('repair')
    if isinstance(repair, Mapping) and (model.get('units') is None or is_unit_file(model['units'])):
        _existing_paths(*_dataset(repair.get('dataloader')), 'model.repair.dataloader')


def check_files(model: Mapping[str, Any], weights: bool = True) -> None:
    """Check that the weights, scores and channel units that a pruning or a compact config names are there.

    Args:
        model: The model section.
        weights: Whether those that are to be pruned are read; a run that goes on has its own.

    Raises:
        PruningError: If they are not.
    """
    units = model.get('units') if is_pruning(model) or is_compact(model) else None
    if weights and is_pruning(model) and (units is None or is_unit_file(units)):
        for key in ('checkpoint', 'scores'):
            if isinstance(model.get(key), str):
                require_file(model[key], key)
    if isinstance(units, (str, Path)) and not Path(units).is_file():
        raise ConfigError(f'model.units: {units}: {missing(units)}; give a channel-unit file with choices, such as the '
                          'units.json beside a compact model')


def calibration_of(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of a pruning config's calibration, empty if it has none."""
    mutator = model.get('mutator')
    found = model.get('calibration') or (mutator.get('calibration') if isinstance(mutator, Mapping) else None)
    return found if isinstance(found, Mapping) else {}


def _check_batch_size(dataloader: Any, where: str) -> None:
    size = dataloader.get('batch_size') if isinstance(dataloader, Mapping) else None
    if size is not None and (type(size) is not int or size < 1):
        raise ConfigError(f'{where}: batch_size should be an integer of at least 1, but got {size!r}')


def _dataset(dataloader: Any) -> tuple[Mapping[str, Any], type | None]:
    """Return the config of a dataloader's dataset, without what is wrapped around it, and its class."""
    dataset = (dataloader.get('dataset') if isinstance(dataloader, Mapping) else None) or {}
    while isinstance(dataset.get('dataset'), Mapping):
        dataset = dataset['dataset']
    return dataset, _dataset_class(dataset)


def _existing_paths(dataset: Mapping[str, Any], kind: type | None, where: str) -> list[tuple[str, Path]]:
    """Return the local paths that a dataset reads, with their keys; all of them exist."""
    found = [] if _downloads(dataset, kind) else _data_paths(dataset)
    for key, path in found:
        if not path.exists():
            raise ConfigError(f'{where}: {key} {path} does not exist{_seen_from(path)}; set {where}.dataset.{key} '
                              '(--cfg-options) or fetch the data')
    return found


def _seen_from(path: str | Path) -> str:
    """Return, for a message, where a relative path leads."""
    return '' if Path(path).is_absolute() else f' ({Path(path).absolute()}, from the folder that the command runs in)'


def _check_evaluators(evaluators: Any, split: str) -> None:
    for evaluator in evaluators if isinstance(evaluators, Sequence) else [evaluators]:
        path = evaluator.get('ann_file') if isinstance(evaluator, Mapping) else None
        if isinstance(path, str) and '://' not in path and not Path(path).exists():
            raise ConfigError(f'{split}_evaluator: ann_file {path} does not exist{_seen_from(path)}; set '
                              f'{split}_evaluator.ann_file (--cfg-options) or fetch the data')


def _dataset_class(dataset: Mapping[str, Any]) -> type | None:
    kind = dataset.get('type')
    if isinstance(kind, str):
        try:
            with DATASETS.switch_scope_and_registry(None) as registry:  # of the default scope
                kind = registry.get(kind)
        except RuntimeError:  # an unknown name, which building it reports
            return None
    return kind if inspect.isclass(kind) else None


def _downloads(dataset: Mapping[str, Any], kind: type | None) -> bool:
    """Whether a dataset fetches itself where it is missing, as mmpretrain's CIFAR10 does."""
    option = None if kind is None else inspect.signature(kind).parameters.get('download')
    return bool(dataset.get('download', option is not None and option.default is True))


def _data_paths(dataset: Mapping[str, Any]) -> list[tuple[str, Path]]:
    """Return the local paths that a dataset's config names, with their keys."""
    root = dataset.get('data_root') or ''
    if not isinstance(root, str) or '://' in root:
        return []
    found = [('data_root', Path(root))] if root else []
    prefix = dataset.get('data_prefix')
    named = {'ann_file': dataset.get('ann_file'),
             **({f'data_prefix.{key}': value for key, value in prefix.items()}
                if isinstance(prefix, Mapping) else {'data_prefix': prefix})}
    # Joining to an absolute path gives that path, as the datasets do it.
    found += [(key, Path(root) / value) for key, value in named.items()
              if isinstance(value, str) and value and '://' not in value]
    return found
