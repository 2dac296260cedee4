"""What every command-line tool does: errors that users read, and reading configs."""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.util
import json
import shutil
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import RUNNERS, init_default_scope
from mmengine.runner import Runner

from mmprune_ext.atomic import atomic_write
from mmprune_ext.engine.checks import calibration_of
from mmprune_ext.engine.libraries import find_by_module_name, library_config
from mmprune_ext.engine.user_errors import fail as fail
from mmprune_ext.engine.user_errors import user_errors as user_errors
from mmprune_ext.errors import CheckpointError, ConfigError
from mmprune_ext.model_config import is_compact, is_pruning
from mmprune_ext.registry import MODELS
from mmprune_ext.units.demo_inputs import counting_inputs, tracing_inputs


class SettingsAction(DictAction):
    """mmengine's reader of KEY=VALUE that tells what it cannot read."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,
                 option_string: str | None = None) -> None:
        """Store the settings as a dict."""
        for value in values:
            if not value.partition('=')[0] or '=' not in value:
                raise argparse.ArgumentError(self, f'expected KEY=VALUE, got "{value}"')
        try:
            super().__call__(parser, namespace, values, option_string)
        except (ValueError, AssertionError) as error:
            raise argparse.ArgumentError(self, f'{" ".join(values)}: {error}') from error


def positive(text: str) -> int:
    """Read an argument that is an integer of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f'expected an integer of at least 1, got {text}')
    return number


def not_negative(text: str) -> int:
    """Read an argument that is an integer of at least 0."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f'expected an integer of at least 0, got {text}')
    return number


def config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the CONFIG argument and ``--cfg-options``."""
    parser.add_argument('config', metavar='CONFIG', help='config file, or a library\'s own as '
                        '"mmpretrain::resnet/resnet18_8xb32_in1k.py"')
    parser.add_argument('--cfg-options', nargs='+', action=SettingsAction, default={},
                        metavar='KEY=VALUE', help='override settings of the config')


def read_config(path: str, options: Mapping[str, Any] | None = None) -> Config:
    """Read a config from a file or by its library path, apply overrides, set the default scope.

    Raises:
        ConfigError: If there is no such config, or it is not a valid one.
    """
    try:
        file = library_config(path) if '::' in path else Path(path)
        if not file.is_file():
            raise ConfigError(f'config {path}: no such file{f" {file}" if "::" in path else ""}')
        find_by_module_name()
        config = Config.fromfile(file)
    except ConfigError:
        raise
    except Exception as error:  # a config is code, and may fail in any way
        text = ' '.join(str(error).split())[:300]
        raise ConfigError(f'config {path}: cannot be read ({type(error).__name__}: {text})'
                          ) from error
    before = copy.deepcopy(config.get('train_dataloader'))
    try:
        config.merge_from_dict(dict(options or {}))
    except Exception as error:  # merging has no error of its own
        raise ConfigError(f'config {path}: --cfg-options do not fit it: '
                          f'{type(error).__name__}: {error}') from error
    if not isinstance(config.get('model'), Mapping):
        raise ConfigError(f'config {path}: has no "model" section')
    if config.model.get('type') is None:
        raise ConfigError(f'config {path}: its model has no "type"')
    _follow_training_data(config, before)
    scope = config.get('default_scope') or 'mmengine'
    if scope not in ROOT_MODELS.children and importlib.util.find_spec(scope) is None:
        raise ConfigError(f'config {path}: default_scope "{scope}" is neither an installed library nor a '
                          'scope that custom_imports registers; libraries are mmpretrain, mmdet, mmseg, '
                          'mmpose')
    init_default_scope(scope)
    return config


def _follow_training_data(config: Config, before: Mapping[str, Any] | None) -> None:
    """Override a calibration's dataloader as the training's was, where the two were alike before.

    Configs write the one as ``{{_base_.train_dataloader}}``, which is a copy of it.
    """
    loader = calibration_of(config.model).get('dataloader')
    now = config.get('train_dataloader')
    if not all(isinstance(value, Mapping) for value in (loader, before, now)):
        return
    for key in set(loader) & set(before) & set(now):
        if loader[key] == before[key]:
            loader[key] = copy.deepcopy(now[key])


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


def set_resume(config: Config, resume: str | bool | None) -> str | None:
    """Set up a run that is resumed: latest checkpoint of the work folder, or a given one.

    The structure of a pruned model is taken from the checkpoint, so nothing is traced or scored
    again and the dense checkpoint is not needed.

    Returns:
        The checkpoint, or ``None`` for a run that starts from the beginning.

    Raises:
        CheckpointError: If the checkpoint does not exist, cannot be read, or is of no run of this
            config.
    """
    if not resume and config.get('resume'):
        resume = config.get('load_from') or True
    if not resume:
        return None
    from mmengine.runner import find_latest_checkpoint

    from mmprune_ext.compact.checkpoint import read_checkpoint
    config.resume = True
    path = resume if isinstance(resume, str) else None
    if path is None and (Path(config.work_dir) / 'last_checkpoint').is_file():
        path = find_latest_checkpoint(config.work_dir)
    config.load_from = path
    if path is None:
        return None
    if not Path(path).is_file():
        raise CheckpointError(f'--resume: checkpoint {path}: no such file')
    stored = read_checkpoint(path)
    if 'epoch' not in stored['meta']:
        raise CheckpointError(f'--resume: checkpoint {path} holds weights but no state of a run; to '
                              'train from these weights, give them as load_from (--cfg-options)')
    _take_structure(config, path, stored)
    if is_compact(config.model):
        # All weights come from the checkpoint; the exported ones may be gone.
        config.model.init_cfg = None
    return path


def set_start(config: Config) -> str | None:
    """Let ``load_from`` of a pruning run name the weights that are pruned, or the run that it starts from.

    The Runner would load it into a model that is pruned already.

    Returns:
        The checkpoint of a pruning run, which the Runner will load; ``None`` for any other start.

    Raises:
        CheckpointError: If it cannot be read.
        ConfigError: If ``checkpoint`` of the algorithm names other weights.
    """
    from mmprune_ext.compact.checkpoint import read_checkpoint
    path, model = config.get('load_from'), config.model
    if path is None or not is_pruning(model) or model.get('units') is not None:
        return None
    if read_checkpoint(path)['run_units'] is not None:
        model.units = path
        return path
    if model.get('checkpoint') not in (None, path):
        raise ConfigError(f'load_from ({path}) and model.checkpoint ({model.checkpoint}) both name weights to '
                          'prune; set one of them to None')
    model.checkpoint, config.load_from = path, None
    return None


def set_mixed_precision(config: Config) -> None:
    """Train in automatic mixed precision.

    Raises:
        ConfigError: If there is no accelerator, which mmengine's mixed precision needs.
    """
    if get_device() == 'cpu':
        raise ConfigError('--amp: mixed precision needs an accelerator, and this process sees none; '
                          'leave --amp out')
    config.optim_wrapper.type = 'AmpOptimWrapper'
    config.optim_wrapper.setdefault('loss_scale', 'dynamic')


def set_checkpoint(config: Config, path: str | None) -> str | None:
    """Choose the weights that a test runs on: given ones, or those a compact config names.

    Where the file that it names does not exist, those that a run in the work folder exported.

    Returns:
        The checkpoint that the Runner will load, ``None`` if the model loads its own.

    Raises:
        CheckpointError: If there are none, or they cannot be read.
    """
    from mmprune_ext.compact.checkpoint import read_checkpoint
    path = path or config.get('load_from')
    compact = is_compact(config.model)
    if path is None:
        if not (compact and config.model.get('init_cfg')):
            raise CheckpointError('no weights to test: give a checkpoint (only a compact config '
                                  'names its own)')
        config.model.init_cfg = dict(type='Pretrained', checkpoint=_compact_weights(config), strict=True)
        return None
    stored = read_checkpoint(path)
    if compact:
        # These weights are loaded strictly, with a clear error; the Runner's own loading only logs.
        config.model.init_cfg = dict(type='Pretrained', checkpoint=path, strict=True)
        config.load_from = None
        return None
    _take_structure(config, path, stored)
    config.load_from = path
    return path


def _compact_weights(config: Config) -> str:
    """Return the weights that a compact config names, or those that the run of its folder exported."""
    from mmprune_ext.compact.export import CHECKPOINT, FOLDER
    named = str(config.model.init_cfg.checkpoint)
    exported = Path(config.work_dir) / FOLDER
    if '://' in named or Path(named).is_file():
        return named
    if (exported / CHECKPOINT).is_file():
        return str(exported / CHECKPOINT)
    raise CheckpointError(
        f'the config names the weights {named}: no such file, and {exported} holds none either; export '
        f'a trained run with tools/export_compact.py -o {exported}, or give weights by --checkpoint')


def _take_structure(config: Config, path: str, stored: Mapping[str, Any]) -> None:
    """Give a pruning run the structure of its checkpoint; refuse a checkpoint of another kind."""
    pruning = is_pruning(config.model)
    if pruning and stored['run_units'] is None:
        raise CheckpointError(f'checkpoint {path} is not of a pruning run: it holds no channel '
                              f'units, which the {config.model.type} of this config needs')
    if stored['run_units'] is not None and not pruning:
        raise CheckpointError(f'checkpoint {path} is of a pruning run, but the config\'s model is a '
                              f'{config.model.type}; give the config of that run, or export the '
                              'checkpoint with tools/export_compact.py')
    if pruning:
        # By its path: the units themselves would be formatted with every dump of the config.
        config.model.units = path


def launcher_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--launcher``."""
    parser.add_argument('--launcher', default='none', choices=['none', 'pytorch', 'slurm', 'mpi'],
                        help='how the processes of a distributed run were started')


def tracing_arguments(parser: argparse.ArgumentParser, scope: bool = True) -> None:
    """Add what tells how a model is traced."""
    parser.add_argument('--input-size', nargs=2, type=positive, metavar=('H', 'W'),
                        help='image size to run the model on (default: the size in the config)')
    if scope:
        parser.add_argument('--scope', nargs='+', default=None, metavar='MODULE',
                            help='submodules to prune, or all (default: backbone)')


def prepare_pruning(config: Config) -> None:
    """Complete the config of a pruning run: demo inputs and data for its mutator, hooks."""
    from mmprune_ext.algorithms import PruneAlgorithm
    model = config.model
    if not is_pruning(model):
        return
    kind = MODELS.get(model.type) if isinstance(model.type, str) else model.type
    default = getattr(kind, 'mutator_type', '')
    if model.get('mutator') is None and default:
        model.mutator = dict(type=default)
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
    for name in getattr(kind, 'required_hooks', PruneAlgorithm.required_hooks):
        hooks = list(config.get('custom_hooks') or [])
        if not any(_hook_name(hook) == name.rpartition('.')[2] for hook in hooks):
            config.custom_hooks = [*hooks, dict(type=name)]


def _hook_name(hook: Mapping[str, Any]) -> str:
    """Return the class name of a hook that a config gives by name or by class."""
    kind = hook.get('type')
    return getattr(kind, '__name__', str(kind).rpartition('.')[2])


def build_runner(config: Config, launcher: str, checkpoint: str | None = None,
                 loops: Sequence[str] = ()) -> Runner:
    """Start the processes' group if there is one, and build the Runner.

    Args:
        config: The config of the run.
        launcher: What started the processes.
        checkpoint: Weights that the Runner is going to load and that must fit the model exactly;
            mmengine itself only logs what does not fit.
        loops: Loops (``train``, ``val``, ``test``) to build with their data at once, so that what is
            wrong with these shows before anything is trained, and leaves nothing behind.

    Raises:
        ConfigError: If a dataset has no samples.
    """
    from mmprune_ext.compact.checkpoint import load_weights
    from mmprune_ext.engine.dist import init_dist
    from mmprune_ext.engine.hooks import unwrapped
    config = init_dist(config, launcher)
    with _nothing_left_on_failure(Path(config.work_dir)):
        runner = RUNNERS.build(config) if 'runner_type' in config else Runner.from_cfg(config)
        if checkpoint is not None:
            load_weights(unwrapped(runner), checkpoint)
        for name in loops:
            _build_loop(runner, name)
    return runner


def _build_loop(runner: Runner, name: str) -> None:
    try:
        loader = getattr(getattr(runner, f'{name}_loop'), 'dataloader', None)
        empty = loader is not None and len(loader.dataset) == 0
    except ValueError as error:
        # How mmengine's BaseDataset fails when it packs an empty list of samples.
        empty = any(frame.name == '_serialize_data' for frame in traceback.extract_tb(
            error.__traceback__))
        if not empty:
            raise
    if empty:
        raise ConfigError(f'{name}_dataloader: its dataset has no samples; check ann_file, '
                          'data_prefix, filter_cfg and the class names in metainfo')


@contextlib.contextmanager
def _nothing_left_on_failure(folder: Path) -> Iterator[None]:
    """Remove what a Runner that cannot be built has written: it opens its log before the model."""
    before = set(folder.iterdir()) if folder.is_dir() else None
    try:
        yield
    except Exception:
        if is_main_process() and folder.is_dir():
            new = [folder] if before is None else set(folder.iterdir()) - before
            for path in new:
                shutil.rmtree(path, ignore_errors=True)
        raise


def write_metrics(metrics: Mapping[str, Any], path: str) -> None:
    """Write metrics as JSON."""
    numbers = {key: float(value) for key, value in metrics.items()
               if isinstance(value, (int, float)) or hasattr(value, 'item')}
    atomic_write(json.dumps(numbers, indent=2) + '\n', path)


def number_or_text(text: str | None) -> float | str | None:
    """Read an argument that is a number or the text of something else."""
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return text
