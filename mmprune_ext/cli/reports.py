"""What commands read and write beside models: metrics, and the report of an export."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmprune_ext.atomic import atomic_write
from mmprune_ext.compact.export import Exported, Extras
from mmprune_ext.errors import PruningError
from mmprune_ext.settings.finetune import Finetune


def report_extras(args: argparse.Namespace) -> Extras:
    """Return what :func:`mmprune_ext.cli.arguments.report_arguments` asked for.

    Raises:
        PruningError: If a file of metrics cannot be read.
    """
    return Extras(args.batch_size if args.latency else None,
                  dict(map(_read_metrics, args.metrics)) or None,
                  getattr(args, 'stripe_forms', None), args.batch_size, pad_to=getattr(args, 'pad_to', None))


def finetune_of(args: argparse.Namespace) -> Finetune | None:
    """Return what :func:`mmprune_ext.cli.arguments.finetune_arguments` asked for.

    Raises:
        PruningError: If a learning rate is to be scaled in no schedule.
    """
    if args.finetune is None:
        if args.lr_scale is not None:
            raise PruningError('--lr-scale belongs to --finetune EPOCHS, which is not given')
        return None
    return Finetune(args.finetune) if args.lr_scale is None else Finetune(args.finetune, args.lr_scale)


def _read_metrics(text: str) -> tuple[str, dict[str, float]]:
    name, _, path = text.partition('=')
    where = f'--metrics {text}'
    if not name or not path:
        raise PruningError(f'{where}: expected NAME=FILE, such as dense=dense.json')
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise PruningError(f'{where}: cannot be read ({error}); write it with tools/test.py --json'
                           ) from error
    if not isinstance(content, dict) or not all(
            isinstance(value, (int, float)) for value in content.values()):
        raise PruningError(f'{where}: should hold one number a metric, as tools/test.py --json writes')
    return name, content


def print_exported(exported: Exported) -> None:
    """Print the report and the paths of an export."""
    print(exported.report.text())
    for path in (exported.checkpoint, exported.units, exported.config,
                 exported.checkpoint.parent / 'report.txt'):
        print(path)
    if exported.report.mended is not None:
        print(exported.report.mended.lines()[0])
    if exported.report.drop is not None:
        print(*exported.report.drop.lines(), sep='\n')
    training = exported.report.training
    print(*(['compact_config.py does not say how to train'] if training is None else training.lines()), sep='\n')


def write_metrics(metrics: Mapping[str, Any], path: str) -> None:
    """Write metrics as JSON."""
    numbers = {key: float(value) for key, value in metrics.items()
               if isinstance(value, (int, float)) or hasattr(value, 'item')}
    atomic_write(json.dumps(numbers, indent=2) + '\n', path)
