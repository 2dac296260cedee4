#!/usr/bin/env python3
"""Write docs/prunable.md: channel units of known networks, and why some cannot be pruned.

Every network is traced as tools/get_channel_units.py does it, in a process of its own, at the size that
its config leads to.
Example: python docs/make_prunable_table.py --check --models ResNet-18 RetinaNet
"""

from __future__ import annotations

import argparse
import importlib
import logging
import multiprocessing
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.networks import BUILT, CIFAR, MORE_TASKS, NETWORKS, TASKS, ZOO, read, select, source
from mmprune_ext.atomic import atomic_write
from mmprune_ext.cli import arguments
from mmprune_ext.cli.errors import fail, user_errors
from mmprune_ext.errors import PruningError
from mmprune_ext.units import ChannelUnit, Reason, UnitSet
from mmprune_ext.workflows.pruning import trace_config

PAGE = Path(__file__).resolve().with_name('prunable.md')
TOP = """\
# What can be pruned

Written by `python docs/make_prunable_table.py`, which traces every network by the config that its
library ships or that lies in `configs/cifar`, as `tools/get_channel_units.py` does. Do not edit.

Scope is the backbone: the default. *units* counts all [channel units](channel_units.md) of the whole
model, *prunable* those that may lose channels, *channels* the channels of the prunable ones among
all. The networks of [torchvision and timm](other_libraries.md), built by the call that is shown, are traced whole
(scope `all`). Every prunable one was pruned at random and compared with the dense model ([how](tracing.md)). A
unit that is not prunable stays whole; its neighbours can still be pruned.
"""
HEAD = """
| network | config | units | prunable | channels |
| --- | --- | ---: | ---: | ---: |
"""
CALLS = {name: source(family) for name, family in BUILT.items()}
GROUPS: Mapping[str, Mapping[str, str]] = {
    'Classification': {**ZOO, **CIFAR},
    'Detection, segmentation, pose': TASKS,
    'More detectors, segmentors and pose estimators': MORE_TASKS,
    **{library: {name: call for name, call in CALLS.items() if name.startswith(f'{library}/')}
       for library in ('torchvision', 'timm')}}
SOURCES: Mapping[str, str] = {**NETWORKS, **CALLS}


class Entry(NamedTuple):
    """What the page says of one network: its row, and the lines on what stays whole."""

    row: str
    lines: str


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--models', nargs='+', metavar='NAME',
                        help='networks by the beginning of their names, printed; default: all')
    parser.add_argument('--check', action='store_true',
                        help='compare with docs/prunable.md instead of writing it')
    parser.add_argument('--update', action='store_true',
                        help='with --models: replace what the page says of these, and leave the rest as it is')
    parser.add_argument('--limit', type=arguments.positive, default=600, metavar='SECONDS',
                        help='of one network (default: %(default)s)')
    args = parser.parse_args()
    if args.update and not args.models:
        parser.error('--update: name networks by --models; without them the whole page is written anew')
    return args


def kind(name: str) -> str:
    """Return a path with its numbers replaced, the same for all like units of a network."""
    return re.sub(r'\d+', 'N', re.sub(r'#\d+$', '', name))


def refused(units: UnitSet) -> Iterator[str]:
    """Yield a line for each kind of unit that is not prunable: how many, and why."""
    kinds: dict[tuple[str, Reason | None], list[ChannelUnit]] = {}
    for unit in units.values():
        if not unit.prunable:
            like = '' if unit.reason is Reason.OUT_OF_SCOPE else kind(unit.name)
            kinds.setdefault((like, unit.reason), []).append(unit)
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


def traced(name: str) -> Entry:
    """Trace a network and return its entry."""
    units = trace_config(read(name), 'all' if name in BUILT else None)
    channels = sum(unit.num_channels for unit in units.prunable.values())
    if units.coverage.unexplained:
        raise PruningError(f'{units.coverage.unexplained:.1%} of its parameters lie in no unit, and nothing says why')
    total = sum(unit.num_channels for unit in units.values())
    return Entry(f'| {name} | `{SOURCES[name]}` | {len(units)} | {len(units.prunable)} | '
                 f'{channels} of {total} |\n', ''.join(f'{line}\n' for line in refused(units)))


def not_traced(name: str, why: str) -> Entry:
    """Return the entry of a network that cannot be traced."""
    return Entry(f'| {name} | `{SOURCES[name]}` | | | not traced |\n', f'* not traced: {why}\n')


def _send_entry(name: str, pipe: Connection) -> None:
    warnings.simplefilter('ignore')
    logging.disable(logging.WARNING)
    try:
        entry = traced(name)
    except Exception as error:  # whatever fails is what the page is to say
        if not isinstance(error, PruningError):
            traceback.print_exc()
        text = ' '.join(str(error).split())[:300]
        entry = not_traced(name, text if isinstance(error, PruningError)
                           else f'{type(error).__name__}: {text}')
    pipe.send(entry)


def entry_of(name: str, limit: int) -> Entry:
    """Trace a network in a process of its own: the libraries' registries are global."""
    print(f'{name} ...', file=sys.stderr, flush=True)
    context = multiprocessing.get_context('fork')
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send_entry, args=(name, theirs))
    process.start()
    theirs.close()
    try:
        return ours.recv() if ours.poll(limit) else not_traced(name, f'not done after {limit} s')
    except EOFError:
        return not_traced(name, 'the process ended')
    finally:
        process.kill()
        process.join()


def page(entries: Mapping[str, Entry]) -> str:
    """Return the page."""
    tables = (f'\n## {title}\n{HEAD}' + ''.join(entries[name].row for name in group if name in entries)
              for title, group in GROUPS.items() if not entries.keys().isdisjoint(group))
    return TOP + ''.join(tables) + '\n## What stays whole, and why\n' + ''.join(
        section(name, entry) for name, entry in entries.items())


def section(name: str, entry: Entry) -> str:
    """Return the lines on one network."""
    lines = entry.lines or 'Nothing.\n'
    return f'\n### {name}\n\n{lines}'


def known_entries() -> dict[str, Entry]:
    """Return what the page says of the networks that it lists."""
    text = PAGE.read_text()
    rows = {line[2:].partition(' | ')[0]: f'{line}\n' for line in text.splitlines() if line.startswith('| ')}
    lines = dict(part.split('\n\n', 1) for part in text.split('\n### ')[1:])
    return {name: Entry(rows[name], lines[name]) for name in SOURCES if name in lines}


def import_libraries(names: list[str]) -> None:
    """Import what the networks need once, for all processes."""
    for library in dict.fromkeys(NETWORKS[name].partition('::')[0] for name in names if name in NETWORKS):
        if not library.endswith('.py'):
            importlib.import_module(f'{library}.models')


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)  # threads do not survive a fork, and sums depend on their number
    with user_errors():
        names = select(args.models, SOURCES, SOURCES)
        import_libraries(names)
        entries = {}
        for name in names:
            entries[name] = entry_of(name, args.limit)
            if args.update:  # at once, so that it may be stopped and go on with those that are left
                known = {**known_entries(), **entries}
                atomic_write(page({name: known[name] for name in SOURCES if name in known}), PAGE)
        if args.check:
            known = PAGE.read_text() if PAGE.is_file() else ''
            for name, entry in entries.items():
                if entry.row not in known or section(name, entry) not in known:
                    now = f'{entry.row}{section(name, entry)}'.splitlines()
                    other = next(line for line in now if line not in known.splitlines())
                    fail(f'{PAGE} does not say of {name} what it gives now; run this script without --check. It lacks '
                         f'"{other}"')
        elif args.update:
            print(PAGE)
        elif args.models:
            print(page(entries), end='')
        else:
            atomic_write(page(entries), PAGE)
            print(PAGE)


if __name__ == '__main__':
    main()
