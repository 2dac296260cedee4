"""Files and folders that a user names: whether they are there, and what lies there already.

Nothing here imports what takes long: a command answers for them before it loads any library.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection
from pathlib import Path

from mmprune_ext.errors import PruningError
from mmprune_ext.nearest import did_you_mean

# What is written into an output folder: a compact model, a model for another runtime, a measurement.
COMPACT = ('compact.pth', 'units.json', 'compact_config.py', 'report.txt', 'report.json', 'widths.png', 'stripes.png')
DEPLOYED = ('deploy.json', 'decoding.py', 'model.onnx', 'model.onnx.data', 'model.xml', 'model.bin', 'model.pt2')
MEASURED = ('sensitivity.json', 'sensitivity.csv', 'sensitivity.png', 'scores.json', 'scores.json.partial')
RESULTS = (*COMPACT, *DEPLOYED, *MEASURED)


def missing(path: str | os.PathLike) -> str:
    """Say of a file that is not there what is: ``'no such file (/data/a.pth: relative paths begin ...)'``."""
    if os.path.isdir(path):
        return 'is a folder, no file'
    absolute = Path(path).absolute()
    if Path(path).is_absolute():
        text = 'no such file'
    else:
        text = f'no such file ({absolute}: relative paths begin at the folder that the command runs in)'
    if not os.path.isdir(absolute.parent):
        return f'{text}; nor is there a folder {absolute.parent}'
    return text + did_you_mean(absolute.name, os.listdir(absolute.parent), 1, 0.75)


def require_file(path: str | os.PathLike, what: str) -> None:
    """Check that a file is there; of a URL, and of a library's config, nothing is known before.

    Args:
        path: The file.
        what: What it is, for the message.

    Raises:
        PruningError: If it is not.
    """
    if '::' not in str(path) and '://' not in str(path) and not os.path.isfile(path):
        raise PruningError(f'{what} {path}: {missing(path)}')


def check_output_folder(path: str | os.PathLike) -> Path:
    """Check that a folder can be made and written to, before any long work starts.

    It is not made: a command that fails leaves nothing behind.

    Raises:
        PruningError: If it cannot.
    """
    folder = Path(path)
    existing = folder.absolute()
    try:
        while not existing.exists():
            existing = existing.parent
        # A name of its own: several processes of one run check the same folder.
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise PruningError(f'output folder {folder}: cannot be written to '
                           f'({error.strerror or error}); choose another') from error
    return folder


def check_result_folder(path: str | os.PathLike, overwrite: bool = False, own: Collection[str] = ()) -> Path:
    """Check that a folder can take a result, and that nothing lies there that is not to be overwritten.

    Args:
        path: The folder.
        overwrite: Whether an earlier result may be replaced, and other files may lie beside the new one.
        own: Names of files that the command goes on from.

    Raises:
        PruningError: Naming what lies there.
    """
    folder = check_output_folder(path)
    found = sorted(name for name in os.listdir(folder) if not name.startswith('.')) if folder.is_dir() else []
    found = [name for name in found if name not in own]
    if overwrite or not found:
        return folder
    earlier, others = [name for name in found if name in RESULTS], [name for name in found if name not in RESULTS]
    parts = [f'{words} ({_few(names)})' for words, names in (('an earlier result', earlier), ('other files', others))
             if names]
    raise PruningError(f'output folder {folder}: holds {" and ".join(parts)}; choose another folder, or give '
                       '--overwrite, which replaces an earlier result and leaves other files')


def check_output_file(path: str | os.PathLike, overwrite: bool = True) -> None:
    """Check that a file can be written, before any long work starts.

    Args:
        path: The file.
        overwrite: Whether it may replace an earlier one.

    Raises:
        PruningError: If it cannot, or must not.
    """
    if Path(path).is_dir():
        raise PruningError(f'output file {path}: is a folder; give the path of a file')
    if not overwrite and Path(path).exists():
        raise PruningError(f'output file {path}: is there already; choose another name, or give --overwrite')
    check_output_folder(Path(path).parent)


def _few(names: list[str]) -> str:
    return ', '.join(names[:4]) + (f' and {len(names) - 4} more' if len(names) > 4 else '')
