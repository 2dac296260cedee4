"""Reading a config, and what its sections say."""

from __future__ import annotations

import copy
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import init_default_scope
from mmengine.utils import import_modules_from_strings

from mmprune_ext.errors import ConfigError
from mmprune_ext.model_config import take_student
from mmprune_ext.paths import missing
from mmprune_ext.settings.checks import calibration_of, check_datasets
from mmprune_ext.settings.libraries import drop_own_scope, find_by_module_name, library_config


def read_config(path: str, options: Mapping[str, Any] | None = None) -> Config:
    """Read a config from a file or by its library path, apply overrides, set the default scope.

    Of a distillation its model is the student's (:func:`mmprune_ext.model_config.take_student`).

    Raises:
        ConfigError: If there is no such config, or it is not a valid one.
    """
    try:
        file = library_config(path) if '::' in path else Path(path)
        if not file.is_file():
            raise ConfigError(f'config {path}: {f"no such file {file}" if "::" in path else missing(file)}')
        find_by_module_name()
        config = Config.fromfile(file)
        drop_own_scope(config)
        library = path.partition('::')[0]
        if '::' in path and library != 'mmprune_ext' and config.get('default_scope') is None:
            config.default_scope = library  # which some of its configs do not say
    except ConfigError:
        raise
    except Exception as error:  # a config is code, and may fail in any way
        text = ' '.join(str(error).split())[:300]
        raise ConfigError(f'config {path}: cannot be read ({type(error).__name__}: {text})'
                          ) from error
    before = {key: copy.deepcopy(config.get(key)) for key in ('train_dataloader', 'data_preprocessor')}
    try:
        config.merge_from_dict(dict(options or {}))
    except Exception as error:  # merging has no error of its own
        raise ConfigError(f'config {path}: --cfg-options do not fit it: '
                          f'{type(error).__name__}: {error}') from error
    _find_beside(config, file.absolute().parent)
    take_student(config)
    if not isinstance(config.get('model'), Mapping):
        raise ConfigError(f'config {path}: has no "model" section')
    if config.model.get('type') is None:
        raise ConfigError(f'config {path}: its model has no "type"')
    _follow(calibration_of(config.model).get('dataloader'), before['train_dataloader'], config.get('train_dataloader'))
    repair = config.model.get('repair')
    _follow(repair.get('dataloader') if isinstance(repair, Mapping) else None, before['train_dataloader'],
            config.get('train_dataloader'))
    if isinstance(config.get('search'), Mapping):
        _follow(config.search.get('train_dataloader'), before['train_dataloader'], config.get('train_dataloader'))
    _follow(config.model.get('data_preprocessor'), before['data_preprocessor'], config.get('data_preprocessor'))
    scope = config.get('default_scope') or 'mmengine'
    if scope not in ROOT_MODELS.children and importlib.util.find_spec(scope) is None:
        raise ConfigError(f'config {path}: default_scope "{scope}" is neither an installed library nor a '
                          'scope that custom_imports registers; libraries are mmpretrain, mmdet, mmseg, '
                          'mmpose')
    init_default_scope(scope)
    return config


# Under which configs name files that are weights, or that tell what to prune.
_FILES = ('load_from', 'checkpoint', 'units', 'scores', 'sensitivity', 'target_pruning_ratio')


def _find_beside(config: Config, folder: Path) -> None:
    """Let a config name files that lie beside it; those that the folder of the run has come first."""
    for section in (config, *_sections(config.get('model'))):
        for key in _FILES:
            path = section.get(key)
            # By os.path, for which a sparsity string of any length is no file, and no error.
            if not isinstance(path, str) or not path or '://' in path or os.path.exists(path):
                continue
            if os.path.isfile(folder / path):
                # On stderr: stdout may be read as JSON.
                print(f'{key}: {path} is taken from the folder of the config: {folder / path}', file=sys.stderr)
                section[key] = str(folder / path)


def _sections(value: Any) -> Iterator[Any]:
    """Yield the dicts in a section of a config, itself first."""
    if isinstance(value, Mapping):
        yield value
    for item in value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ():
        yield from _sections(item)


def make_known(config: Config) -> None:
    """Make a config's types known and set its scope, in a process that has not read it itself."""
    if config.get('custom_imports'):
        import_modules_from_strings(**config.custom_imports)
    find_by_module_name()
    init_default_scope(config.get('default_scope') or 'mmengine')


def _follow(copied: Any, before: Any, now: Any) -> None:
    """Override a copy of a section as the section itself was, where the two were alike before.

    The dataloader of a calibration or a repair is one, which configs write as ``{{_base_.train_dataloader}}``; that of
    a search, which has batches of its own; and the data preprocessor in the model of an exported config.
    """
    if not all(isinstance(value, Mapping) for value in (copied, before, now)):
        return
    for key in set(copied) & set(before) & set(now):
        if copied[key] == before[key]:
            copied[key] = copy.deepcopy(now[key])


def require_sections(config: Mapping[str, Any], keys: Sequence[str], purpose: str) -> None:
    """Check that a config has the sections that a run needs.

    Raises:
        ConfigError: Naming those it lacks.
    """
    lacking = [key for key in keys if config.get(key) is None]
    if lacking:
        raise ConfigError(f'the config lacks {", ".join(lacking)}, needed {purpose}')


def require_training_data(config: Mapping[str, Any], purpose: str) -> None:
    """Check that a config has training data, and that it exists.

    Raises:
        ConfigError: If not.
    """
    require_sections(config, ['train_dataloader'], purpose)
    check_datasets(config, ['train'])


def default_work_dir(config: Config, path: str, given: str | None) -> str:
    """Return the work folder: as given, as the config says, else ``work_dirs/<config name>``."""
    return given or config.get('work_dir') or f'work_dirs/{Path(path.split("::")[-1]).stem}'
