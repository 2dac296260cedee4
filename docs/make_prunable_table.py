#!/usr/bin/env python3
"""Write docs/prunable.md: channel units of known networks, and why some cannot be pruned.

Every network is traced as tools/get_channel_units.py does it, at the image size of its config.
Example: python docs/make_prunable_table.py --check
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.networks import CIFAR, NETWORKS, ZOO, read, select
from mmprune_ext.atomic import atomic_write
from mmprune_ext.engine import cli
from mmprune_ext.engine.pruning import trace_config
from mmprune_ext.units import ChannelUnit, Reason, UnitSet

PAGE = Path(__file__).resolve().with_name('prunable.md')
TOP = """\
# What can be pruned

Written by `python docs/make_prunable_table.py`, which traces every network by the config that
mmpretrain ships or that lies in `configs/cifar`, as `tools/get_channel_units.py` does. Do not edit.

Scope is the backbone: the default. *units* counts all [channel units](channel_units.md) of the whole
model, *prunable* those that may lose channels, *channels* the channels of the prunable ones among
all. A unit that is not prunable stays whole; its neighbours can still be pruned.

| network | config | units | prunable | channels |
| --- | --- | ---: | ---: | ---: |
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--models', nargs='+', metavar='NAME',
                        help='networks by the beginning of their names, printed; default: all')
    parser.add_argument('--check', action='store_true',
                        help='compare with docs/prunable.md instead of writing it')
    return parser.parse_args()


def kind(name: str) -> str:
    """Return a path with its numbers replaced, the same for all like units of a network."""
    return re.sub(r'\d+', 'N', re.sub(r'#\d+$', '', name))


def refused(units: UnitSet) -> Iterator[str]:
    """Yield a line for each kind of unit that is not prunable: how many, and why."""
    kinds: dict[tuple[str, Reason | None], list[ChannelUnit]] = {}
    for unit in units.values():
        if not unit.prunable:
            kinds.setdefault((kind(unit.name), unit.reason), []).append(unit)
    for found in kinds.values():
        first = found[0]
        many = f' and {len(found) - 1} more' if len(found) > 1 else ''
        # Details hold texts of errors with names of Python objects; one line of it is enough.
        detail = f' ({first.detail})' if first.detail and first.detail != first.name else ''
        yield (f'* `{first.name}`{many}, {_widths(found)} channels: '
               f'{first.reason.value if first.reason else ""}{detail}')


def _widths(units: list[ChannelUnit]) -> str:
    numbers = sorted({unit.num_channels for unit in units})
    return str(numbers[0]) if len(numbers) == 1 else f'{numbers[0]} to {numbers[-1]}'


def page(names: list[str]) -> str:
    """Trace networks and return the page."""
    rows, lists = [], []
    for name in names:
        print(f'{name} ...', file=sys.stderr, flush=True)
        units = trace_config(read(name))
        channels = sum(unit.num_channels for unit in units.prunable.values())
        total = sum(unit.num_channels for unit in units.values())
        rows.append(f'| {name} | `{NETWORKS[name]}` | {len(units)} | {len(units.prunable)} | '
                    f'{channels} of {total} |\n')
        lists.append(f'\n### {name}\n\n' + ''.join(f'{line}\n' for line in refused(units)))
    return TOP + ''.join(rows) + '\n## What stays whole, and why\n' + ''.join(lists)


def main() -> None:
    args = parse_args()
    with cli.user_errors():
        text = page(select(args.models, [*ZOO, *CIFAR]))
        if args.models:
            print(text, end='')
        elif not args.check:
            atomic_write(text, PAGE)
            print(PAGE)
        elif not PAGE.is_file() or PAGE.read_text() != text:
            cli.fail(f'{PAGE} is not what the networks give now; run this script without --check')


if __name__ == '__main__':
    main()
