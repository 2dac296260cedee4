#!/usr/bin/env python3
"""Prune a network of each family of the zoos by half of all channels, and see if it stays the same function.

Each family is measured in a process of its own, once with the backbone as scope and once whole, with limits of time and
memory. A measurement is one file in the results folder; those that are there are not repeated, so that a run can be
stopped, continued and split by --families and --scopes. docs/make_zoo_table.py writes docs/zoo.md from the folder.

Example: python benchmarks/zoo.py --families mmpretrain/resnet mmdet --results work_dirs/zoo
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.machine import header, machine
from benchmarks.networks import FAMILIES, source
from mmprune_ext.atomic import atomic_write
from mmprune_ext.cli import arguments
from mmprune_ext.cli.errors import fail, user_errors

HERE = Path(__file__).resolve().parent
SCOPES = ('backbone', 'all')
TOOLS = ('mmprune_ext', 'torch-pruning')
# A network counts as pruned that loses at least so much of its parameters.
ENOUGH = 0.3


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--families', nargs='+', metavar='NAME', help='by the beginning of their names (default: all)')
    parser.add_argument('--scopes', nargs='+', choices=SCOPES, default=list(SCOPES))
    parser.add_argument('--torch-pruning', action='store_true', help='prune by Torch-Pruning, which has to be '
                        'installed, instead of by this package')
    parser.add_argument('--results', default='work_dirs/zoo', metavar='DIR')
    parser.add_argument('--limit', type=arguments.positive, default=600, metavar='SECONDS',
                        help='of one measurement (default: %(default)s)')
    parser.add_argument('--memory', type=arguments.positive_number, default=12, metavar='GB',
                        help='of one measurement (default: %(default)s)')
    parser.add_argument('--jobs', type=arguments.positive, default=1, metavar='N',
                        help='measurements at a time; times are those of a busy machine then')
    args = parser.parse_args()
    if args.torch_pruning and find_spec('torch_pruning') is None:
        parser.error('--torch-pruning: it is not installed; benchmarks/torch_pruning.py says how')
    return args


def selected(wanted: Sequence[str] | None) -> list[str]:
    """Return the families whose names begin with one of ``wanted``, all by default."""
    for begin in wanted or ():
        if not any(name.startswith(begin) for name in FAMILIES):
            fail(f'unknown family "{begin}"; benchmarks/zoo_families.json lists them')
    return [name for name in FAMILIES if wanted is None or name.startswith(tuple(wanted))]


def scopes_of(name: str) -> tuple[str, ...]:
    """Return the scopes that a family is measured in: networks of torchvision are pruned whole.

    Those of timm are backbones of mmpretrain, too.
    """
    return SCOPES[1:] if name.startswith('torchvision/') else SCOPES


class _Running:
    """A measurement in a process of its own."""

    def __init__(self, name: str, scope: str, tool: str, path: Path) -> None:
        self.name, self.scope, self.tool, self.path = name, scope, tool, path
        self.started = time.monotonic()
        self.log = path.with_suffix('.log').open('w')
        environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join(filter(None, (
            str(HERE.parent), os.environ.get('PYTHONPATH'))))}
        self.process = subprocess.Popen([sys.executable, str(HERE / 'zoo_family.py'), name, scope, str(path), tool],
                                        stdout=self.log, stderr=subprocess.STDOUT, env=environment)

    def ended(self, limit: float, memory: float) -> bool:
        """Whether it has ended, by itself or at a limit; then its file is there."""
        used, took = _gigabytes(self.process.pid), time.monotonic() - self.started
        if self.process.poll() is None and took <= limit and used <= memory:
            return False
        if self.process.poll() is None:
            message = f'over {limit:.0f} s' if took > limit else f'over {memory:g} GB'
            self.process.kill()
            self.process.wait()
        else:
            message = f'the process ended with {self.process.returncode}'
        self.log.close()
        if not self.path.exists():
            found = {'family': self.name, 'scope': self.scope, 'tool': self.tool,
                     'config': source(FAMILIES[self.name]), 'outcome': 'ended', 'message': message}
            atomic_write(json.dumps(found, indent=1), self.path)
        return True

    def stop(self) -> None:
        """End it before it has written anything."""
        self.process.kill()
        self.process.wait()
        self.log.close()


def _gigabytes(pid: int) -> float:
    try:
        with open(f'/proc/{pid}/status') as file:
            return next((float(line.split()[1]) for line in file if line.startswith('VmRSS')), 0.0) / 1e6
    except OSError:  # it has ended, or this is not Linux
        return 0.0


def measured(args: argparse.Namespace, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield all measurements that are asked for, those of earlier runs first."""
    tool = TOOLS[args.torch_pruning]
    folder = Path(args.results)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {(name, scope): folder / f'{tool}_{name.replace("/", "_")}_{scope}.json'
             for name in names for scope in args.scopes if scope in scopes_of(name)}
    yield from (json.loads(path.read_text()) for path in paths.values() if path.exists())
    waiting = [(key, path) for key, path in paths.items() if not path.exists()]
    running: list[_Running] = []
    try:
        while waiting or running:
            while waiting and len(running) < args.jobs:
                (name, scope), path = waiting.pop(0)
                running.append(_Running(name, scope, tool, path))
            for one in [one for one in running if one.ended(args.limit, args.memory)]:
                running.remove(one)
                yield json.loads(one.path.read_text())
            time.sleep(0.2)
    finally:
        for one in running:
            one.stop()


def succeeded(result: Mapping[str, Any]) -> bool:
    """Whether a network was pruned, by enough, and is the same function; of Torch-Pruning: runs with finite outputs."""
    good = result.get('same', result.get('finite', False) and result.get('shapes', True))
    return result['outcome'] == 'done' and good and result['removed'] >= ENOUGH


def line(result: Mapping[str, Any]) -> str:
    """Return one measurement in words."""
    place = f'{result["family"]} {result["scope"]}'
    if result['outcome'] != 'done':
        return f'{place}: {result["outcome"]}: {result["message"]}'
    text = f'{place}: {result["removed"]:.1%} of the parameters removed'
    if 'error' in result:
        text += f', difference {result["error"]:.1e}, traced in {result["seconds"]} s'
    return text


def summary(results: Sequence[Mapping[str, Any]]) -> str:
    """Return how many networks were pruned, and how long that took."""
    lines = []
    for scope in SCOPES:
        of = [result for result in results if result['scope'] == scope]
        if not of:
            continue
        lines.append(f'{scope}: {sum(map(succeeded, of))} of {len(of)} lose at least {ENOUGH:.0%} of their parameters '
                     'and stay the same function')
        differing = [result['family'] for result in of if result['outcome'] == 'done' and not result.get('same', True)]
        if differing:
            lines.append(f'  not the same function: {", ".join(differing)}')
        seconds = sorted(result['seconds'] for result in of if 'seconds' in result)
        if seconds:
            late = seconds[min(int(0.95 * len(seconds)), len(seconds) - 1)]
            largest = max(result['gigabytes'] for result in of if 'gigabytes' in result)
            lines.append(f'  traced in {statistics.median(seconds):.1f} s (median), {late:.1f} s (95%), '
                         f'{seconds[-1]:.1f} s (longest); {largest:.1f} GB at most')
    return '\n'.join(lines)


def main() -> None:
    args = parse_args()
    with user_errors():
        title, names = header('benchmarks/zoo.py'), selected(args.families)
        atomic_write(json.dumps(machine(), indent=1), Path(args.results) / 'machine.json')
        results = []
        with Progress(TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                      console=Console(stderr=True), transient=True) as progress:
            total = sum(scope in scopes_of(name) for name in names for scope in args.scopes)
            task = progress.add_task('networks', total=total)
            for result in measured(args, names):
                results.append(result)
                progress.console.print(line(result), highlight=False, soft_wrap=True)
                progress.advance(task)
    print(f'{title}\n\n{summary(results)}')


if __name__ == '__main__':
    main()
