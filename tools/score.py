#!/usr/bin/env python3
"""Score a trained model's channels and write the scores to a file, for tools/prune.py --scores."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmprune_ext.engine import checks, cli


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog='The scores of one file serve any target.')
    cli.config_arguments(parser)
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='weights of the dense model')
    parser.add_argument('--algorithm', required=True, help='method: l1, chip')
    parser.add_argument('-o', '--output-path', required=True, metavar='FILE')
    parser.add_argument('--calib-batches', type=cli.positive, default=5, metavar='N',
                        help='training batches to score on, for a method that needs data')
    parser.add_argument('--save-every', type=cli.positive, default=10, metavar='N',
                        help='batches after which the sums so far are written to FILE.partial')
    parser.add_argument('--resume', action='store_true', help='go on from FILE.partial')
    cli.tracing_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with cli.user_errors():
        from mmprune_ext.engine.scoring import score_model
        checks.check_output_file(args.output_path)
        config = cli.read_config(args.config, args.cfg_options)
        partial = Path(f'{args.output_path}.partial')
        if not args.resume:
            partial.unlink(missing_ok=True)
        calibration = {'num_batches': args.calib_batches, 'partial': str(partial),
                       'save_every': args.save_every}
        scored = score_model(config, args.checkpoint, args.output_path, args.algorithm,
                             {'scope': args.scope, 'calibration': calibration}, args.input_size)
        print(f'scores of {len(scored.scores)} units: {args.output_path}')


if __name__ == '__main__':
    main()
