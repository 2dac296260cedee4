"""Tiled sheets against the tiles they were made of; class folders in general."""
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmprune_ext.datasets import unpack_sheets, write_class_folders
from mmprune_ext.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
TILE, COLUMNS, A_SHEET = 4, 3, 6
LABELS = {'train': np.array([0, 1, 0, 0, 1, 0, 1, 0]), 'test': np.array([1, 0])}


@pytest.fixture
def sheets(tmp_path):
    """Two train sheets (the second padded), one test sheet; returns the folder and the tiles."""
    folder = tmp_path / 'sheets'
    folder.mkdir()
    rng = np.random.default_rng(0)
    tiles = {}
    for split, labels in LABELS.items():
        tiles[split] = rng.integers(0, 256, (len(labels), TILE, TILE, 3), dtype=np.uint8)
        for number in range(-(-len(labels) // A_SHEET)):
            sheet = np.zeros((A_SHEET // COLUMNS * TILE, COLUMNS * TILE, 3), dtype=np.uint8)
            for place, tile in enumerate(tiles[split][number * A_SHEET:(number + 1) * A_SHEET]):
                y, x = divmod(place, COLUMNS)
                sheet[y * TILE:(y + 1) * TILE, x * TILE:(x + 1) * TILE] = tile
            Image.fromarray(sheet).save(folder / f'{split}_{number:02d}.webp', lossless=True)
    np.savez(folder / 'labels.npz', train_labels=LABELS['train'], test_labels=LABELS['test'],
             classes=np.array(['cat', 'dog']))
    return folder, tiles


def read(root: Path) -> dict[str, np.ndarray]:
    return {str(path.relative_to(root)): np.asarray(Image.open(path))
            for path in root.rglob('*.png')}


def test_every_tile_lands_in_its_class(sheets, tmp_path):
    folder, tiles = sheets
    found = read(unpack_sheets(folder, tmp_path / 'out', tile=TILE))
    assert len(found) == 10
    for split, name in (('train', 'train'), ('test', 'val')):
        for index, label in enumerate(LABELS[split]):
            image = found[f'{name}/{("cat", "dog")[label]}/{index:05d}.png']
            np.testing.assert_array_equal(image, tiles[split][index])


def test_limit_takes_the_first_of_each_class(sheets, tmp_path):
    folder, tiles = sheets
    found = read(unpack_sheets(folder, tmp_path / 'out', limit=2, tile=TILE))
    assert len(found) == 6
    np.testing.assert_array_equal(found['train/dog/00003.png'], tiles['train'][4])


@pytest.mark.parametrize(('spoil', 'message'), [
    (lambda f: (f / 'labels.npz').unlink(), r'labels\.npz: cannot be read'),
    (lambda f: (f / 'train_01.webp').unlink(), r'1 sheets train_\* hold 6 tiles, .* 8 labels'),
    (lambda f: (f / 'test_00.webp').write_text('x'), r'test_00\.webp: not a readable image'),
    (lambda f: Image.new('RGB', (6, 8)).save(f / 'train_00.webp'), 'are not whole tiles'),
])
def test_bad_sources_leave_nothing(sheets, tmp_path, spoil, message):
    folder, _ = sheets
    spoil(folder)
    with pytest.raises(ConfigError, match=message):
        unpack_sheets(folder, tmp_path / 'out', tile=TILE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['sheets']


@pytest.mark.parametrize(('labels', 'classes', 'message'), [
    ([0, 1], ['dog', 'cat'], 'in sorted order'),
    ([0, 2], ['cat', 'dog'], r'labels must be in \[0, 2\), got 0 to 2'),
    ([0], ['cat', 'dog'], 'expected uint8 images'),
])
def test_what_would_be_mislabelled_is_refused(tmp_path, labels, classes, message):
    images = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    with pytest.raises(ConfigError, match=message):
        write_class_folders(tmp_path / 'out', {'train': (images, np.array(labels))}, classes)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_writing_leaves_nothing(tmp_path, monkeypatch):
    def fail(self, path):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(Image.Image, 'save', fail)
    images = np.zeros((1, 4, 4, 3), dtype=np.uint8)
    with pytest.raises(ConfigError, match='cannot be written: No space left on device'):
        write_class_folders(tmp_path / 'out', {'train': (images, np.array([0]))}, ['cat'])
    assert list(tmp_path.iterdir()) == []


def test_tool(sheets, tmp_path):
    tool = str(ROOT / 'tools' / 'datasets' / 'unpack_sheets.py')

    def run(*args):
        return subprocess.run([sys.executable, tool, *map(str, args)], capture_output=True,
                              text=True, cwd=ROOT, check=False)

    folder, _ = sheets
    done = run(folder, tmp_path / 'out', '--tile', TILE)
    assert (done.returncode, len(read(tmp_path / 'out'))) == (0, 10), done.stderr
    done = run(tmp_path / 'none', tmp_path / 'out2')
    assert done.returncode == 2
    assert done.stderr.startswith('error: ')
    assert 'Traceback' not in done.stderr
