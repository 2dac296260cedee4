"""Print parameters, multiply-accumulates and FLOPs of a config's model, whole and backbone.

Of a compact config, and of a pruning config whose target tells the widths, dense and compact model
side by side.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import ExitStack

from mmprune_ext.cli import arguments
from mmprune_ext.cli.errors import user_errors
from mmprune_ext.paths import check_output_file
from mmprune_ext.trust import checkpoints


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Read the arguments."""
    parser = argparse.ArgumentParser(prog, description=__doc__)
    arguments.config_arguments(parser)
    parser.add_argument('--shape', type=int, nargs='+', metavar='SIZE',
                        help='size of one sample: C H W, or H W with the channels of the first '
                        'layer; default: the size in the config, else the one that the model '
                        'states, else 224 224')
    parser.add_argument('--json', metavar='FILE', help='write all numbers, layer by layer, here')
    arguments.latency_arguments(parser)
    arguments.effort_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command; by default with the arguments of the process, under its name."""
    args = parse_args(argv, prog)
    with user_errors(), checkpoints(args.trust_checkpoint), ExitStack() as then:
        arguments.require_inputs(args)
        if args.json:
            check_output_file(args.json)
        then.enter_context(arguments.tracing(args))
        from mmprune_ext.atomic import atomic_write
        from mmprune_ext.settings import reading
        from mmprune_ext.workflows.costs import config_costs
        config = reading.read_config(args.config, args.cfg_options)
        found = config_costs(config, args.shape, args.batch_size if args.latency else None)
        if args.json:
            atomic_write(json.dumps(found.to_dict(), indent=1) + '\n', args.json)
        print(found.text(), end='')
