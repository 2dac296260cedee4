"""Arguments that several commands take.

Nothing here imports what takes long: a command answers for its arguments at once.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
from collections.abc import Iterator
from typing import Any

from mmprune_ext.paths import require_file
from mmprune_ext.trust import FLAG

# Training images of a repair that does not say how many.
REPAIR_IMAGES = 1024


class SettingsAction(argparse.Action):
    """mmengine's reader of KEY=VALUE that tells what it cannot read."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,
                 option_string: str | None = None) -> None:
        """Store the settings as a dict."""
        from mmengine.config import DictAction
        for value in values:
            if not value.partition('=')[0] or '=' not in value:
                raise argparse.ArgumentError(self, f'expected KEY=VALUE, got "{value}"')
        try:
            DictAction(self.option_strings, self.dest)(parser, namespace, values, option_string)
        except (ValueError, AssertionError) as error:
            raise argparse.ArgumentError(self, f'{" ".join(values)}: {error}') from error


def positive(text: str) -> int:
    """Read an argument that is an integer of at least 1."""
    return _integer(text, 1)


def positive_number(text: str) -> float:
    """Read an argument that is a number above 0."""
    number = _number(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f'expected a number above 0, got {text}')
    return number


def not_negative(text: str) -> int:
    """Read an argument that is an integer of at least 0."""
    return _integer(text, 0)


def not_negative_number(text: str) -> float:
    """Read an argument that is a number of at least 0."""
    number = _number(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f'expected a number of at least 0, got {text}')
    return number


def _integer(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:  # of which argparse would tell the name of a function
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f'expected an integer of at least {least}, got {text}')
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def number_or_text(text: str | None) -> float | str | None:
    """Read an argument that is a number or the text of something else."""
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return text


def share(text: str) -> float:
    """Read an argument that is the share of a resource that remains."""
    number = _number(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f'expected the share that remains, above 0 and at most 1, got {text}'
                                         + _as_share(number))
    return number


def ratio(text: str) -> str:
    """Read an argument that is the share of channels that is removed, or the text of something else."""
    number = number_or_text(text)
    if isinstance(number, float) and not 0 <= number < 1:
        raise argparse.ArgumentTypeError('a pruning ratio is the share of channels removed, at least 0 and below 1, '
                                         f'got {text}{_as_share(number)}')
    return text


def _as_share(number: float) -> str:
    return f'; did you mean {number / 100:g}?' if 1 < number < 100 else ''


def require_inputs(args: argparse.Namespace) -> None:
    """Check that the files that arguments name are there, before anything takes long.

    Raises:
        PruningError: Naming the first that is not.
    """
    for name, what in _FILES.items():
        path = getattr(args, name, None)
        if isinstance(path, str):
            require_file(path, what)
    if getattr(args, 'dense', None):
        require_file(args.dense[0], '--dense: config')
        require_file(args.dense[1], '--dense: checkpoint')
    for text in getattr(args, 'metrics', []):
        if '=' in text:
            require_file(text.partition('=')[2], f'--metrics {text}:')
    given = number_or_text(getattr(args, 'ratio', None))
    if isinstance(given, str) and given.endswith('.json'):
        require_file(given, '--ratio:')


_FILES = {'config': 'config', 'checkpoint': 'checkpoint', 'positional': 'checkpoint', 'resume': '--resume: checkpoint',
          'units': '--units:', 'scores': '--scores:', 'sensitivity': '--sensitivity:'}


def output_folder_arguments(parser: argparse.ArgumentParser, goes_on: bool = False) -> None:
    """Add ``--output-dir`` and ``--overwrite``.

    Args:
        parser: Where to.
        goes_on: Whether the command goes on with what an interrupted run of it has left there.
    """
    parser.add_argument('-o', '--output-dir', required=True, metavar='DIR')
    parser.add_argument('--overwrite', action='store_true', help=(
        'begin anew where an earlier measurement lies in DIR' if goes_on else 'replace an earlier result in DIR')
        + ', and let other files lie beside')


def config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the CONFIG argument and ``--cfg-options``."""
    parser.add_argument('config', metavar='CONFIG', help='config file, or a library\'s own as '
                        '"mmpretrain::resnet/resnet18_8xb32_in1k.py"')
    parser.add_argument('--cfg-options', nargs='+', action=SettingsAction, default={},
                        metavar='KEY=VALUE', help='override settings of the config')
    parser.add_argument(FLAG, action='store_true', help='read checkpoints that hold more than weights, which may run '
                        'code; only of where you trust them')


def launcher_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--launcher``."""
    parser.add_argument('--launcher', default='none', choices=['none', 'pytorch', 'slurm', 'mpi'],
                        help='how the processes of a distributed run were started')
    # torch.distributed.launch, which mim starts, says by argument what it says by LOCAL_RANK too.
    parser.add_argument('--local-rank', '--local_rank', type=int, help=argparse.SUPPRESS)


def tracing_arguments(parser: argparse.ArgumentParser, scope: bool = True) -> None:
    """Add what tells how a model is traced."""
    parser.add_argument('--input-size', nargs=2, type=positive, metavar=('H', 'W'),
                        help='image size to run the model on (default: the size in the config)')
    if scope:
        parser.add_argument('--scope', nargs='+', default=None, metavar='MODULE',
                            help='submodules to prune, or all (default: backbone)')
        parser.add_argument('--whole-heads', action='store_true',
                            help='a channel of attention is one of its heads, and not one place in each of them')
        effort_arguments(parser)


def effort_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--timeout`` and ``--no-cache``."""
    parser.add_argument('--timeout', type=positive_number, metavar='SECONDS',
                        help='give up, with exit code 2, a tracing of the model that takes longer, its check by '
                        'execution included (default: it takes its time)')
    parser.add_argument('--no-cache', action='store_true',
                        help='trace the model anew, and do not keep its units for the next command')


@contextlib.contextmanager
def tracing(args: argparse.Namespace) -> Iterator[None]:
    """Let what :func:`effort_arguments` asked for hold in a block."""
    from mmprune_ext.units.cache.store import cache_folder
    from mmprune_ext.units.tracing.effort import Effort
    from mmprune_ext.units.tracing.effort import tracing as holding
    first = os.environ.get('RANK') or os.environ.get('SLURM_PROCID') or '0'  # of the processes of a distributed run
    with holding(Effort(first == '0', args.timeout, None if args.no_cache else cache_folder())):
        yield


def scoring_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--calib-batches`` and ``--method-options``."""
    parser.add_argument('--calib-batches', type=positive, default=5, metavar='N',
                        help='training batches to score on, for a method that needs data')
    parser.add_argument('--method-options', nargs='+', action=SettingsAction, default={}, metavar='KEY=VALUE',
                        help="the method's own settings, as its mutator takes them in a config: cost=macs")


def latency_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--latency`` and ``--batch-size``."""
    parser.add_argument('--latency', action='store_true',
                        help='measure the time of a forward pass too, on the accelerator if there '
                        'is one')
    parser.add_argument('--batch-size', type=positive, default=1, metavar='N',
                        help='images of a pass that is timed (default: 1)')


def report_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what an export's report tells beside costs."""
    latency_arguments(parser)
    parser.add_argument('--metrics', nargs='+', default=[], metavar='NAME=FILE',
                        help='metrics for the report, files that test.py --json wrote')


def repair_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--repair``."""
    parser.add_argument('--repair', nargs='?', type=not_negative, const=REPAIR_IMAGES, metavar='IMAGES',
                        help='give each layer, by least squares, the weights whose outputs are nearest to those of the '
                        f'dense model on so many training images ({REPAIR_IMAGES} without a number); keep that or new '
                        'batch statistics, whichever comes nearer to its outputs (default: as many images as the dense '
                        'model takes 10^12 multiply-accumulates for, 16 to 1024, and none with --bn-batches 0; 0: off)')


def finetune_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--finetune`` and ``--lr-scale``."""
    parser.add_argument('--finetune', type=positive, metavar='EPOCHS',
                        help='write a schedule for so many epochs of fine-tuning into the compact config, instead of '
                        "the config's own")
    parser.add_argument('--lr-scale', type=positive_number, metavar='FACTOR',
                        help="its learning rate, as a factor of the config's own (default: 0.1)")
