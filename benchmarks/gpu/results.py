"""What a run on a device has found: one file of JSON, written again after each result, and a summary."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmprune_ext.atomic import atomic_write
from mmprune_ext.errors import ConfigError

FILE, SUMMARY = 'results.json', 'summary.md'
PASS, FAIL, ERROR, LATE, DONE = 'PASS', 'FAIL', 'ERROR', 'NOT RUN', 'DONE'
PARTS = {'checks': 'Against the CPU', 'speed': 'Speed', 'finetune': 'Fine-tuning'}


class Results:
    """Results by part and name, those of an earlier run in the same folder among them.

    Args:
        folder: Where the files lie.
        setting: What the results depend on: device, card, sizes.
        header: Lines for the summary.

    Raises:
        ConfigError: If the folder holds results of another setting.
    """

    def __init__(self, folder: str | Path, setting: Mapping[str, Any], header: str) -> None:
        self.folder = Path(folder)
        self.header = header
        self.content: dict[str, Any] = {'setting': dict(setting), **{part: {} for part in PARTS}}
        path = self.folder / FILE
        if path.is_file():
            stored = json.loads(path.read_text())
            if stored.get('setting') != self.content['setting']:
                raise ConfigError(f'{path}: results of another setting, {stored.get("setting")}, where this run has '
                                  f'{self.content["setting"]}; give another folder with --out')
            self.content = stored

    def is_done(self, part: str, name: str) -> bool:
        """Whether a result is there that need not be found again."""
        return self.content[part].get(name, {}).get('status') in (PASS, DONE)

    def put(self, part: str, name: str, result: Mapping[str, Any]) -> None:
        """Add a result, print it in a line, and write all files."""
        self.content[part][name] = dict(result)
        print(line(name, result), flush=True)
        atomic_write(json.dumps(_without_nan(self.content), indent=1), self.folder / FILE)
        atomic_write(self.summary(), self.folder / SUMMARY)

    def failed(self) -> list[str]:
        """Return the names of results that are not as they should be."""
        return [name for part in PARTS for name, result in self.content[part].items()
                if result['status'] not in (PASS, DONE)]

    def summary(self) -> str:
        """Return the results as Markdown."""
        parts = [f'# On a device\n\n```text\n{self.header}\n```']
        for part, title in PARTS.items():
            found = self.content[part]
            if found:
                rows = [f'| {name} | {result["status"]} | {told(result)} |' for name, result in found.items()]
                parts.append('\n'.join([f'## {title}', '', '| | | |', '| --- | --- | --- |', *rows]))
        return '\n\n'.join(parts) + '\n'


def line(name: str, result: Mapping[str, Any]) -> str:
    """Return a result as a line of text."""
    return f'{result["status"]:7} {name}: {told(result)}'


def told(result: Mapping[str, Any]) -> str:
    """Return what a result says: its text, and its numbers in the order of their names."""
    numbers = [f'{key} {_short(value)}' for key, value in result.get('numbers', {}).items()]
    return '; '.join([*filter(None, [result.get('text', '')]), *numbers]).replace('|', '/').replace('\n', ' ')


def _short(value: Any) -> str:
    return f'{value:.4g}' if isinstance(value, float) else str(value)


def _without_nan(value: Any) -> Any:
    """Return nested values with what JSON cannot hold as text."""
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
