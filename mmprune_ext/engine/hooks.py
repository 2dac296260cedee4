"""Hooks that a pruning run needs from the Runner."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmengine.dist import get_rank, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import IterBasedTrainLoop, Runner, find_latest_checkpoint, set_random_seed
from torch import nn

from mmprune_ext.algorithms import OneShotAlgorithm, PruneAlgorithm
from mmprune_ext.analysis import units_table
from mmprune_ext.compact.export import FOLDER
from mmprune_ext.draws import preserved_random_state
from mmprune_ext.registry import HOOKS
from mmprune_ext.repair.batch_norm import batch_norms, reestimate_batch_norm
from mmprune_ext.workflows.pruning import export_run

UNITS_FILE = 'units.json'


def unwrapped(runner: Runner) -> Any:
    """Return the runner's model without a DDP wrapper."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def parameters_left_alone(parameters: Mapping[str, nn.Parameter], groups: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names of parameters that an optimizer with these groups does not train."""
    rates = {id(parameter): group.get('initial_lr', group['lr']) for group in groups
             for parameter in group['params'] if parameter.requires_grad}
    return [name for name, parameter in parameters.items() if not rates.get(id(parameter))]


@HOOKS.register_module()
class PruningHook(Hook):
    """Write a pruning run's channel units to its work folder and into every checkpoint's meta.

    Before the first iteration of a run that has pruned a trained model, batch statistics that stay
    fixed in training (``norm_eval=True``, frozen stages) are taken anew: they are those of the
    dense model, and nothing in training would mend them. Where the model was repaired that is decided.

    Args:
        bn_batches: Training batches that each process takes them from; 0 for none.

    Attributes:
        for_pruning_only: Whether the config of the exported compact model goes without this hook.
    """

    priority = 'BELOW_NORMAL'
    for_pruning_only = True

    def __init__(self, bn_batches: int = 20) -> None:
        self.bn_batches = bn_batches

    def before_run(self, runner: Runner) -> None:
        """Write ``units.json`` and log the table of units."""
        model = unwrapped(runner)
        if isinstance(model, PruneAlgorithm) and is_main_process():
            model.units.save(Path(runner.work_dir) / UNITS_FILE)
            runner.logger.info('channel units:\n%s', units_table(model.units))

    def before_train(self, runner: Runner) -> None:
        """Re-estimate batch statistics that stay fixed, unless the run is resumed."""
        model = unwrapped(runner)
        if self.bn_batches == 0 or not isinstance(model, OneShotAlgorithm) or runner.iter > 0:
            return
        if model.mended is not None:  # with the statistics that suit its weights
            return
        model.train()  # where OpenMMLab's backbones freeze what they are told to
        if all(norm.training for norm in batch_norms(model)):
            return
        loader = runner.cfg.get('train_dataloader')
        # A loader of its own: the run's samplers may go on from where an iterator has left them.
        loader = (Runner.build_dataloader(loader, seed=runner.seed) if isinstance(loader, Mapping)
                  else runner.train_loop.dataloader)
        with preserved_random_state():
            reestimate_batch_norm(model, loader, self.bn_batches)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Add the units to the checkpoint's meta."""
        model = unwrapped(runner)
        if isinstance(model, PruneAlgorithm):
            checkpoint.setdefault('meta', {})['channel_units'] = model.units.to_json()


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Seed all random number generators by seed, progress and rank.

    At the start of each epoch, and where the run counts iterations, which makes it one epoch,
    before each of them. What a resumed run draws in this process is then what one that was never
    interrupted does: the random state is a function of progress, not of history. Loader workers
    are seeded by mmengine, from the seed of the run, whenever they start.
    """

    priority = 'VERY_HIGH'

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed by the epoch."""
        self._seed(runner, runner.epoch)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        """Seed by the iteration, where the run counts iterations."""
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            self._seed(runner, runner.iter)

    def _seed(self, runner: Runner, progress: int) -> None:
        # Large odd factors keep the seeds of neighbouring epochs (or iterations) and ranks apart.
        seed = (int(runner.seed or 0) + 1_000_003 * progress + 7_919 * get_rank()) % 2 ** 31
        set_random_seed(seed)


@HOOKS.register_module()
class ExportHook(Hook):
    """Export the last checkpoint of a pruning run when its training has ended.

    The compact model lies in ``compact`` in the run's work folder, where ``tools/test.py`` looks for
    the weights of a compact config that has none elsewhere.

    Attributes:
        for_pruning_only: Whether the config of the exported compact model goes without this hook.
    """

    # After the last checkpoint.
    priority = 'LOWEST'
    for_pruning_only = True

    def after_train(self, runner: Runner) -> None:
        """Write the compact model."""
        if not isinstance(unwrapped(runner), PruneAlgorithm) or not is_main_process():
            return
        checkpoint = find_latest_checkpoint(runner.work_dir)
        if checkpoint is None:
            runner.logger.warning('ExportHook: the run wrote no checkpoint into %s, nothing to export',
                                  runner.work_dir)
            return
        written = export_run(runner.cfg, checkpoint, Path(runner.work_dir) / FOLDER)
        runner.logger.info('compact model of %s: %s\n%s', checkpoint, written.checkpoint,
                           written.report.text())
