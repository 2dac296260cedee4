"""Commands and paths that README and docs name."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mmprune_ext.cli.main import COMMANDS

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
    """Yield every line of a shell block, and every inline one, that starts a file or a command of the repository."""
    for path in PAGES:
        lines = [line for block in blocks(path, 'bash') for line in block.splitlines()]
        lines += re.findall(r'`((?:python|bash|sh|mmprune|mim) [^`]+)`', path.read_text())
        for line in lines:
            words = shlex.split(line, comments=True)
            while words and re.match(r'^\w+=', words[0]):
                words.pop(0)
            words = started(words)
            if words:
                yield Command(path.name, tuple(words))


def started(words: list[str]) -> list[str]:
    """Return the file of the repository that a command starts, and what it is given; nothing for other commands."""
    if len(words) > 1 and words[0] in ('python', 'bash', 'sh') and '/' in words[1]:
        return words[1:]
    if words[:1] == ['mmprune'] and words[1:] and words[1] != 'COMMAND':
        return [f'tools/{tool_file(COMMANDS.get(words[1], words[1]))}', *words[2:]]
    if words[:1] == ['mim'] and words[2:3] == ['mmprune_ext']:
        name, *arguments = words[3:] if words[1] == 'run' else [words[1], *words[3:]]
        if '--gpus' in arguments:  # mim's own
            del arguments[arguments.index('--gpus'):arguments.index('--gpus') + 2]
        return [f'tools/{tool_file(name)}', *arguments]
    return []


def tool_file(name: str) -> str:
    """Return the path of a tool below ``tools``; as it is called, if there is none."""
    found = list((ROOT / 'tools').rglob(f'{name}.py'))
    return found[0].relative_to(ROOT / 'tools').as_posix() if found else name
