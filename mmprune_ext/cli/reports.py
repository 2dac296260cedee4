"""What commands read and write beside models: metrics, and the report of an export."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmprune_ext.analysis import Report
from mmprune_ext.atomic import atomic_write
from mmprune_ext.compact.export import Exported, Extras
from mmprune_ext.compact.provenance import file_digest, target_text
from mmprune_ext.errors import PruningError
from mmprune_ext.paths import COMPACT
from mmprune_ext.settings.finetune import Finetune


def report_extras(args: argparse.Namespace) -> Extras:
    """Return what :func:`mmprune_ext.cli.arguments.report_arguments` asked for.

    Raises:
        PruningError: If a file of metrics cannot be read.
    """
    return Extras(args.batch_size if args.latency else None,
                  dict(map(_read_metrics, args.metrics)) or None,
                  getattr(args, 'stripe_forms', None), args.batch_size, pad_to=getattr(args, 'pad_to', None),
                  asked=_asked(args))


def _asked(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the command line says of where a model comes from."""
    found = {'command': shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]), 'config': args.config}
    if args.checkpoint is not None:
        found.update(checkpoint=args.checkpoint, digest=file_digest(args.checkpoint))
    if getattr(args, 'dense', None):
        found.update(method='repair', settings={'images': args.images, 'bn_batches': args.bn_batches,
                                                'dense': ' '.join(args.dense)})
    elif hasattr(args, 'algorithm'):
        names = ('flops', 'params', 'channels', 'volume', 'ratio', 'units', 'max_drop', 'spread', 'sensitivity',
                 'budget_scope', 'scope', 'exclude', 'divisor', 'min_channels', 'scores', 'calib_batches',
                 'method_options', 'repair', 'bn_batches')
        given = {name: getattr(args, name) for name in names}
        found.update(method=args.algorithm or 'channels of another model', settings={
            name: value for name, value in given.items() if value not in (None, '', [], {})})
    return found


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
    """Print what came out of an export; lists, tables of units and what numbers count stand in its report."""
    print(*summary(exported), sep='\n')


def summary(exported: Exported) -> list[str]:
    """Return some ten lines: method and target, costs, latency and metrics where they are known, files, training."""
    report, folder = exported.report, exported.config.parent
    source, units = report.provenance or {}, report.units
    target = target_text(source)
    changed = [unit for unit in units.prunable.values() if unit.keep < unit.num_channels]
    parts = dict.fromkeys(name.partition('.')[0] for name in units.prunable)
    found = [f'{source.get("method") or "compact model"}{f", {target}" if target else ""}: '
             f'{len(changed)} of {len(units.prunable)} prunable units lose channels, in {", ".join(parts) or "none"}',
             _costs('MACs', report, 'macs'), _costs('parameters', report, 'params')]
    if report.latency is not None:
        dense, compact = report.latency.dense, report.latency.compact
        found.append(f'Latency in ms of a batch of {dense.batch_size}: {dense.median_ms:.2f} to '
                     f'{compact.median_ms:.2f}')
    names = dict.fromkeys(name for values in (report.metrics or {}).values() for name in values)
    found += [f'{name}: ' + ', '.join(f'{stage} {values[name]:.4g}' for stage, values in report.metrics.items()
                                      if name in values) for name in names]
    if report.mended is not None:
        found.append(report.mended.lines()[0])
    if report.drop is not None:
        found += report.drop.lines()
    written = sorted(path.name for path in folder.iterdir() if path.name in COMPACT)
    found.append(f'{exported.config}, with {", ".join(name for name in written if name != exported.config.name)}')
    return found + (['compact_config.py does not say how to train'] if report.training is None
                    else report.training.lines())


def _costs(words: str, report: Report, key: str) -> str:
    """Return a line of what remains of a resource, of the whole model and of its backbone."""
    pairs = [(name, getattr(report.dense, f'{prefix}{key}'), getattr(report.compact, f'{prefix}{key}'))
             for name, prefix in (('whole model', ''), ('backbone', 'backbone_'))]
    return f'{words}: ' + '; '.join(f'{name} {dense:,} to {compact:,} ({compact / dense:.1%})'
                                    for name, dense, compact in pairs if dense)


def write_metrics(metrics: Mapping[str, Any], path: str) -> None:
    """Write metrics as JSON."""
    numbers = {key: float(value) for key, value in metrics.items()
               if isinstance(value, (int, float)) or hasattr(value, 'item')}
    atomic_write(json.dumps(numbers, indent=2) + '\n', path)
