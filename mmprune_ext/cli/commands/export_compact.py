"""Export a trained pruning run: compact checkpoint, unit file, compact config and report."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mmprune_ext.cli import arguments
from mmprune_ext.cli.errors import user_errors
from mmprune_ext.paths import check_result_folder
from mmprune_ext.trust import checkpoints


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Read the arguments."""
    parser = argparse.ArgumentParser(prog, description=__doc__)
    arguments.config_arguments(parser)
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='checkpoint of the run')
    arguments.output_folder_arguments(parser)
    arguments.tracing_arguments(parser, scope=False)
    arguments.report_arguments(parser)
    arguments.finetune_arguments(parser)
    parser.add_argument('--bn-batches', type=arguments.not_negative, default=0, metavar='N',
                        help='training batches to re-estimate the batch statistics on (default 0: as the run has them)')
    parser.add_argument('--stripe-forms', choices=['measure', 'dense', 'stripes'],
                        help='how convolutions that have lost stripes compute: with zeros, stripe by stripe, or the '
                        'faster of both, measured with --batch-size images (default: as recorded, else measured)')
    parser.add_argument('--pad-to', type=arguments.positive, metavar='N',
                        help='pad the widths with zero channels to multiples of N, which changes no output')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command; by default with the arguments of the process, under its name."""
    args = parse_args(argv, prog)
    with user_errors(), checkpoints(args.trust_checkpoint):
        arguments.require_inputs(args)
        check_result_folder(args.output_dir, args.overwrite)
        from mmprune_ext.cli import reports
        from mmprune_ext.settings import reading
        from mmprune_ext.workflows.pruning import export_run
        extras, finetune = reports.report_extras(args), reports.finetune_of(args)
        config = reading.read_config(args.config, args.cfg_options)
        if args.bn_batches > 0:
            reading.require_training_data(config, 'to re-estimate batch statistics')
        reports.print_exported(export_run(config, args.checkpoint, args.output_dir, args.input_size, extras,
                                          args.bn_batches, finetune))
