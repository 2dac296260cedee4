"""Repair a compact model without training, by the dense model that it was pruned from."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mmprune_ext.cli import arguments
from mmprune_ext.cli.errors import user_errors
from mmprune_ext.cli.memory import keep_freed_memory
from mmprune_ext.paths import check_result_folder
from mmprune_ext.trust import checkpoints


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Read the arguments."""
    parser = argparse.ArgumentParser(prog, description=__doc__)
    arguments.config_arguments(parser)
    parser.add_argument('checkpoint', nargs='?', metavar='CHECKPOINT',
                        help='weights of the compact model (default: those that its config names)')
    parser.add_argument('--dense', nargs=2, required=True, metavar=('CONFIG', 'CHECKPOINT'),
                        help='the dense model that it was pruned from, with its weights')
    arguments.output_folder_arguments(parser)
    parser.add_argument('--images', type=arguments.positive, default=arguments.REPAIR_IMAGES, metavar='N',
                        help='training images that the weights are solved for on (default: %(default)s)')
    parser.add_argument('--bn-batches', type=arguments.not_negative, default=20, metavar='N',
                        help='training batches for new batch statistics, one of the states that are compared (0: none)')
    arguments.tracing_arguments(parser, scope=False)
    arguments.report_arguments(parser)
    arguments.finetune_arguments(parser)
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command; by default with the arguments of the process, under its name."""
    args = parse_args(argv, prog)
    keep_freed_memory()
    with user_errors(), checkpoints(args.trust_checkpoint):
        arguments.require_inputs(args)
        check_result_folder(args.output_dir, args.overwrite)
        from mmprune_ext.cli import reports
        from mmprune_ext.settings import reading
        from mmprune_ext.workflows.repairing import repair_compact
        extras, finetune = reports.report_extras(args), reports.finetune_of(args)
        dense = reading.read_config(args.dense[0])
        config = reading.read_config(args.config, args.cfg_options)  # its scope is that of both
        reading.require_training_data(config, 'to repair the weights on')
        reports.print_exported(repair_compact(
            config, args.checkpoint, dense, args.dense[1], args.output_dir, args.images, args.bn_batches,
            args.input_size, extras, finetune))
