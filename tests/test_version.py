"""The version check at import."""
import subprocess
import sys

import pytest

from mmprune_ext import version


@pytest.mark.parametrize(('text', 'numbers'), [
    ('2.11.0+cu130', (2, 11, 0)), ('2.0.1', (2, 0, 1)), ('0.10', (0, 10)), ('1.0.0rc5', (1, 0, 0)), ('v1.2', (1, 2))])
def test_release(text, numbers):
    assert version.release(text) == numbers


def versions(monkeypatch, **found: str | None) -> None:
    """Let the check see these versions, and the lowest good ones elsewhere."""
    lowest = {module: minimum for module, (_, minimum) in {**version.REQUIRED, **version.OPTIONAL}.items()}
    monkeypatch.setattr(version, 'installed_version', lambda module, _: {**lowest, **found}[module])


def test_lowest_versions_pass(monkeypatch):
    versions(monkeypatch)
    version.check_versions()


def test_task_libraries_may_be_missing(monkeypatch):
    versions(monkeypatch, mmpretrain=None, mmdet=None, mmseg=None, mmpose=None)
    version.check_versions()


def test_one_message_names_everything_and_the_fix(monkeypatch):
    versions(monkeypatch, mmengine='0.9.1', mmcv=None, mmdet='2.28.0')
    with pytest.raises(ImportError) as error:
        version.check_versions()
    text = str(error.value)
    assert 'mmengine: found 0.9.1, needs >= 0.10;' in text
    assert 'mmcv: found none, needs >= 2.0.1' in text
    assert 'mmdet: found 2.28.0, needs >= 3.0' in text
    assert 'bash tools/setup_env.sh' in text
    assert 'torch' not in text


def test_either_distribution_is_found(monkeypatch):
    def only_openmmlab(name: str) -> str:
        if name != 'mmengine':
            raise version.metadata.PackageNotFoundError(name)
        return '0.10.7'

    monkeypatch.setattr(version.metadata, 'version', only_openmmlab)
    assert version.installed_version('mmengine', ('onedl-mmengine', 'mmengine')) == '0.10.7'


def test_module_without_distribution_is_asked(monkeypatch, tmp_path):
    (tmp_path / 'loose_library.py').write_text("__version__ = '3.1.4'\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert version.installed_version('loose_library', ('no-such-distribution', )) == '3.1.4'
    assert version.installed_version('no_such_library', ('no-such-distribution', )) is None


def test_import_does_not_load_task_libraries():
    code = ('import sys, mmprune_ext; '
            'print([name for name in ("mmpretrain", "mmdet", "mmseg", "mmpose") if name in sys.modules])')
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == '[]'
