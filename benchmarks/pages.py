"""Pages of the documentation of which a part is written by a script."""

from __future__ import annotations

from pathlib import Path

from mmprune_ext.atomic import atomic_write
from mmprune_ext.cli.errors import fail


def around_part(page: Path, begin: str, end: str) -> tuple[str, str]:
    """Return what stands before and behind the lines between which a part is written; ends the script without them."""
    before, _, rest = page.read_text().partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        fail(f'{page} lacks the lines "{begin}" and "{end}", between which the tables stand')
    return f'{before}{begin}', f'{end}{after}'


def write_part(page: Path, around: tuple[str, str], text: str) -> None:
    """Write the part of a page."""
    before, after = around
    atomic_write(f'{before}\n\n{text}\n\n{after}', page)
