"""Score a trained model's channels and write the scores to a file, for tools/prune.py --scores."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from mmprune_ext.cli import arguments
from mmprune_ext.cli.errors import fail, user_errors
from mmprune_ext.cli.memory import keep_freed_memory
from mmprune_ext.paths import check_output_file
from mmprune_ext.trust import checkpoints


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Read the arguments."""
    parser = argparse.ArgumentParser(
        prog, description=__doc__, epilog='The scores of one file serve any target.')
    arguments.config_arguments(parser)
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='weights of the dense model')
    parser.add_argument('--algorithm', required=True, help='method: l1, chip, fisher, obs')
    parser.add_argument('-o', '--output-path', required=True, metavar='FILE')
    arguments.scoring_arguments(parser)
    parser.add_argument('--save-every', type=arguments.positive, default=10, metavar='N',
                        help='batches after which the sums so far are written to FILE.partial')
    parser.add_argument('--resume', action='store_true', help='go on from FILE.partial')
    parser.add_argument('--overwrite', action='store_true', help='replace FILE and FILE.partial')
    arguments.tracing_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command; by default with the arguments of the process, under its name."""
    args = parse_args(argv, prog)
    keep_freed_memory()
    kept = '--resume goes on from what is scored'
    with user_errors(kept), checkpoints(args.trust_checkpoint), ExitStack() as then:
        arguments.require_inputs(args)
        partial = Path(f'{args.output_path}.partial')
        check_output_file(args.output_path, args.overwrite)
        if partial.exists() and not (args.resume or args.overwrite):
            fail(f'{partial}: there are the sums of an interrupted run; go on from them with --resume, or begin anew '
                 'with --overwrite')
        then.enter_context(arguments.tracing(args))
        from mmprune_ext.settings import reading
        from mmprune_ext.workflows.scoring import score_model
        config = reading.read_config(args.config, args.cfg_options)
        if not args.resume:
            partial.unlink(missing_ok=True)
        calibration = {'num_batches': args.calib_batches, 'partial': str(partial),
                       'save_every': args.save_every}
        scored = score_model(config, args.checkpoint, args.output_path, args.algorithm,
                             {'scope': args.scope, 'whole_heads': args.whole_heads or None, 'calibration': calibration,
                              'options': args.method_options},
                             args.input_size)
        print(f'scores of {len(scored.scores)} units: {args.output_path}')
