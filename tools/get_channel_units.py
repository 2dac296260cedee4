#!/usr/bin/env python3
"""Show a model's channel units, or write them as JSON."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmprune_ext.engine import checks, cli


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog='Without -c, -i, --choice and -o a table is printed.')
    cli.config_arguments(parser)
    parser.add_argument('-c', '--with-channels', action='store_true',
                        help='include the layers of each unit: a model can be rebuilt from the '
                        'file without tracing')
    parser.add_argument('-i', '--with-init-args', action='store_true',
                        help='include divisor and min_channels of each unit')
    parser.add_argument('--choice', action='store_true',
                        help='write {unit: pruning ratio} alone, a target_pruning_ratio to edit')
    parser.add_argument('-o', '--output-path', metavar='FILE', help='write the JSON to this file')
    cli.tracing_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with cli.user_errors():
        from mmprune_ext.analysis import units_table
        from mmprune_ext.engine.pruning import trace_config
        from mmprune_ext.units import spec
        if args.output_path:
            checks.check_output_file(args.output_path)
        config = cli.read_config(args.config, args.cfg_options)
        units = trace_config(config, args.scope, args.input_size)
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


if __name__ == '__main__':
    main()
