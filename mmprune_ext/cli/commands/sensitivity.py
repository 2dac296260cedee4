"""Prune each unit of a trained model alone and tell how much worse its metric gets: a file, a table, a picture."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from mmprune_ext.cli import arguments
from mmprune_ext.cli.errors import user_errors
from mmprune_ext.cli.memory import keep_freed_memory
from mmprune_ext.paths import MEASURED, check_result_folder
from mmprune_ext.trust import checkpoints

if TYPE_CHECKING:
    from mmprune_ext.targets import Sensitivity


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Read the arguments."""
    parser = argparse.ArgumentParser(
        prog, description=__doc__, epilog='The same command goes on where it was interrupted.')
    arguments.config_arguments(parser)
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='weights of the dense model')
    parser.add_argument('--algorithm', required=True, help='method by whose scores channels go: l1, chip, fisher, obs')
    arguments.output_folder_arguments(parser, goes_on=True)
    parser.add_argument('--ratios', nargs='+', type=_ratio, default=[round(0.1 * i, 1) for i in range(1, 10)],
                        metavar='RATIO', help='shares of a unit\'s channels that are removed (default: 0.1 ... 0.9)')
    parser.add_argument('--samples', type=arguments.not_negative, default=2000, metavar='N',
                        help='validation samples to measure on, spread evenly over all (default: 2000; 0: all)')
    parser.add_argument('--metric', metavar='NAME', help='metric of the config\'s evaluator (default: that of '
                        'save_best, else the first)')
    parser.add_argument('--rule', choices=['greater', 'less'],
                        help='whether more or less of the metric is better (default: as mmengine knows it)')
    parser.add_argument('--bn-batches', type=arguments.not_negative, default=0, metavar='N',
                        help='training batches to re-estimate the batch statistics on before each measurement '
                        '(default: 0, they stay as they are)')
    parser.add_argument('--scores', metavar='FILE', help='take the scores that tools/score.py wrote')
    arguments.scoring_arguments(parser)
    parser.add_argument('--exclude', nargs='+', default=[], metavar='UNIT',
                        help='units that are not measured, names or patterns')
    parser.add_argument('--divisor', type=arguments.positive, default=1, help='kept numbers are multiples of it')
    parser.add_argument('--min-channels', type=arguments.positive, default=1)
    parser.add_argument('--channels-last', action='store_true', help='keep maps channels last in memory: faster on '
                        'CPUs, other rounding')
    parser.add_argument('--fold', action='store_true', help='fold batch normalisation into the convolutions where '
                        'that leaves the model the same function: faster, other rounding')
    parser.add_argument('--no-sharing', action='store_true', help='compute every pass whole, also what is the same '
                        'in all ratios of a unit')
    parser.add_argument('--jobs', type=arguments.positive, default=1, metavar='N',
                        help='processes that measure, a unit at a time each; they share the cores (default: 1)')
    arguments.tracing_arguments(parser)
    args = parser.parse_args(argv)
    args.ratios = sorted(set(args.ratios))
    return args


def _ratio(text: str) -> float:
    try:
        ratio = float(text)
    except ValueError:
        ratio = math.nan
    if not 0 < ratio < 1:
        raise argparse.ArgumentTypeError(f'expected a share of channels to remove, above 0 and below 1, got {text}')
    return ratio


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command; by default with the arguments of the process, under its name."""
    args = parse_args(argv, prog)
    keep_freed_memory()
    kept = 'the same command goes on from what is measured'
    with user_errors(kept), checkpoints(args.trust_checkpoint), ExitStack() as then:
        arguments.require_inputs(args)
        check_result_folder(args.output_dir, args.overwrite, MEASURED)
        then.enter_context(arguments.tracing(args))
        from mmprune_ext.settings import reading
        from mmprune_ext.workflows.sensitivity import FILE, PICTURE, TABLE, Measurement, measure_sensitivity
        config = reading.read_config(args.config, args.cfg_options)
        mutator = {'scope': args.scope, 'exclude': args.exclude, 'divisor': args.divisor,
                   'min_channels': args.min_channels, 'whole_heads': args.whole_heads or None,
                   'calibration': {'num_batches': args.calib_batches}, 'options': args.method_options}
        found = measure_sensitivity(config, args.checkpoint, args.output_dir, args.algorithm, Measurement(
            args.ratios, args.samples, args.bn_batches, args.metric, args.rule, mutator, args.scores,
            args.input_size, args.channels_last, args.fold, not args.no_sharing, args.jobs), args.overwrite)
        print(summary(found))
        for name in (FILE, TABLE, PICTURE):
            print(Path(args.output_dir) / name)


def summary(found: Sensitivity) -> str:
    """Return a table of how far each unit can be pruned alone."""
    from mmprune_ext.analysis.tables import render
    # One point of a metric in percent; most others run from 0 to 1.
    allowed = 1.0 if abs(found.dense) > 1 else 0.01
    rows = []
    for name, curve in found.curves.items():
        fitting = [point for point in curve.points if point.keep < curve.channels and found.drop(point) <= allowed]
        best, last = fitting[-1] if fitting else None, curve.points[-1]
        rows.append((name, curve.channels, *((f'{best.ratio:g}', f'{best.metric:.4g}') if best else ('none', '')),
                     f'{last.metric:.4g}'))
    last = f'at {max(found.settings["ratios"]):g}'
    return render(('unit', 'channels', 'ratio', 'metric', last), rows, numbers=(1, 2, 3, 4), title=(
        f'{found.metric}: dense {found.dense:.4g} ({found.samples} samples); largest ratio at which it is at most '
        f'{allowed:g} worse, one unit alone'))
