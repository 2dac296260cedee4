"""Commands and paths that README and docs name."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', ROOT / 'benchmarks' / 'README.md',
         *sorted((ROOT / 'docs').glob('*.md'))]
# Words in capitals that stand for what a user fills in.
PLACEHOLDER = re.compile(r'^(PARTITION|JOB|FILE|FOLDER|DIR)$')


class Command(NamedTuple):
    """One command of a page: the tool with its arguments, variables before it left out."""

    page: str
    words: tuple[str, ...]


def blocks(path: Path, language: str) -> Iterator[str]:
    """Yield the code blocks of a language."""
    yield from re.findall(rf'^```{language}\n(.*?)^```', path.read_text(), re.MULTILINE | re.DOTALL)


def commands() -> Iterator[Command]:
    """Yield every line of a shell block, and every inline one, that starts a file of the repository."""
    for path in PAGES:
        lines = [line for block in blocks(path, 'bash') for line in block.splitlines()]
        lines += re.findall(r'`((?:python|bash|sh) [^`]+)`', path.read_text())
        for line in lines:
            words = shlex.split(line, comments=True)
            while words and re.match(r'^\w+=', words[0]):
                words.pop(0)
            if len(words) > 1 and words[0] in ('python', 'bash', 'sh') and '/' in words[1]:
                yield Command(path.name, tuple(words[1:]))
