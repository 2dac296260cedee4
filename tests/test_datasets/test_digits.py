"""The embedded digits as image folders."""
import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmprune_ext.datasets import write_digits
from mmprune_ext.datasets.digits import stratified
from mmprune_ext.errors import ConfigError

pytest.importorskip('sklearn')


def digest(root: Path) -> str:
    """Hash of all relative paths and contents."""
    total = hashlib.sha256()
    for path in sorted(root.rglob('*.png')):
        total.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return total.hexdigest()


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp('data') / 'digits')


def test_counts_and_pixels(digits):
    from sklearn.datasets import load_digits
    target = load_digits().target
    for digit in range(10):
        count = int((target == digit).sum())
        val = len(list((digits / 'val' / str(digit)).iterdir()))
        assert val == round(0.2 * count)
        assert len(list((digits / 'train' / str(digit)).iterdir())) == count - val
    image = np.asarray(Image.open(next((digits / 'train' / '3').iterdir())))
    assert image.shape == (32, 32, 3)
    assert image.dtype == np.uint8
    assert image.max() > 200  # 16 became 255, blurred a little by the enlargement


def test_mmpretrain_reads_it(digits):
    from mmpretrain.datasets import CustomDataset
    dataset = CustomDataset(data_root=str(digits), data_prefix='val')
    assert dataset.metainfo['classes'] == tuple('0123456789')
    assert len(dataset) == 359
    assert dataset.get_data_info(0)['gt_label'] == 0


def test_same_seed_same_bytes_and_no_second_writing(digits, tmp_path):
    again = write_digits(tmp_path / 'digits')
    assert digest(again) == digest(digits)
    times = {path: path.stat().st_mtime_ns for path in again.rglob('*.png')}
    write_digits(again)
    assert {path: path.stat().st_mtime_ns for path in again.rglob('*.png')} == times
    assert digest(write_digits(tmp_path / 'other', seed=1)) != digest(digits)


def test_stratified_takes_the_share_of_every_class():
    labels = np.array([0] * 10 + [1] * 5)
    mask = stratified(labels, 0.4, seed=3)
    assert (mask[:10].sum(), mask[10:].sum()) == (4, 2)


def test_foreign_folder_is_refused(tmp_path):
    (tmp_path / 'notes.txt').write_text('mine')
    with pytest.raises(ConfigError, match='is not the data set that was to be written there'):
        write_digits(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['notes.txt']


@pytest.mark.parametrize('share', [0, 1, -0.1])
def test_bad_share(tmp_path, share):
    with pytest.raises(ConfigError, match=r'val_share must be in \(0, 1\)'):
        write_digits(tmp_path / 'digits', val_share=share)
