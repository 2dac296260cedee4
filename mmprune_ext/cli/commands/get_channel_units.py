"""Show a model's channel units, or write them as JSON."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack

from mmprune_ext.cli import arguments
from mmprune_ext.cli.errors import user_errors
from mmprune_ext.paths import check_output_file
from mmprune_ext.trust import checkpoints


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Read the arguments."""
    parser = argparse.ArgumentParser(
        prog, description=__doc__, epilog='Without -c, -i, --choice and -o a table is printed.')
    arguments.config_arguments(parser)
    parser.add_argument('-c', '--with-channels', action='store_true',
                        help='include the layers of each unit: a model can be rebuilt from the '
                        'file without tracing')
    parser.add_argument('-i', '--with-init-args', action='store_true',
                        help='include divisor and min_channels of each unit')
    parser.add_argument('--choice', action='store_true',
                        help='write {unit: pruning ratio} alone, a target_pruning_ratio to edit')
    parser.add_argument('-o', '--output-path', metavar='FILE', help='write the JSON to this file')
    parser.add_argument('--overwrite', action='store_true', help='replace FILE')
    arguments.tracing_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command; by default with the arguments of the process, under its name."""
    args = parse_args(argv, prog)
    with user_errors('nothing is written'), checkpoints(args.trust_checkpoint), ExitStack() as then:
        arguments.require_inputs(args)
        if args.output_path:
            check_output_file(args.output_path, args.overwrite)
        then.enter_context(arguments.tracing(args))
        from mmprune_ext.analysis import units_table
        from mmprune_ext.settings import reading
        from mmprune_ext.units import spec
        from mmprune_ext.workflows.pruning import trace_config
        config = reading.read_config(args.config, args.cfg_options)
        units = trace_config(config, args.scope, args.input_size, args.whole_heads)
        if args.choice:
            content = spec.choice_template(units)
        else:
            content = units.to_json(args.with_channels, args.with_init_args)
        if args.output_path:
            spec.write(content, args.output_path)
            print(f'{len(units)} channel units, {len(units.prunable)} prunable: '
                  f'{args.output_path}')
        elif args.choice or args.with_channels or args.with_init_args:
            print(spec.dumps(content), end='')
        else:
            print(units_table(units))
