#!/usr/bin/env python3
"""Write the tables and the figure of docs/results.md from what benchmarks/accuracy.py measured.

Takes results folders of that benchmark. Their rows are kept in docs/results.json, where they replace those of the same
networks and settings; without a folder the page is written from that file alone.

Example: python docs/make_results.py work_dirs/accuracy/resnet20 work_dirs/accuracy/resnet56
"""

from __future__ import annotations

import argparse
import io
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.accuracy import SPREADS, tables
from benchmarks.accuracy_runs import METHODS, NETWORKS
from benchmarks.pages import around_part, write_part
from mmprune_ext.atomic import atomic_write
from mmprune_ext.cli.errors import fail, user_errors

DOCS = Path(__file__).resolve().parent
STORE, PAGE, PICTURE = DOCS / 'results.json', DOCS / 'results.md', DOCS / 'images' / 'results.png'
BEGIN, END = '<!-- written by make_results.py: begin -->', '<!-- written by make_results.py: end -->'
# What accuracy.py takes if it is not told otherwise, by the name of the setting.
USUAL = {'batches': 5, 'bn_batches': 20, 'iterations': 200, 'repair': 0}
COLOURS = dict(zip(METHODS, ('#2266aa', '#dd7711', '#339955', '#aa3377', '#666666')))
Row = Mapping[str, Any]


def section_of(row: Row) -> str:
    """Return the name of the table that a row stands in: rows of one network, measured alike."""
    settings = row['settings']
    return '-'.join(str(settings.get(key, USUAL.get(key))) for key in ('network', 'repair', 'iterations'))


def read(folders: Sequence[Path]) -> dict[str, list[Row]]:
    """Return the rows of each table: those kept, and those of the folders in the place of theirs."""
    kept: dict[str, list[Row]] = json.loads(STORE.read_text()) if STORE.exists() else {}
    for folder in folders:
        rows = [{key: value for key, value in json.loads(path.read_text()).items() if key != 'keeps'}
                for path in sorted(folder.glob('*.json'))]
        measured = [row for row in rows if row['method'] != 'dense']
        sections = {section_of(row) for row in measured}
        if len(sections) != 1 or len(measured) == len(rows):
            fail(f'{folder} is no results folder of benchmarks/accuracy.py that holds the dense network and others '
                 f'measured alike (found {len(rows)} results of {", ".join(sorted(sections)) or "nothing"})')
        kept[sections.pop()] = rows
    return kept


def names(rows: Sequence[Row]) -> list[str]:
    """Return the published rows and budgets of a table, the largest networks first."""
    largest: dict[str, int] = {}
    for row in rows:
        if row['method'] != 'dense':
            largest[row['row']] = max(row['macs'], largest.get(row['row'], 0))
    return sorted(largest, key=lambda name: -largest[name])


def commands(rows: Sequence[Row]) -> list[str]:
    """Return the commands that measure a table: one for all methods of the same rows, spreads, seeds and settings."""
    cells: dict[tuple[Any, ...], list[int]] = {}
    for row in rows:
        if row['method'] != 'dense':
            given = tuple((key, value) for key, usual in USUAL.items()
                          if (value := row['settings'].get(key, usual)) != usual)
            cells.setdefault((row['method'], given, row['row'], row['spread']), []).append(row['seed'])
    # First the budgets, then the spreads, last the methods that everything else is the same of.
    grouped = [(*key, tuple(sorted(seeds))) for key, seeds in cells.items()]
    for place in (2, 3, 0):
        grouped = _joined(grouped, place)
    network = rows[0]['settings']['network']
    data = ('data/digits' if network == 'digits' else 'data/cifar10') if NETWORKS[network].root else 'data'
    order = names(rows)
    return [' '.join([
        f'python benchmarks/accuracy.py --network {network} --data {data} --checkpoint '
        f'checkpoints/{shlex.quote(rows[0]["settings"]["checkpoint"])}',
        '--rows', *sorted(of, key=order.index), '--methods', *sorted(methods, key=[*METHODS].index),
        *(['--spreads', *sorted(spreads, key=SPREADS.index)] if set(spreads) - {'', 'uniform'} else []),
        '--seeds', *map(str, seeds),
        *(f'--{key.replace("_", "-")} {value}' for key, value in given),
        f'--results work_dirs/accuracy/{section_of(rows[-1])}']) for methods, given, of, spreads, seeds in grouped]


def _joined(groups: list[tuple[Any, ...]], place: int) -> list[tuple[Any, ...]]:
    """Join groups that differ in one place alone, where they then have all its values."""
    found: dict[tuple[Any, ...], list[Any]] = {}
    for group in groups:
        found.setdefault((*group[:place], *group[place + 1:]), []).append(group[place])
    return [(*rest[:place], tuple(values), *rest[place:]) for rest, values in found.items()]


def title_of(rows: Sequence[Row]) -> str:
    """Return the title of a table."""
    settings = rows[-1]['settings']
    parts = [NETWORKS[settings['network']].title]
    if settings.get('repair'):
        parts.append(f'repaired on {settings["repair"]:,} images')
    parts.append(f'{settings["iterations"]} iterations of fine-tuning' if settings['iterations'] else 'no training')
    return ', '.join(parts)


def text(sections: Mapping[str, list[Row]]) -> str:
    """Return the generated part of the page."""
    parts = ['![accuracy over the multiply-accumulates that are left](images/results.png)']
    for key in sorted(sections, key=_place):
        rows = _dense_first(sections[key])
        machines = dict.fromkeys(f'{row["machine"]["machine"]}; {row["machine"]["versions"]}' for row in rows)
        parts += [f'## {title_of(rows)}', tables(rows, names(rows)),
                  '```bash\n' + '\n'.join(commands(rows)) + '\n```', *(f'Measured on: {line}.' for line in machines)]
    return '\n\n'.join(parts)


def _place(key: str) -> tuple[int, list[int]]:
    network, *numbers = key.split('-')
    return [*NETWORKS].index(network), [int(number) for number in numbers]


def _dense_first(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: row['method'] != 'dense')


def picture(sections: Mapping[str, list[Row]]) -> bytes:
    """Return a PNG picture: a panel for each table and spread, a colour for each method."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    panels = [(_dense_first(sections[key]), spread) for key in sorted(sections, key=_place)
              for spread in ('', *SPREADS) if any(row.get('spread') == spread for row in sections[key])]
    columns = min(len(panels), 3)
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns, 0.7 + 3.9 * lines), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis, (rows, spread) in zip(axes, panels):
        _draw(axis, rows, spread)
    for axis in axes[len(panels):]:
        axis.set_visible(False)
    figure.supxlabel('multiply-accumulates left, % of the dense network', fontsize=9)
    figure.supylabel('metric of the network on its validation images, %', fontsize=9)
    file = io.BytesIO()
    figure.savefig(file, format='png', dpi=110, metadata={'Software': None})
    return file.getvalue()


def _draw(axis: Any, rows: Sequence[Row], spread: str) -> None:
    """Draw one panel: repaired solid, with new statistics dashed; means over the seeds."""
    dense = rows[0]
    axis.axhline(dense['pruned'], color='#333333', linewidth=0.8)
    axis.text(100, dense['pruned'], 'dense', fontsize=7, va='bottom', ha='right')
    for method, colour in COLOURS.items():
        same = [row for row in rows if row['method'] == method and row.get('spread') == spread]
        for stage, style, label in (('repaired', 'o-', f'{method}, repaired'),
                                    ('statistics', 's--', f'{method}, new statistics')):
            points: dict[str, list[Row]] = {}
            for row in same:
                if stage in row:
                    points.setdefault(row['row'], []).append(row)
            line = sorted((100 * _mean(group, 'macs') / dense['macs'], _mean(group, stage))
                          for group in points.values())
            if line:
                axis.plot(*zip(*line), style, color=colour, markersize=4, linewidth=1.3, label=label)
    axis.set_title(f'{title_of(rows)}{f": {spread}" if spread else ""}', fontsize=8)
    axis.set_ylim(0, 1.08 * dense['pruned'])
    axis.set_xlim(0, 100)
    axis.tick_params(labelsize=7)
    axis.grid(color='#eeeeee', linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[['top', 'right']].set_visible(False)
    axis.legend(frameon=False, fontsize=6.5, loc='lower right')


def _mean(rows: Sequence[Row], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folders', nargs='*', type=Path, metavar='DIR', help='results folders of accuracy.py')
    args = parser.parse_args()
    with user_errors():
        sections = read(args.folders)
        around = around_part(PAGE, BEGIN, END)
        if not sections:
            fail('there is nothing to write: give results folders of benchmarks/accuracy.py')
        atomic_write(json.dumps(sections, indent=1) + '\n', STORE)
        atomic_write(picture(sections), PICTURE)
        write_part(PAGE, around, text(sections))


if __name__ == '__main__':
    main()
