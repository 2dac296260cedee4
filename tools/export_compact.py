#!/usr/bin/env python3
"""Export a trained pruning run: compact checkpoint, unit file, compact config and report."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmprune_ext.engine import checks, cli, costs


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    cli.config_arguments(parser)
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='checkpoint of the run')
    parser.add_argument('-o', '--output-dir', required=True, metavar='DIR')
    cli.tracing_arguments(parser, scope=False)
    costs.report_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with cli.user_errors():
        from mmprune_ext.engine.pruning import export_run
        checks.check_output_folder(args.output_dir)
        extras = costs.report_extras(args)
        config = cli.read_config(args.config, args.cfg_options)
        costs.print_exported(export_run(config, args.checkpoint, args.output_dir, args.input_size, extras))


if __name__ == '__main__':
    main()
