"""Train, prune-train or fine-tune by a config with mmengine's Runner."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack

from mmprune_ext.cli import arguments
from mmprune_ext.cli.errors import user_errors
from mmprune_ext.cli.memory import keep_freed_memory
from mmprune_ext.paths import check_output_folder
from mmprune_ext.trust import checkpoints


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Read the arguments."""
    parser = argparse.ArgumentParser(prog, description=__doc__)
    arguments.config_arguments(parser)
    parser.add_argument('--work-dir', help='folder of logs and checkpoints '
                        '(default: work_dir of the config, else work_dirs/<config name>)')
    parser.add_argument('--resume', nargs='?', const=True, metavar='CHECKPOINT',
                        help='go on from the latest checkpoint of the work folder, or a given one')
    parser.add_argument('--rounds', type=arguments.positive, metavar='N',
                        help='prune and train N times by turns (a config of a method that prunes before it trains)')
    parser.add_argument('--teachers', nargs='+', metavar='CONFIG[:CHECKPOINT]',
                        help='train beside an ensemble of these models, dense or compact; a compact config names its '
                        'own weights')
    parser.add_argument('--temperature', type=float, metavar='T',
                        help='of the logits of student and teachers (default: 5 for those of whole images, else 1)')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    arguments.effort_arguments(parser)
    arguments.launcher_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command; by default with the arguments of the process, under its name."""
    args = parse_args(argv, prog)
    keep_freed_memory()
    kept = 'checkpoints in the work folder stay, --resume goes on from there'
    with user_errors(kept), checkpoints(args.trust_checkpoint), ExitStack() as then:
        arguments.require_inputs(args)
        if args.work_dir:
            check_output_folder(args.work_dir)
        then.enter_context(arguments.tracing(args))
        from mmprune_ext.distillation.teachers import check_teachers
        from mmprune_ext.engine import rounds, runs
        from mmprune_ext.model_config import DISTILLATION
        from mmprune_ext.settings import checks, completion, reading, teaching
        config = reading.read_config(args.config, args.cfg_options)
        reading.require_sections(config, ['train_dataloader', 'train_cfg', 'optim_wrapper'], 'to train')
        teaching.add_teachers(config, args.teachers, args.temperature)
        if DISTILLATION in config:
            check_teachers(config[DISTILLATION])
        rounds.set_rounds(config, args.rounds)
        config.work_dir = reading.default_work_dir(config, args.config, args.work_dir)
        check_output_folder(config.work_dir)
        checks.check_datasets(config, ['train', 'val'])
        checkpoint = runs.set_resume(config, args.resume) or runs.set_start(config)
        checks.check_files(config.model, not config.get('resume'))
        completion.prepare_pruning(config)
        checks.check_calibration(config.model)
        if args.amp:
            runs.set_mixed_precision(config)
        runs.check_mixed_precision(config)
        teaching.complete_distillation(config)
        runs.build_runner(config, args.launcher, checkpoint, ('train', 'val')).train()
