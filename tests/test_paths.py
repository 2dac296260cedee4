"""What is told of files and folders that a user names, and what is not overwritten."""
from __future__ import annotations

import os

import pytest

from mmprune_ext.atomic import atomic_files
from mmprune_ext.deploy.exporting import BACKENDS
from mmprune_ext.errors import PruningError
from mmprune_ext.nearest import did_you_mean, nearest
from mmprune_ext.paths import COMPACT, DEPLOYED, MEASURED, check_output_file, check_result_folder, require_file
from mmprune_ext.workflows import deploying, sensitivity


def test_a_missing_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'epoch_10.pth').touch()
    for path, message in (
            ('epoch_1O.pth', f'weights epoch_1O.pth: no such file ({tmp_path}/epoch_1O.pth: relative paths begin at '
                             'the folder that the command runs in); did you mean epoch_10.pth?'),
            (f'{tmp_path}/a/b.pth', f'weights {tmp_path}/a/b.pth: no such file; nor is there a folder {tmp_path}/a'),
            (f'{tmp_path}', f'weights {tmp_path}: is a folder, no file')):
        with pytest.raises(PruningError) as raised:
            require_file(path, 'weights')
        assert str(raised.value) == message
    for path in ('epoch_10.pth', 'https://host/a.pth', 'mmdet::a.py'):
        require_file(path, 'weights')


def test_a_folder_with_a_result(tmp_path):
    for name in ('compact.pth', 'units.json', 'notes.txt', '.hidden'):
        (tmp_path / name).touch()
    with pytest.raises(PruningError, match=r'holds an earlier result \(compact.pth, units.json\) and other files '
                       r'\(notes.txt\); choose another folder, or give --overwrite'):
        check_result_folder(tmp_path)
    assert check_result_folder(tmp_path, overwrite=True) == tmp_path
    with pytest.raises(PruningError, match=r'holds other files \(notes.txt\)'):
        check_result_folder(tmp_path, own=('compact.pth', 'units.json'))
    for name in ('compact.pth', 'units.json', 'notes.txt'):
        (tmp_path / name).unlink()
    assert check_result_folder(tmp_path) == tmp_path  # what begins with a dot is no result
    assert check_result_folder(tmp_path / 'new') == tmp_path / 'new' and not (tmp_path / 'new').exists()


def test_a_file_that_is_there(tmp_path):
    (tmp_path / 'a.json').touch()
    check_output_file(tmp_path / 'a.json')
    with pytest.raises(PruningError, match='a.json: is there already; choose another name, or give --overwrite'):
        check_output_file(tmp_path / 'a.json', overwrite=False)


def test_the_names_of_results_are_those_that_are_written(pruned):
    assert {path.name for path in pruned.iterdir()} <= set(COMPACT)
    assert {file for file, _ in BACKENDS.values()} | {deploying.DESCRIPTION, deploying.DECODING} <= set(DEPLOYED)
    assert {sensitivity.FILE, sensitivity.TABLE, sensitivity.PICTURE, sensitivity.SCORES} <= set(MEASURED)


def test_two_results_are_never_mixed(tmp_path):
    """A process that is killed while files are moved leaves none of the old ones beside the new."""
    folder = tmp_path / 'out'
    folder.mkdir()
    for name in ('a', 'b', 'last', 'own'):
        (folder / name).write_text('old')
    with pytest.raises(RuntimeError), atomic_files(folder, 'last', ('a', 'b')):
        raise RuntimeError
    assert {path.name: path.read_text() for path in folder.iterdir()} == dict.fromkeys(('a', 'b', 'last', 'own'), 'old')

    class Killed(BaseException):
        pass

    def moved(source, target, original=os.replace):
        if len(seen) == 1:
            raise Killed
        seen.append(target)
        original(source, target)

    seen = []
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr('mmprune_ext.atomic.os.replace', moved)
        with atomic_files(folder, 'last', ('a', 'b')) as temporary:
            for name in ('a', 'last'):
                (temporary / name).write_text('new')
    assert {path.name: path.read_text() for path in folder.iterdir()} == {'a': 'new', 'own': 'old'}


def test_nearest_names_whatever_their_case():
    assert nearest('Chip', ['CHIP', 'ChipNet', 'DCFF']) == ['CHIP', 'ChipNet']
    assert did_you_mean('chp', ['CHIP']) == '; did you mean CHIP?' and did_you_mean('xyz', ['CHIP']) == ''
