"""Tables as plain text."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmprune_ext.units.unit_set import UnitSet

_WIDTH = 160
_REASON_WIDTH = 60


def render(headers: Sequence[str], rows: Sequence[Sequence[Any]], title: str = '',
           numbers: Sequence[int] = ()) -> str:
    """Return a table as text without colours, the same on every terminal.

    Args:
        headers: Column titles.
        rows: Cells, turned into text by ``str``.
        title: Line above the table.
        numbers: Columns to align right.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, header in enumerate(headers):
        last = i == len(headers) - 1
        table.add_column(Text(header), justify='right' if i in numbers else 'left',
                         no_wrap=not last, overflow='fold',
                         max_width=_REASON_WIDTH if last and i not in numbers else None)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    file = io.StringIO()
    # As wide as the content asks for: a table in a file has no terminal to fit into.
    console = Console(file=file, width=_WIDTH, color_system=None, force_terminal=False)
    width = max(_WIDTH, console.measure(table, options=console.options.update(
        width=10_000, max_width=10_000)).maximum)
    console.print(table, width=width, crop=False, no_wrap=True)
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    return '\n'.join([*([title] if title else []), *(line for line in lines if line)]) + '\n'


def units_table(units: UnitSet) -> str:
    """Return the table of a model's channel units: what can be pruned, and why the rest cannot."""
    rows = [(unit.name, unit.num_channels, 'yes' if unit.prunable else 'no', len(unit.producers),
             len(unit.followers), len(unit.consumers), unit.why()) for unit in units.values()]
    prunable = units.prunable.values()
    total = sum(unit.num_channels for unit in units.values())
    title = (f'{len(units)} channel units, {len(prunable)} prunable '
             f'({sum(unit.num_channels for unit in prunable)} of {total} channels)')
    table = render(('unit', 'channels', 'prunable', 'producers', 'followers', 'consumers',
                    'reason'), rows, title, numbers=(1, 3, 4, 5))
    return table if units.coverage is None else '\n'.join([table, *units.coverage.lines(), ''])
