#!/usr/bin/env python3
"""Print parameters, multiply-accumulates and FLOPs of a config's model, whole and backbone.

Of a compact config, and of a pruning config whose target tells the widths, dense and compact model
side by side.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmprune_ext.atomic import atomic_write
from mmprune_ext.engine import checks, cli, costs


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    cli.config_arguments(parser)
    parser.add_argument('--shape', type=int, nargs='+', metavar='SIZE',
                        help='size of one sample: C H W, or H W with the channels of the first '
                        'layer; default: the size in the config, else the one that the model '
                        'states, else 224 224')
    parser.add_argument('--json', metavar='FILE', help='write all numbers, layer by layer, here')
    costs.latency_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with cli.user_errors():
        if args.json:
            checks.check_output_file(args.json)
        config = cli.read_config(args.config, args.cfg_options)
        found = costs.config_costs(config, args.shape, args.batch_size if args.latency else None)
        if args.json:
            atomic_write(json.dumps(found.to_dict(), indent=1) + '\n', args.json)
        print(found.text(), end='')


if __name__ == '__main__':
    main()
