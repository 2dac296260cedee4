"""Test a model by a config: a dense one, a compact one, or a pruning run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mmprune_ext.cli import arguments
from mmprune_ext.cli.errors import user_errors
from mmprune_ext.cli.memory import keep_freed_memory
from mmprune_ext.paths import check_output_file, check_output_folder
from mmprune_ext.trust import checkpoints


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Read the arguments."""
    parser = argparse.ArgumentParser(prog, description=__doc__)
    arguments.config_arguments(parser)
    parser.add_argument('positional', nargs='?', metavar='CHECKPOINT',
                        help='weights; a compact config names its own')
    parser.add_argument('--checkpoint', help='the same, as an option')
    parser.add_argument('--work-dir', help='folder of logs')
    parser.add_argument('--json', metavar='FILE', help='also write the metrics to this file')
    parser.add_argument('--show-dir', metavar='DIR', help='draw the predictions into this folder, '
                        'by the visualization hook of the config')
    parser.add_argument('--show-number', type=arguments.positive, metavar='N',
                        help='draw N samples, spread evenly (default: all)')
    arguments.launcher_arguments(parser)
    args = parser.parse_intermixed_args(argv)
    if args.show_number and not args.show_dir:
        parser.error('--show-number tells how many samples to draw into --show-dir, which is not given')
    return args


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command; by default with the arguments of the process, under its name."""
    args = parse_args(argv, prog)
    keep_freed_memory()
    with user_errors(), checkpoints(args.trust_checkpoint):
        arguments.require_inputs(args)
        for folder in filter(None, (args.work_dir, args.show_dir)):
            check_output_folder(folder)
        if args.json:
            check_output_file(args.json)
        from mmprune_ext.cli.reports import write_metrics
        from mmprune_ext.engine import runs
        from mmprune_ext.engine.drawing import draw_predictions
        from mmprune_ext.settings import checks, completion, reading
        config = reading.read_config(args.config, args.cfg_options)
        reading.require_sections(config, ['test_dataloader', 'test_evaluator', 'test_cfg'], 'to test')
        config.work_dir = reading.default_work_dir(config, args.config, args.work_dir)
        check_output_folder(config.work_dir)
        checks.check_datasets(config, ['test'])
        if args.show_dir:
            draw_predictions(config, args.show_dir, args.show_number)
        checkpoint = runs.set_checkpoint(config, args.checkpoint or args.positional)
        completion.prepare_pruning(config)
        metrics = runs.build_runner(config, args.launcher, checkpoint, ('test', )).test()
        if args.json:
            write_metrics(metrics, args.json)
