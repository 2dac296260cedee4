"""The whole way on data made on the spot: train, prune, fine-tune, export, test, draw."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from mmprune_ext.cli import arguments
from mmprune_ext.cli.errors import user_errors
from mmprune_ext.paths import check_output_folder

# The demonstrations of `mmprune_ext.workflows.demo`, which takes long to import.
TASKS = ('classification', 'detection', 'digits', 'pose', 'segmentation')


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Read the arguments."""
    parser = argparse.ArgumentParser(prog, description=__doc__)
    parser.add_argument('task', metavar='TASK', choices=TASKS, help=', '.join(TASKS))
    parser.add_argument('--work-dir', metavar='DIR', help='default: work_dirs/demo/TASK')
    parser.add_argument('--flops', type=arguments.share, default=0.5, metavar='SHARE',
                        help='share of the backbone\'s multiply-accumulates that remains '
                        '(default: 0.5)')
    parser.add_argument('--epochs', type=arguments.positive, metavar='N',
                        help='of the dense training (default: as the config says)')
    parser.add_argument('--finetune-epochs', type=arguments.positive, metavar='N',
                        help='default: half the epochs that the config says')
    parser.add_argument('--resume', action='store_true',
                        help='go on with an interrupted run instead of starting anew')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command; by default with the arguments of the process, under its name."""
    args = parse_args(argv, prog)
    began = time.monotonic()
    with user_errors():
        work_dir = args.work_dir or f'work_dirs/demo/{args.task}'
        check_output_folder(work_dir)
        from mmprune_ext.workflows.demo import Settings, run_demo
        print(run_demo(args.task, Settings(work_dir, args.flops, args.epochs,
                                           args.finetune_epochs, args.resume)))
    print(f'took {time.monotonic() - began:.0f} s')
