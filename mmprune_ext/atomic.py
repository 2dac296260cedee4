"""Write files and folders so that a reader never sees a half-written one."""
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from mmprune_ext.errors import PruningError


@contextmanager
def atomic_path(target: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `target`; move it to `target` when the block ends well.

    The caller makes a file or a folder at the yielded path, which does not exist yet. If the block
    raises, what it made is removed and `target` is as it was. A file replaces an older file; a
    folder needs `target` not to exist, or to be an empty folder.

    Raises:
        OSError: the parent folder cannot be made or written, or `target` is a folder with content.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Same folder, hence the same file system: os.replace cannot move across two.
    workspace = Path(tempfile.mkdtemp(prefix=f'.{target.name}.', dir=target.parent))
    try:
        temporary = workspace / target.name
        yield temporary
        os.replace(temporary, target)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


@contextmanager
def atomic_files(folder: str | os.PathLike, last: str, replaced: Collection[str] = ()) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`; move its files into `folder` when the block ends well.

    Files of the same names are replaced, others stay. If the block raises, `folder` is as it was; if the process is
    killed while files are moved, there are none of those that were `replaced`, and not yet `last`.

    Args:
        folder: Where the files are to be; it need not exist.
        last: Name of the file that is moved last: a folder with it is complete.
        replaced: Names of files that are removed before the first is moved.

    Raises:
        OSError: the folder cannot be made or written.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f'.{folder.name}.', dir=folder.parent))
    try:
        yield temporary
        folder.mkdir(exist_ok=True)
        for name in (last, *replaced):
            (folder / name).unlink(missing_ok=True)
        for file in sorted(temporary.iterdir(), key=lambda file: file.name == last):
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def atomic_write(content: str | bytes, path: str | os.PathLike) -> None:
    """Write a text or binary file so that it appears whole or not at all.

    Raises:
        PruningError: If the folder cannot be written to.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise PruningError(f'cannot write {path}: {error.strerror or error}') from error
