"""Prune a trained model: config, checkpoint, method and target in; compact model and report out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack

from mmprune_ext.cli import arguments
from mmprune_ext.cli.errors import user_errors
from mmprune_ext.cli.memory import keep_freed_memory
from mmprune_ext.paths import check_result_folder
from mmprune_ext.trust import checkpoints

RESOURCES = ('flops', 'params', 'channels', 'volume')


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Read the arguments."""
    parser = argparse.ArgumentParser(
        prog, description=__doc__, epilog='Budgets give the share that REMAINS, --ratio the share of '
        'channels that is REMOVED.')
    arguments.config_arguments(parser)
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='weights of the dense model')
    parser.add_argument('--algorithm', help='method: l1, chip, fisher, obs; required, but for --units')
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument('--flops', type=arguments.share, metavar='SHARE',
                        help='share of the multiply-accumulates that remains')
    target.add_argument('--params', type=arguments.share, metavar='SHARE')
    target.add_argument('--channels', type=arguments.share, metavar='SHARE')
    target.add_argument('--volume', type=arguments.share, metavar='SHARE',
                        help='share of the output values of convolution and linear layers that remains')
    target.add_argument('--ratio', type=arguments.ratio, metavar='RATIO',
                        help='pruning ratio of every unit, a JSON file {unit: ratio}, or a '
                        'sparsity string "[0.]+[0.1]*3+[0.35]*16"')
    target.add_argument('--units', metavar='FILE', help='the channels that another pruned model keeps: '
                        'its channel-unit file, or a checkpoint of its pruning run')
    target.add_argument('--max-drop', type=arguments.not_negative_number, metavar='POINTS',
                        help='with --sensitivity: the smallest network whose measured metric falls by at most so '
                        "much, in the metric's own unit")
    parser.add_argument('--sensitivity', metavar='FILE', help='ratios of least predicted drop, from the file of '
                        'tools/sensitivity.py; with a budget or --max-drop')
    parser.add_argument('--resource', choices=RESOURCES, help='what --max-drop makes smallest (default: flops)')
    arguments.output_folder_arguments(parser)
    parser.add_argument('--spread', choices=['uniform', 'global', 'isomorphic'],
                        help='a budget takes an equal share of every unit (default), the lowest scores, or the lowest '
                        'scores of an equal share of each group of units of like structure')
    parser.add_argument('--budget-scope', default='', metavar='MODULE',
                        help='measure the budget on this submodule (default: the whole model)')
    parser.add_argument('--exclude', nargs='+', default=[], metavar='UNIT',
                        help='units that stay whole, names or patterns')
    parser.add_argument('--divisor', type=arguments.positive, default=1, help='kept numbers are multiples of it')
    parser.add_argument('--round-up', action='store_true', help='round them up to the divisor, not down')
    parser.add_argument('--min-channels', type=arguments.positive, default=1)
    arguments.scoring_arguments(parser)
    parser.add_argument('--scores', metavar='FILE', help='take the scores that tools/score.py wrote')
    parser.add_argument('--bn-batches', type=arguments.not_negative, default=20, metavar='N',
                        help='training batches to re-estimate the batch statistics on (default: 20; 0: none, nor a '
                        'repair that is not asked for)')
    arguments.repair_argument(parser)
    arguments.tracing_arguments(parser)
    arguments.report_arguments(parser)
    arguments.finetune_arguments(parser)
    args = parser.parse_args(argv)
    _check_units_alone(parser, args)
    _check_sensitivity(parser, args)
    return args


def _check_units_alone(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse what has no part in a choice that is taken over, and a target without a method."""
    if args.units is None:
        if args.algorithm is None:
            parser.error('the following arguments are required: --algorithm')
        return
    choosing = ('algorithm', 'spread', 'budget_scope', 'exclude', 'divisor', 'round_up', 'min_channels',
                'calib_batches', 'method_options', 'scores', 'sensitivity', 'whole_heads')
    given = [f'--{name.replace("_", "-")}' for name in choosing if getattr(args, name) != parser.get_default(name)]
    if given:
        parser.error(f'argument --units: not allowed with {", ".join(given)}; the file says which channels stay')


def _check_sensitivity(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.max_drop is not None and args.sensitivity is None:
        parser.error('argument --max-drop: needs --sensitivity FILE, which tools/sensitivity.py writes')
    if args.resource is not None and args.max_drop is None:
        parser.error('argument --resource: belongs to --max-drop; a budget names its resource itself')
    if args.sensitivity is not None and args.ratio is not None:
        parser.error('argument --sensitivity: not allowed with --ratio; give a budget (--flops SHARE) or --max-drop')
    if args.sensitivity is not None and args.spread is not None:
        parser.error('argument --sensitivity: not allowed with --spread; it spreads the budget itself')


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command; by default with the arguments of the process, under its name."""
    args = parse_args(argv, prog)
    keep_freed_memory()
    with user_errors(f'{args.output_dir} is as it was'), checkpoints(args.trust_checkpoint), ExitStack() as then:
        arguments.require_inputs(args)
        check_result_folder(args.output_dir, args.overwrite)
        then.enter_context(arguments.tracing(args))
        from mmprune_ext.cli import reports
        from mmprune_ext.settings import reading
        from mmprune_ext.workflows.max_drop import prune_to_drop
        from mmprune_ext.workflows.pruning import prune_by_units, prune_model
        extras, finetune = reports.report_extras(args), reports.finetune_of(args)
        config = reading.read_config(args.config, args.cfg_options)
        if args.repair:
            reading.require_training_data(config, 'to repair the weights on (or give --repair 0)')
        elif args.bn_batches > 0:
            reading.require_training_data(config, 'to re-estimate batch statistics (or give --bn-batches 0)')
        if args.units is not None:
            reports.print_exported(prune_by_units(
                config, args.checkpoint, args.output_dir, args.units, args.scope or 'backbone', args.input_size,
                args.bn_batches, extras, finetune, args.repair))
            return
        budget = {key: value for key in RESOURCES
                  if (value := getattr(args, key)) is not None}
        if budget:
            spread = {'spread': args.spread or 'uniform'} if args.sensitivity is None else {
                'spread': 'sensitivity', 'sensitivity': args.sensitivity}
            budget.update(spread, scope=args.budget_scope)
        mutator = {'scope': args.scope, 'exclude': args.exclude, 'divisor': args.divisor,
                   'min_channels': args.min_channels, 'round_up': args.round_up or None,
                   'whole_heads': args.whole_heads or None,
                   'calibration': {'num_batches': args.calib_batches}, 'options': args.method_options}
        if args.max_drop is not None:
            reports.print_exported(prune_to_drop(
                config, args.checkpoint, args.output_dir, args.algorithm, mutator, args.sensitivity, args.max_drop,
                args.resource or 'flops', args.budget_scope, args.input_size, args.bn_batches, args.scores, extras,
                finetune, args.repair))
            return
        reports.print_exported(prune_model(
            config, args.checkpoint, args.output_dir, args.algorithm, mutator,
            ratios=arguments.number_or_text(args.ratio), budget=budget or None,
            input_size=args.input_size, bn_batches=args.bn_batches, scores=args.scores,
            extras=extras, finetune=finetune, repair_images=args.repair))
