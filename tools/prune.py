#!/usr/bin/env python3
"""Prune a trained model: config, checkpoint, method and target in; compact model and report out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmprune_ext.engine import checks, cli, costs


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog='Budgets give the share that REMAINS, --ratio the share of '
        'channels that is REMOVED.')
    cli.config_arguments(parser)
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='weights of the dense model')
    parser.add_argument('--algorithm', required=True, help='method: l1, chip')
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument('--flops', type=float, metavar='SHARE',
                        help='share of the multiply-accumulates that remains')
    target.add_argument('--params', type=float, metavar='SHARE')
    target.add_argument('--channels', type=float, metavar='SHARE')
    target.add_argument('--ratio', metavar='RATIO',
                        help='pruning ratio of every unit, a JSON file {unit: ratio}, or a '
                        'sparsity string "[0.]+[0.1]*3+[0.35]*16"')
    parser.add_argument('-o', '--output-dir', required=True, metavar='DIR')
    parser.add_argument('--spread', choices=['uniform', 'global'], default='uniform',
                        help='a budget takes an equal share of every unit, or the lowest scores')
    parser.add_argument('--budget-scope', default='', metavar='MODULE',
                        help='measure the budget on this submodule (default: the whole model)')
    parser.add_argument('--exclude', nargs='+', default=[], metavar='UNIT',
                        help='units that stay whole, names or patterns')
    parser.add_argument('--divisor', type=int, default=1, help='kept numbers are multiples of it')
    parser.add_argument('--min-channels', type=int, default=1)
    parser.add_argument('--calib-batches', type=cli.positive, default=5, metavar='N',
                        help='training batches to score on, for a method that needs data')
    parser.add_argument('--scores', metavar='FILE', help='take the scores that tools/score.py wrote')
    parser.add_argument('--bn-batches', type=cli.not_negative, default=20, metavar='N',
                        help='training batches to re-estimate the batch statistics on (0: none)')
    cli.tracing_arguments(parser)
    costs.report_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with cli.user_errors():
        from mmprune_ext.engine.pruning import prune_model
        checks.check_output_folder(args.output_dir)
        extras = costs.report_extras(args)
        config = cli.read_config(args.config, args.cfg_options)
        if args.bn_batches > 0:
            cli.require_sections(config, ['train_dataloader'],
                                 'to re-estimate batch statistics (or give --bn-batches 0)')
            checks.check_datasets(config, ['train'])
        budget = {key: value for key in ('flops', 'params', 'channels')
                  if (value := getattr(args, key)) is not None}
        if budget:
            budget.update(spread=args.spread, scope=args.budget_scope)
        mutator = {'scope': args.scope, 'exclude': args.exclude, 'divisor': args.divisor,
                   'min_channels': args.min_channels,
                   'calibration': {'num_batches': args.calib_batches}}
        costs.print_exported(prune_model(
            config, args.checkpoint, args.output_dir, args.algorithm, mutator,
            ratios=cli.number_or_text(args.ratio), budget=budget or None,
            input_size=args.input_size, bn_batches=args.bn_batches, scores=args.scores,
            extras=extras))


if __name__ == '__main__':
    main()
