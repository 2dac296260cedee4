"""The console command ``mmprune``: one command for each of the tools."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

from mmprune_ext.cli.errors import fail
from mmprune_ext.nearest import did_you_mean
from mmprune_ext.version import __version__

# Command -> its module in mmprune_ext.cli.commands; the module's name, that of the tool, is known too.
COMMANDS = {
    'train': 'train',
    'test': 'test',
    'prune': 'prune',
    'score': 'score',
    'sensitivity': 'sensitivity',
    'export': 'export_compact',
    'repair': 'repair',
    'deploy': 'deploy',
    'units': 'get_channel_units',
    'flops': 'get_flops',
    'demo': 'demo',
    'convert': 'convert_checkpoint',
    'draw-scenes': 'draw_scenes',
    'unpack-sheets': 'unpack_sheets',
}
# These lie in a folder of their own, as in `tools`.
DATASETS = ('draw_scenes', 'unpack_sheets')


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names, with the others as its arguments.

    Raises:
        SystemExit: With exit code 2 if there is no such command, else as the command does.
    """
    name, *arguments = (sys.argv[1:] if argv is None else argv) or ['-h']
    if name in ('-h', '--help'):
        print(overview())
    elif name == '--version':
        print(f'mmprune_ext {__version__}')
    elif name in COMMANDS or name in COMMANDS.values():
        _load(COMMANDS.get(name, name)).main(arguments, f'mmprune {name}')
    else:
        known = [*COMMANDS, *COMMANDS.values()]
        near = did_you_mean(name, dict.fromkeys(known), cutoff=0.5) or f'; choose from {", ".join(COMMANDS)}'
        fail(f'unknown command "{name}"{near}')


def overview() -> str:
    """Return the list of commands, one line each."""
    width = max(map(len, COMMANDS))
    lines = [f'  {name:{width}}  {(_load(module).__doc__ or "").splitlines()[0]}' for name, module in COMMANDS.items()]
    return '\n'.join(['usage: mmprune COMMAND ...', '', *lines, '',
                      '"mmprune COMMAND -h" tells the arguments of a command.'])


def _load(module: str) -> ModuleType:
    folder = 'commands.datasets' if module in DATASETS else 'commands'
    return importlib.import_module(f'mmprune_ext.cli.{folder}.{module}')
