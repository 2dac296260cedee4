"""What jobs of several runs share: a run that is one part, and what its end leaves for the next one."""

from __future__ import annotations

import copy
import gc
from collections.abc import Mapping
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import barrier, is_main_process
from mmengine.runner import Runner, find_latest_checkpoint

from mmprune_ext.compact.export import Exported, Extras
from mmprune_ext.model_config import JOBS
from mmprune_ext.workflows.pruning import export_run

LAST = 'last_checkpoint'  # mmengine's file that names a run's latest checkpoint
ENDED = 'ended.pth'  # the end of a run, until it is exported


def standing_alone(config: Config) -> Config:
    """Return the config of a job without what makes it one of several runs."""
    alone = copy.deepcopy(config)
    for key in (*JOBS, 'runner_type'):
        alone.pop(key, None)
    return alone


def place_in_folder(part: Config, config: Config, name: str) -> None:
    """Let a run work in a folder of the job's, under a name of its own.

    Args:
        part: The config of the run.
        config: The config of the job.
        name: Of the folder in the job's work folder.
    """
    part.work_dir = str(Path(config.work_dir) / name)
    part.experiment_name = f'{config.get("experiment_name") or Path(config.work_dir).name}_{name}'
    if isinstance(part.get('visualizer'), Mapping) and 'name' in part.visualizer:
        # Of one name there is one in a process: a later run would write to the folder of the first.
        part.visualizer.name = f'{part.visualizer.name}_{name}'


def latest_checkpoint(folder: Path) -> str | None:
    """Return the checkpoint that a run in this folder wrote last; ``None`` if there is none, or it is gone."""
    path = find_latest_checkpoint(str(folder)) if (folder / LAST).is_file() else None
    return path if path and Path(path).is_file() else None


def export_end(runner: Runner, config: Config, folder: Path, extras: Extras | None = None) -> Exported | None:
    """Export the model that a run has ended with; every process calls this.

    The weights do not come from the run's checkpoints: whether, where and how often these are written is the user's
    choice.

    Args:
        runner: The run.
        config: Its config, without what makes it a part.
        folder: Where to write.
        extras: What the report tells beside costs.

    Returns:
        What was written, in the main process.
    """
    runner.save_checkpoint(runner.work_dir, ENDED, save_optimizer=False, save_param_scheduler=False,
                           meta=dict(epoch=runner.epoch, iter=runner.iter))
    written = None
    if is_main_process():
        checkpoint = Path(runner.work_dir) / ENDED
        written = export_run(config, str(checkpoint), folder, extras=extras)
        checkpoint.unlink()
    barrier()
    return written


def release(runner: Runner) -> None:
    """Give up a run's model, optimizer and loaders, of which the next one has its own."""
    runner.model = runner.optim_wrapper = runner.param_schedulers = None
    runner._train_loop = runner._val_loop = runner._test_loop = None
    runner._hooks = []
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
