#!/usr/bin/env python3
"""The whole way on data made on the spot: train, prune, fine-tune, export, test, draw."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmprune_ext.engine import cli
from mmprune_ext.engine.demo import DEMOS, Settings, run_demo


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('task', metavar='TASK', choices=sorted(DEMOS), help=', '.join(DEMOS))
    parser.add_argument('--work-dir', metavar='DIR', help='default: work_dirs/demo/TASK')
    parser.add_argument('--flops', type=float, default=0.5, metavar='SHARE',
                        help='share of the backbone\'s multiply-accumulates that remains '
                        '(default: 0.5)')
    parser.add_argument('--epochs', type=cli.positive, metavar='N',
                        help='of the dense training (default: as the config says)')
    parser.add_argument('--finetune-epochs', type=cli.positive, metavar='N',
                        help='default: half the epochs that the config says')
    parser.add_argument('--resume', action='store_true',
                        help='go on with an interrupted run instead of starting anew')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    began = time.monotonic()
    with cli.user_errors():
        work_dir = args.work_dir or f'work_dirs/demo/{args.task}'
        print(run_demo(args.task, Settings(work_dir, args.flops, args.epochs,
                                           args.finetune_epochs, args.resume)))
    print(f'took {time.monotonic() - began:.0f} s')


if __name__ == '__main__':
    main()
