"""Running the command-line tools inside the test process: starting Python takes longer than what they do here."""
from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

TOOLS = Path(__file__).resolve().parents[1] / 'tools'


@contextlib.contextmanager
def own_globals() -> Iterator[None]:
    """Give what runs inside fresh loggers, visualizers and default scope, as a process of its own has."""
    kinds = (MMLogger, Visualizer, DefaultScope)
    before = [kind._instance_dict for kind in kinds]
    for kind in kinds:
        kind._instance_dict = type(kind._instance_dict)()
    try:
        yield
    finally:
        for kind, instances in zip(kinds, before):
            kind._instance_dict = instances


def load_tool(name: str) -> ModuleType:
    """Import a tool as a module of its own."""
    spec = importlib.util.spec_from_file_location(f'tool_{name}', TOOLS / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_tool(name: str, *arguments: object, by_default: bool = False) -> None:
    """Run a tool as if from a command line.

    Args:
        name: Of the tool.
        arguments: Its arguments.
        by_default: Let ``prune.py`` repair as it does by default, which takes longer than the rest; without it a call
            that says nothing of repair is one with new statistics alone.

    Raises:
        SystemExit: As the tool does, with its exit code.
    """
    module = load_tool(name)
    if name == 'prune' and not by_default and '--repair' not in arguments:
        arguments = (*arguments, '--repair', 0)
    with own_globals(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', [f'{name}.py', *map(str, arguments)])
        module.main()
