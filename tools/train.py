#!/usr/bin/env python3
"""Train, prune-train or fine-tune by a config with mmengine's Runner."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmprune_ext.engine import checks, cli


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    cli.config_arguments(parser)
    parser.add_argument('--work-dir', help='folder of logs and checkpoints '
                        '(default: work_dir of the config, else work_dirs/<config name>)')
    parser.add_argument('--resume', nargs='?', const=True, metavar='CHECKPOINT',
                        help='go on from the latest checkpoint of the work folder, or a given one')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    cli.launcher_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with cli.user_errors():
        config = cli.read_config(args.config, args.cfg_options)
        cli.require_sections(config, ['train_dataloader', 'train_cfg', 'optim_wrapper'],
                             'to train')
        config.work_dir = cli.default_work_dir(config, args.config, args.work_dir)
        checks.check_output_folder(config.work_dir)
        checks.check_datasets(config, ['train', 'val'])
        checkpoint = cli.set_resume(config, args.resume) or cli.set_start(config)
        cli.prepare_pruning(config)
        checks.check_calibration(config.model)
        if args.amp:
            cli.set_mixed_precision(config)
        cli.build_runner(config, args.launcher, checkpoint, ('train', 'val')).train()


if __name__ == '__main__':
    main()
