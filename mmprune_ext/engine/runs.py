"""Setting up a run: where its weights come from, resuming, mixed precision, the Runner."""

from __future__ import annotations

import contextlib
import shutil
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.registry import RUNNERS
from mmengine.runner import Runner, find_latest_checkpoint
from torch import nn

from mmprune_ext.algorithms import OneShotAlgorithm
from mmprune_ext.algorithms.loading import built_for_a_run
from mmprune_ext.compact.checkpoint import load_weights, read_checkpoint
from mmprune_ext.compact.compact_model import is_unit_file
from mmprune_ext.compact.export import CHECKPOINT, FOLDER
from mmprune_ext.compact.safe_files import allow_runs
from mmprune_ext.engine.dist import init_dist
from mmprune_ext.engine.hooks import unwrapped
from mmprune_ext.engine.rounds import ROUNDS
from mmprune_ext.engine.rounds_job import STATE as ROUNDS_STATE
from mmprune_ext.engine.search_runner import SEARCH
from mmprune_ext.errors import CheckpointError, ConfigError
from mmprune_ext.model_config import JOBS, is_compact, is_pruning
from mmprune_ext.paths import missing
from mmprune_ext.registry import MODELS


def set_resume(config: Config, resume: str | bool | None) -> str | None:
    """Set up a run that is resumed: latest checkpoint of the work folder, or a given one.

    The structure of a pruned model is taken from the checkpoint, so nothing is traced or scored
    again and the dense checkpoint is not needed.

    Returns:
        The checkpoint, or ``None`` for a run that starts from the beginning.

    Raises:
        CheckpointError: If the checkpoint does not exist, cannot be read, or is of no run of this
            config, or the work folder is one of rounds.
    """
    if not resume and config.get('resume'):
        resume = config.get('load_from') or True
    if not resume:
        return None
    config.resume = True
    path = resume if isinstance(resume, str) else None
    if path is None and config.get(ROUNDS) is not None:
        return None  # the job finds out by itself in which round it was
    if path is None and (Path(config.work_dir) / 'last_checkpoint').is_file():
        path = find_latest_checkpoint(config.work_dir)
    if path is None and (Path(config.work_dir) / ROUNDS_STATE).is_file():
        raise CheckpointError(f'--resume: {config.work_dir} holds a job of rounds; give --rounds, or the checkpoint of '
                              'a run, or another --work-dir')
    if path is None:
        # From the beginning, with the weights that load_from names; mmengine would take them for the run to go on with.
        config.resume = SEARCH in config or config.get('load_from') is None
        return None
    config.load_from = path
    if not Path(path).is_file():
        raise CheckpointError(f'--resume: checkpoint {path}: {missing(path)}')
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
        CheckpointError: If it cannot be read, or holds a pruned model and the config is of a dense one, into which
            mmengine would load what happens to fit.
        ConfigError: If ``checkpoint`` of the algorithm names other weights.
    """
    path, model = config.get('load_from'), config.model
    if path is None:
        return None
    if not is_pruning(model):
        if '://' not in path and not is_compact(model):
            _check_dense(model, path)
        return None
    units = model.get('units')
    if not (units is None or is_unit_file(units)):
        return None
    if read_checkpoint(path)['run_units'] is not None:
        if units is not None:  # of the structure that the file gives, which loading checks
            if model.get('checkpoint') is None and _prunes_first(model):
                model.from_scratch = True  # until the Runner loads them
            return None
        model.units = path
        return path
    if model.get('checkpoint') not in (None, path):
        raise ConfigError(f'load_from ({path}) and model.checkpoint ({model.checkpoint}) both name weights to '
                          'prune; set one of them to None')
    model.checkpoint, config.load_from = path, None
    return None


def _check_dense(model: Mapping[str, Any], path: str) -> None:
    """Refuse weights of a pruned model for a dense one."""
    stored = read_checkpoint(path)
    if stored['run_units'] is not None:
        raise CheckpointError(_of_a_run(model, path))
    if 'channel_units' in stored['meta']:
        raise CheckpointError(f'checkpoint {path} holds a compact model, but the config\'s model is a {model["type"]}; '
                              'give the compact_config.py that was written beside it, which names these weights itself')


def _of_a_run(model: Mapping[str, Any], path: str) -> str:
    return (f'checkpoint {path} is of a pruning run, but the config\'s model is a {model["type"]}; give the config of '
            'that run, or export the checkpoint with tools/export_compact.py')


def _prunes_first(model: Mapping[str, Any]) -> bool:
    kind = MODELS.get(model['type']) if isinstance(model['type'], str) else model['type']
    return isinstance(kind, type) and issubclass(kind, OneShotAlgorithm)


def set_mixed_precision(config: Config) -> None:
    """Train in automatic mixed precision, in both parts of a run of two."""
    for section in (config, config.get(SEARCH)):
        if isinstance(section, (Config, Mapping)) and 'optim_wrapper' in section:
            section['optim_wrapper']['type'] = 'AmpOptimWrapper'
            section['optim_wrapper'].setdefault('loss_scale', 'dynamic')


def check_mixed_precision(config: Config) -> None:
    """Check that there is an accelerator where a run trains in mixed precision.

    Raises:
        ConfigError: If there is none, which mmengine's mixed precision needs.
    """
    for where, section in (('', config), (f'{SEARCH}.', config.get(SEARCH))):
        wrapper = section.get('optim_wrapper') if isinstance(section, (Config, Mapping)) else None
        kind = wrapper.get('type') if isinstance(wrapper, Mapping) else None
        if getattr(kind, '__name__', str(kind)).endswith('AmpOptimWrapper') and get_device() == 'cpu':
            raise ConfigError(f'{where}optim_wrapper: AmpOptimWrapper (--amp): mixed precision needs an accelerator, '
                              'and this process sees none; leave it out')


def set_checkpoint(config: Config, path: str | None) -> str | None:
    """Choose the weights that a test runs on: given ones, or those a compact config names.

    Where the file that it names does not exist, those that a run in the work folder exported.

    Returns:
        The checkpoint that the Runner will load, ``None`` if the model loads its own.

    Raises:
        CheckpointError: If there are none, or they cannot be read.
    """
    if any(config.get(key) is not None for key in JOBS):  # a test has no parts
        for key in (*JOBS, 'runner_type'):
            config.pop(key, None)
    if not is_pruning(config.model):  # where it names weights to prune
        path = path or config.get('load_from')
    compact = is_compact(config.model)
    if path is None:
        if not (compact and config.model.get('init_cfg')):
            raise CheckpointError('no weights to test: give a checkpoint (only a compact config '
                                  'names its own)')
        config.model.init_cfg.update(checkpoint=_compact_weights(config), strict=True)
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
        raise CheckpointError(_of_a_run(config.model, path))
    if pruning:
        # By its path: the units themselves would be formatted with every dump of the config.
        config.model.units = path


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
    config = init_dist(config, launcher)
    allow_runs()  # to resume, mmengine reads the file once more
    with _nothing_left_on_failure(Path(config.work_dir)), built_for_a_run():
        runner = RUNNERS.build(config) if 'runner_type' in config else Runner.from_cfg(config)
        if checkpoint is not None:
            load_weights(unwrapped(runner), checkpoint)
        for name in loops:
            _build_loop(runner, name)
        if 'train' in loops:
            _check_trainable(runner)
    return runner


def _check_trainable(runner: Runner) -> None:
    parameters = list(unwrapped(runner).parameters()) if isinstance(getattr(runner, 'model', None), nn.Module) else []
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        raise ConfigError(f'nothing will be trained: all {len(parameters)} parameters of the model are frozen '
                          '(requires_grad=False); look at frozen_stages of its parts, and at what its own code freezes')


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
