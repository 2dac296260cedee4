#!/usr/bin/env python3
"""Write the tables of docs/zoo.md from what benchmarks/zoo.py measured.

Takes results folders of that benchmark. Their measurements are kept in docs/zoo.json, where they replace those of the
same families; without a folder the page is written from that file alone.

Example: python docs/make_zoo_table.py work_dirs/zoo
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.networks import BUILT, FAMILIES
from benchmarks.pages import around_part, write_part
from benchmarks.zoo import HERE, SCOPES, TOOLS, succeeded, summary
from mmprune_ext.atomic import atomic_write
from mmprune_ext.cli.errors import fail, user_errors
from mmprune_ext.units import Reason

DOCS = Path(__file__).resolve().parent
STORE, PAGE = DOCS / 'zoo.json', DOCS / 'zoo.md'
BEGIN, END = '<!-- written by make_zoo_table.py: begin -->', '<!-- written by make_zoo_table.py: end -->'
KEPT = ('family', 'scope', 'tool', 'outcome', 'message', 'seconds', 'gigabytes', 'units', 'prunable', 'parameters',
        'removed', 'error', 'same', 'double', 'reasons', 'finite', 'shapes', 'machine')
TITLES = {'mmpretrain': 'Classification', 'mmdet': 'Detection', 'mmseg': 'Segmentation', 'mmpose': 'Pose'}
Result = Mapping[str, Any]
Results = dict[str, Result]


def read(folders: Sequence[Path]) -> Results:
    """Return all results by tool, family and scope: those kept, and those of the folders in the place of theirs."""
    found: Results = json.loads(STORE.read_text()) if STORE.exists() else {}
    for folder in folders:
        if not (folder / 'machine.json').is_file():
            fail(f'{folder} is no results folder of benchmarks/zoo.py: it lacks machine.json')
        machine = json.loads((folder / 'machine.json').read_text())
        for path in sorted(folder.glob('*_*.json')):
            result = {**json.loads(path.read_text()), 'machine': machine}
            if result['family'] in FAMILIES:
                key = f'{result["tool"]} {result["family"]} {result["scope"]}'
                found[key] = {name: result[name] for name in KEPT if name in result}
    return dict(sorted(found.items()))


def cells(result: Result | None) -> str:
    """Return what a table says of one measurement: share removed, seconds."""
    if result is None:
        return '| |'
    if result['outcome'] != 'done':
        return f'{result["outcome"]} | |'
    share = f'{result["removed"]:.1%}'
    if not result.get('same', True):
        share += ' **differs**'
    return f'{share if succeeded(result) else f"*{share}*"} | {result.get("seconds", "")} |'


def why(result: Result | None) -> str:
    """Return why units of a network stay whole, or what ended its measurement."""
    if result is None:
        return ''
    if result['outcome'] != 'done':
        return ' '.join(result['message'].replace('|', '/').split())[:160]
    return ', '.join(f'{number} {name}' for name, number in sorted(result.get('reasons', {}).items(),
                                                                  key=lambda item: -item[1]))


def rows(results: Results, library: str) -> Iterator[str]:
    """Yield the rows of one library's table."""
    peers = any(result['tool'] == TOOLS[1] for result in results.values())
    head = '| family | backbone | seconds | whole | seconds | GB | prunable units | those that stay whole |'
    yield head + (' Torch-Pruning, backbone | whole |' if peers else '')
    yield '| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |' + (' ---: | ---: |' if peers else '')
    for family in FAMILIES:
        own, other = ([results.get(f'{tool} {family} {scope}') for scope in SCOPES] for tool in TOOLS)
        if not family.startswith(f'{library}/') or not any(own + other):
            continue
        whole = own[1] or {}
        units = f'{whole["prunable"]} of {whole["units"]}' if 'units' in whole else ''
        line = (f'| {family.partition("/")[2]} | {cells(own[0])} {cells(own[1])} {whole.get("gigabytes", "")} | '
                f'{units} | {why(own[1] or own[0])} |')
        yield line + (''.join(f' {cells(one).partition("|")[0].strip()} |' for one in other) if peers else '')


def built_rows(results: Results, library: str) -> Iterator[str]:
    """Yield the rows of the table of a library without configs, whose networks are pruned whole."""
    yield '| network | removed | seconds | GB | prunable units | those that stay whole |'
    yield '| --- | ---: | ---: | ---: | ---: | --- |'
    for family in BUILT:
        found = results.get(f'{TOOLS[0]} {family} all')
        if found is not None and family.startswith(f'{library}/'):
            units = f'{found["prunable"]} of {found["units"]}' if 'units' in found else ''
            yield (f'| {family.partition("/")[2]} | {cells(found)} {found.get("gigabytes", "")} | {units} | '
                   f'{why(found)} |')


def text(results: Results) -> str:
    """Return the generated part of the page."""
    parts = []
    for tool in TOOLS:
        of = [result for result in results.values() if result['tool'] == tool and result['family'] not in BUILT]
        if of:
            parts.append(f'{tool}:\n```text\n{summary(of)}\n```')
    machines = dict.fromkeys(f'{result["machine"]["machine"]}; {result["machine"]["versions"]}'
                             for result in results.values())
    parts += [f'Measured on: {line}.' for line in machines]
    parts += [f'## {title}\n\n' + '\n'.join(rows(results, library)) for library, title in TITLES.items()]
    for library in dict.fromkeys(name.partition('/')[0] for name in BUILT):
        of = [result for result in results.values() if result['family'].startswith(f'{library}/')]
        if of:
            table = built_rows if all(result['scope'] == 'all' for result in of) else rows
            parts.append(f'## {library}\n\n```text\n{summary(of)}\n```\n\n' + '\n'.join(table(results, library)))
    names = sorted({name for result in results.values() for name in result.get('reasons', {})})
    parts.append('Reasons: ' + '; '.join(f'{name}, {Reason[name].value}' for name in names) + '.')
    missing = [family for family in FAMILIES if f'{TOOLS[0]} {family} all' not in results]
    if missing:
        parts.append(f'## Not measured\n\n{", ".join(missing)}.')
    left = json.loads((HERE / 'zoo_families.json').read_text())['left_out']
    parts.append('## Left out\n\n' + '\n'.join(f'* {library}, {reason}: {", ".join(names)}.'
                                               for library, reasons in left.items()
                                               for reason, names in reasons.items()))
    return '\n\n'.join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folders', nargs='*', type=Path, metavar='DIR', help='results folders of zoo.py')
    args = parser.parse_args()
    with user_errors():
        results = read(args.folders)
        around = around_part(PAGE, BEGIN, END)
        if not results:
            fail('there is nothing to write: give results folders of benchmarks/zoo.py')
        atomic_write(json.dumps(results, indent=1) + '\n', STORE)
        write_part(PAGE, around, text(results))


if __name__ == '__main__':
    main()
