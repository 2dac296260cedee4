#!/usr/bin/env python3
"""Test a model by a config: a dense one, a compact one, or a pruning run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmprune_ext.engine import checks, cli
from mmprune_ext.engine.drawing import draw_predictions


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    cli.config_arguments(parser)
    parser.add_argument('positional', nargs='?', metavar='CHECKPOINT',
                        help='weights; a compact config names its own')
    parser.add_argument('--checkpoint', help='the same, as an option')
    parser.add_argument('--work-dir', help='folder of logs')
    parser.add_argument('--json', metavar='FILE', help='also write the metrics to this file')
    parser.add_argument('--show-dir', metavar='DIR', help='draw the predictions into this folder, '
                        'by the visualization hook of the config')
    parser.add_argument('--show-number', type=cli.positive, metavar='N',
                        help='draw N samples, spread evenly (default: all)')
    cli.launcher_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with cli.user_errors():
        config = cli.read_config(args.config, args.cfg_options)
        cli.require_sections(config, ['test_dataloader', 'test_evaluator', 'test_cfg'], 'to test')
        config.work_dir = cli.default_work_dir(config, args.config, args.work_dir)
        checks.check_output_folder(config.work_dir)
        checks.check_datasets(config, ['test'])
        if args.json:
            checks.check_output_file(args.json)
        if args.show_dir:
            checks.check_output_folder(args.show_dir)
            draw_predictions(config, args.show_dir, args.show_number)
        checkpoint = cli.set_checkpoint(config, args.checkpoint or args.positional)
        cli.prepare_pruning(config)
        metrics = cli.build_runner(config, args.launcher, checkpoint, ('test', )).test()
        if args.json:
            cli.write_metrics(metrics, args.json)


if __name__ == '__main__':
    main()
