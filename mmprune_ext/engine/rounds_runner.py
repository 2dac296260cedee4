"""One job of several rounds: prune, train, prune what is left, train again."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from numbers import Real
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn

from mmprune_ext.compact.export import Extras
from mmprune_ext.engine.parts import export_end, release, standing_alone
from mmprune_ext.engine.rounds import check_later_targets, targets_of, without_pruning
from mmprune_ext.engine.rounds_job import ROUND, RoundsJob
from mmprune_ext.registry import RUNNERS
from mmprune_ext.settings.completion import prepare_pruning


@RUNNERS.register_module()
class RoundsRunner(Runner):
    """Prune and train a model by turns, from the config of a method that prunes before it trains.

    ``rounds`` says how often, and to what each time (:func:`mmprune_ext.engine.rounds.targets_of`)::

        runner_type = 'mmprune_ext.RoundsRunner'
        rounds = 5

    Each round is a run of its own, with the config's schedule and hooks, in ``round_1``, ``round_2`` ... in the work
    folder. It begins with the compact model that the one before has ended with and exported to ``round_1/compact``, and
    its units hold the choices of all rounds, relative to the dense model. A job that is resumed goes on in the round
    where it was.

    Attributes:
        job: The job.
        number: The round that this runner trains itself; those after it have runners of their own.
    """

    job: RoundsJob
    number: int

    @classmethod
    def from_cfg(cls, cfg: Config) -> RoundsRunner:
        """Return the runner of the round that is next; training it goes on with the others.

        Raises:
            PruningError: If ``rounds`` is malformed, or a target cannot be met.
        """
        cfg = copy.deepcopy(cfg)
        if cfg.get('resume') and cfg.get('load_from') and cfg.model.get('units') == cfg.load_from:
            cfg.model.units = None  # the structure of the round that goes on
        job = RoundsJob(cfg, targets_of(cfg))
        number, checkpoint = job.start()
        if number == 1 and checkpoint is None:
            check_later_targets(cfg, job.targets)
        runner = super().from_cfg(_prepared(job, number, checkpoint))
        runner.job, runner.number = job, number
        idle = [place for place in without_pruning(job.targets) if place >= number]
        if idle:
            runner.logger.warning('rounds: %s: a pruning ratio of 0 removes no channel, so that %s; set '
                                  'target_pruning_ratio to the share that goes',
                                  f'round {idle[0]}' if len(idle) == 1 else f'rounds {", ".join(map(str, idle))}',
                                  'it only trains' if len(idle) == 1 else 'they only train')
        runner.register_hook(RoundHook(job, number, checkpoint is not None))
        return runner

    def train(self) -> nn.Module:
        """Train this round and all that follow.

        Returns:
            The model of the last round.
        """
        model = super().train()
        _end(self, self.job, self.number)
        runner: Runner = self
        for number in range(self.number + 1, len(self.job.targets) + 1):
            release(runner)
            del model
            runner = Runner.from_cfg(_prepared(self.job, number))
            runner.register_hook(RoundHook(self.job, number))
            model = runner.train()
            _end(runner, self.job, number)
        return model


def _prepared(job: RoundsJob, number: int, checkpoint: str | None = None) -> Config:
    part = job.part(number, checkpoint)
    prepare_pruning(part)
    return part


def _end(runner: Runner, job: RoundsJob, number: int) -> None:
    """Export the model of a round, and write down what came out."""
    hook = next(hook for hook in runner.hooks if isinstance(hook, RoundHook))
    written = export_end(runner, standing_alone(job.config), job.result(number),
                         Extras(metrics={'compact': hook.metrics} if hook.metrics else None))
    if written is not None:
        runner.logger.info('round %d of %d is over, compact model: %s\n%s', number, len(job.targets),
                           written.checkpoint, job.end(number, written, hook.metrics))


class RoundHook(Hook):
    """Tell the job where it is, and measure what a round ends with.

    Args:
        job: The job.
        number: Of the round.
        resumed: Whether it goes on from a checkpoint.

    Attributes:
        metrics: The numbers of the last validation.
    """

    priority = 'LOWEST'  # after the checks of the others

    def __init__(self, job: RoundsJob, number: int, resumed: bool = False) -> None:
        self.job, self.number, self.resumed = job, number, resumed
        self.metrics: dict[str, float] = {}

    def before_train(self, runner: Runner) -> None:
        """Remember that the round has begun."""
        runner.logger.info('round %d of %d %s', self.number, len(self.job.targets),
                           f'goes on after {runner.iter} iterations' if self.resumed else 'begins')
        if is_main_process():
            self.job.begin(self.number, self.resumed)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Tell which round the checkpoint is of."""
        checkpoint.setdefault('meta', {})[ROUND] = self.number

    def after_val_epoch(self, runner: Runner, metrics: Mapping[str, Any] | None = None) -> None:
        """Keep the metrics."""
        self.metrics = {name: float(value) for name, value in (metrics or {}).items()
                        if isinstance(value, Real)}

    def after_train(self, runner: Runner) -> None:
        """Validate where a resumed run had nothing left to train: its last validation may have been cut off."""
        if self.metrics or runner.val_loop is None:
            return
        loop = runner.train_loop
        progress = runner.iter if isinstance(loop, IterBasedTrainLoop) else runner.epoch
        if progress >= getattr(loop, 'val_begin', 1):
            runner.val_loop.run()
