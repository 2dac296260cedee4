"""Small drawn scenes as the data of all configs that read MMPRUNE_DATA."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmprune_ext.datasets import write_scenes


@contextlib.contextmanager
def scenes_in(folder: Path, train: int, val: int) -> Iterator[None]:
    """Draw scenes into a folder, and name it for configs that are read in this block."""
    write_scenes(folder / 'scenes', train=train, val=val, size=(96, 96))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('MMPRUNE_DATA', str(folder))
        yield
