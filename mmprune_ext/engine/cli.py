"""What every command-line tool does: errors that users read, and reading configs."""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS, init_default_scope
from mmengine.runner import Runner

from mmprune_ext.errors import CheckpointError, ConfigError, PruningError
from mmprune_ext.units import UnitSet, trace_units
from mmprune_ext.units.demo_inputs import image_size_from_config
from mmprune_ext.units.spec import atomic_write_text

if TYPE_CHECKING:
    from mmprune_ext.compact.export import Exported

EXIT_USER_ERROR = 2


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn errors that a user can mend into one message on stderr and exit code 2.

    What is raised from input (:class:`PruningError`) is shown as it is. Errors of the libraries that
    configs and data commonly cause are shown with their type; anything else keeps its traceback.
    """
    try:
        yield
    except PruningError as error:
        fail(str(error))
    except (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError) as error:
        fail(f'{error.filename or ""}: {error.strerror or error}')
    except KeyError as error:
        # A registry reports a name that it does not know as KeyError, with a long text.
        text = str(error.args[0]) if error.args else ''
        if ' is not in the ' not in text:
            raise
        fail(' '.join(text.split('. Please check')[0].split()))
    except KeyboardInterrupt:
        fail('interrupted', 130)


def fail(message: str, code: int = EXIT_USER_ERROR) -> None:
    """Print one message and leave."""
    print(f'error: {message}', file=sys.stderr)
    raise SystemExit(code)


def config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the CONFIG argument and ``--cfg-options``."""
    parser.add_argument('config', metavar='CONFIG', help='config file, or a library\'s own as '
                        '"mmpretrain::resnet/resnet18_8xb32_in1k.py"')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={},
                        help='override settings of the config, key=value')


def read_config(path: str, options: Mapping[str, Any] | None = None) -> Config:
    """Read a config from a file or by its library path, apply overrides, set the default scope.

    Raises:
        ConfigError: If there is no such config, or it is not a valid one.
    """
    try:
        if '::' in path:
            from mmengine.hub import get_config
            config = get_config(path)
        elif not Path(path).is_file():
            raise ConfigError(f'config {path}: no such file')
        else:
            config = Config.fromfile(path)
    except ConfigError:
        raise
    except Exception as error:  # a config is code, and may fail in any way
        text = ' '.join(str(error).split())[:300]
        raise ConfigError(f'config {path}: cannot be read ({type(error).__name__}: {text})'
                          ) from error
    if options:
        config.merge_from_dict(dict(options))
    if not isinstance(config.get('model'), Mapping):
        raise ConfigError(f'config {path}: has no "model" section')
    init_default_scope(config.get('default_scope') or 'mmengine')
    return config


def require_sections(config: Mapping[str, Any], keys: Sequence[str], purpose: str) -> None:
    """Check that a config has the sections that a run needs.

    Raises:
        ConfigError: Naming those it lacks.
    """
    lacking = [key for key in keys if config.get(key) is None]
    if lacking:
        raise ConfigError(f'the config lacks {", ".join(lacking)}, needed {purpose}')


def default_work_dir(config: Config, path: str, given: str | None) -> str:
    """Return the work folder: as given, as the config says, else ``work_dirs/<config name>``."""
    return given or config.get('work_dir') or f'work_dirs/{Path(path.split("::")[-1]).stem}'


def check_output_folder(path: str | Path) -> Path:
    """Make a folder and check that it can be written to, before any long work starts.

    Raises:
        PruningError: If it cannot.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f'.write_test_{os.getpid()}'  # several ranks check at once
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise PruningError(f'output folder {folder}: cannot be written to '
                           f'({error.strerror or error})') from error
    return folder


def check_datasets(config: Mapping[str, Any], splits: Sequence[str]) -> None:
    """Check that the data folders and annotation files a config names exist.

    Raises:
        ConfigError: Naming the first that does not.
    """
    for split in splits:
        dataset = (config.get(f'{split}_dataloader') or {}).get('dataset') or {}
        while isinstance(dataset.get('dataset'), Mapping):
            dataset = dataset['dataset']
        root = dataset.get('data_root') or ''
        for key in ('data_root', 'ann_file'):
            value = dataset.get(key)
            if not isinstance(value, str) or not value or '://' in value:
                continue
            path = Path(value) if key == 'data_root' else Path(root) / value
            if not path.exists():
                raise ConfigError(f'{split}_dataloader: {key} {path} does not exist; set '
                                  f'{split}_dataloader.dataset.{key} (--cfg-options) or fetch '
                                  'the data')


def set_resume(config: Config, resume: str | bool | None) -> None:
    """Set up a run that is resumed: latest checkpoint of the work folder, or a given one.

    The structure of a pruned model is taken from the checkpoint, so nothing is traced or scored
    again and the dense checkpoint is not needed.

    Raises:
        CheckpointError: If a given checkpoint does not exist or cannot be read.
    """
    if not resume:
        return
    from mmengine.runner import find_latest_checkpoint

    from mmprune_ext.algorithms.base import units_from_state
    from mmprune_ext.compact.checkpoint import EXTRA_STATE, read_checkpoint
    config.resume = True
    path = resume if isinstance(resume, str) else None
    if path is None and (Path(config.work_dir) / 'last_checkpoint').is_file():
        path = find_latest_checkpoint(config.work_dir)
    config.load_from = path
    if path is None:
        return  # nothing to resume from: a fresh run
    if not Path(path).is_file():
        raise CheckpointError(f'--resume: checkpoint {path}: no such file')
    state = read_checkpoint(path)['state_dict'].get(EXTRA_STATE)
    if state is not None:
        config.model.units = copy.deepcopy(units_from_state(state).to_json())


def set_checkpoint(config: Config, path: str | None) -> None:
    """Choose the weights that a test runs on: given ones, or those a compact config names.

    Raises:
        CheckpointError: If there are none, or they cannot be read.
    """
    from mmprune_ext.algorithms.base import units_from_state
    from mmprune_ext.compact.checkpoint import EXTRA_STATE, read_checkpoint
    compact = str(config.model.get('type', '')).endswith('CompactModel')
    if path is None:
        if not (compact and config.model.get('init_cfg')) and not config.get('load_from'):
            raise CheckpointError('no weights to test: give a checkpoint (only a compact config '
                                  'names its own)')
        return
    state = read_checkpoint(path)['state_dict'].get(EXTRA_STATE)
    if state is not None and 'architecture' in config.model and not compact:
        config.model.units = units_from_state(state).to_json()
    elif compact:
        # These weights are loaded strictly, with a clear error; the Runner's own loading only logs.
        config.model.init_cfg = dict(type='Pretrained', checkpoint=path)
        config.load_from = None
        return
    config.load_from = path


def launcher_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--launcher``."""
    parser.add_argument('--launcher', default='none', choices=['none', 'pytorch', 'slurm', 'mpi'],
                        help='how the processes of a distributed run were started')


def tracing_arguments(parser: argparse.ArgumentParser, scope: bool = True) -> None:
    """Add what tells how a model is traced."""
    parser.add_argument('--input-size', nargs=2, type=int, metavar=('H', 'W'),
                        help='image size to run the model on (default: the size in the config)')
    if scope:
        parser.add_argument('--scope', nargs='+', default=None, metavar='MODULE',
                            help='submodules to prune, or all (default: backbone)')


def input_size_of(config: Mapping[str, Any], given: Sequence[int] | None) -> tuple[int, int] | None:
    """Return the image size: as given, else what the config's pipelines say."""
    return tuple(given) if given else image_size_from_config(config)


def prepare_pruning(config: Config) -> None:
    """Complete the config of a pruning run: demo inputs for its mutator, the pruning hook."""
    model = config.model
    if 'architecture' not in model or str(model.type).endswith('CompactModel'):
        return
    mutator = model.get('mutator')
    size = image_size_from_config(config)
    if isinstance(mutator, Mapping) and mutator.get('demo_inputs') is None and size is not None:
        mutator['demo_inputs'] = list(size)
    hooks = list(config.get('custom_hooks') or [])
    if not any(str(hook.get('type')).endswith('PruningHook') for hook in hooks):
        config.custom_hooks = [*hooks, dict(type='mmprune_ext.PruningHook')]


def build_runner(config: Config, launcher: str) -> Runner:
    """Start the processes' group if there is one, and build the Runner."""
    from mmprune_ext.engine.dist import init_dist
    config = init_dist(config, launcher)
    if 'runner_type' in config:
        return RUNNERS.build(config)
    return Runner.from_cfg(config)


def trace_config(config: Config, scope: Sequence[str] | None, size: Sequence[int] | None) -> UnitSet:
    """Build the model of a config, or the architecture of a pruning config, and trace its units."""
    from mmprune_ext.compact.compact_model import build_architecture
    settings: Mapping[str, Any] = {}
    architecture = config.model
    if 'architecture' in architecture and not str(architecture.type).endswith('CompactModel'):
        settings = architecture.get('mutator') or {}
        architecture = architecture.architecture
    model = build_architecture(architecture, config.get('data_preprocessor'))
    units = trace_units(model, settings.get('demo_inputs') or input_size_of(config, size),
                        scope or settings.get('scope', 'backbone'))
    units.exclude(settings.get('exclude', ()))
    units.set_init_args(settings.get('divisor', 1), settings.get('min_channels', 1))
    return units


def write_metrics(metrics: Mapping[str, Any], path: str) -> None:
    """Write metrics as JSON."""
    numbers = {key: float(value) for key, value in metrics.items()
               if isinstance(value, (int, float)) or hasattr(value, 'item')}
    atomic_write_text(json.dumps(numbers, indent=2) + '\n', path)


def print_exported(exported: Exported) -> None:
    """Print the report and the paths of an export."""
    print(exported.report.text())
    for path in (exported.checkpoint, exported.units, exported.config,
                 exported.checkpoint.parent / 'report.txt'):
        print(path)


def number_or_text(text: str | None) -> float | str | None:
    """Read an argument that is a number or the text of something else."""
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return text
