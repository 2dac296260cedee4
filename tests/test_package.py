"""The package as users get it: the wheel, what is in it, and that it works in a folder without a checkout."""
from __future__ import annotations

import email
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PIP = [sys.executable, '-m', 'pip', '--disable-pip-version-check']
WHEEL = [*PIP, 'wheel', '--no-index', '--no-deps', '--no-build-isolation', '--quiet', '--wheel-dir']
BUILD_SDIST = 'import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))'
SAMPLE = 'configs/pruning/mmcls/l1/l1_resnet56_cifar10.py'


def call(*command: object, cwd: Path, **variables: str) -> str:
    """Run a command in a folder and return what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'} | variables
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def sources() -> dict[str, bytes]:
    """Return what users of a checkout have in configs and tools, and the index of both, by path."""
    paths = [ROOT / 'model-index.yml', *(ROOT / 'configs').rglob('*'), *(ROOT / 'tools').rglob('*')]
    return {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in paths
            if not path.is_dir() and path.parent.name != '__pycache__'}


def content(wheel: Path) -> dict[str, bytes]:
    """Return the files of a wheel, without the list of them."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith('/RECORD')}


def build(source: Path, folder: Path) -> Path:
    """Build the wheel of a folder or an archive of sources."""
    call(*WHEEL, folder, source, cwd=folder)
    return next(folder.glob('*.whl'))


@pytest.fixture(scope='module')
def checkout(tmp_path_factory) -> Path:
    """Return a copy of the sources in which tools were run, and which an older version was built in."""
    folder = tmp_path_factory.mktemp('checkout')
    for name in ('configs', 'mmprune_ext', 'requirements', 'tests', 'tools'):
        shutil.copytree(ROOT / name, folder / name, symlinks=True)
    for name in ('LICENSE', 'MANIFEST.in', 'README.md', 'model-index.yml', 'pyproject.toml', 'setup.py'):
        shutil.copy(ROOT / name, folder)
    for name in ('tools/__pycache__/train.cpython-311.pyc', 'build/lib/mmprune_ext/of_old.py'):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.fixture(scope='module')
def wheel(checkout, tmp_path_factory) -> Path:
    """Return the wheel of the copy, in which building it changes nothing."""
    before = sorted(checkout.rglob('*'))
    wheel = build(checkout, tmp_path_factory.mktemp('wheel'))
    assert sorted(checkout.rglob('*')) == before
    return wheel


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory) -> Path:
    """Return the folder that the wheel is installed into."""
    folder = tmp_path_factory.mktemp('installed')
    call(*PIP, 'install', '--no-index', '--no-deps', '--quiet', '--target', folder, wheel, cwd=folder)
    return folder


def test_wheel_brings_configs_and_tools_and_nothing_else(wheel):
    files = content(wheel)
    prefix = 'mmprune_ext/.mim/'
    assert {name.removeprefix(prefix): data for name, data in files.items() if name.startswith(prefix)} == sources()
    others = [name for name in files if not name.startswith(prefix)]
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / 'mmprune_ext').rglob('*.py')}
    assert {name for name in others if not name.startswith('mmprune_ext-')} == modules


def test_metadata(wheel):
    files = {Path(name).name: data.decode() for name, data in content(wheel).items() if '.dist-info/' in name}
    assert files['entry_points.txt'].split('\n')[:2] == ['[console_scripts]', 'mmprune = mmprune_ext.cli.main:main']
    assert files['LICENSE'] == (ROOT / 'LICENSE').read_text()
    needed = [line for line in email.message_from_string(files['METADATA']).get_all('Requires-Dist') if ';' not in line]
    # Several distributions bring torch, mmengine and mmcv: which one is the user's choice.
    assert needed and not [line for line in needed if any(name in line for name in ('torch', 'mmengine', 'mmcv'))]


def test_archive_of_sources_gives_the_same_wheel(checkout, wheel, tmp_path):
    archive = call(sys.executable, '-c', BUILD_SDIST, tmp_path, cwd=checkout).split()[-1]
    assert content(build(tmp_path / archive, tmp_path)) == content(wheel)


def test_units_of_a_shipped_config(installed, tmp_path):
    out = call(sys.executable, '-m', 'mmprune_ext', 'units', 'mmprune_ext::cifar/resnet20_cifar10.py', cwd=tmp_path,
               PYTHONPATH=str(installed))
    assert 'backbone.layer3.2.conv1' in out


def test_scripts_of_an_installed_package(installed, tmp_path):
    """The quickstart runs on the python that the package was installed for; nothing is set up."""
    tools = installed / 'mmprune_ext' / '.mim' / 'tools'
    out = call('bash', tools / 'quickstart.sh', '-h', cwd=tmp_path, PYTHON=sys.executable, PYTHONPATH=str(installed))
    assert 'usage: demo.py' in out and '--finetune-epochs' in out
    done = subprocess.run(['bash', tools / 'setup_env.sh'], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and 'made in a checkout, not from an installed package' in done.stderr
    assert not list(tmp_path.iterdir())


SCRIPT = '''
import json
from pathlib import Path
import mmprune_ext.registry
from mmengine.hub import get_config
from mmprune_ext.settings import libraries, reading
from mmprune_ext.workflows.demo import DEMOS, Steps
Steps(Path.cwd(), 1, {}).run('a step', 'train.py', '-h')
open('own.py', 'w').write("_base_ = 'mmprune_ext::demo/digits_resnet20.py'")
files = ['tools/train.py', 'tools/datasets/draw_scenes.py', *(f'configs/demo/{demo.config}' for demo in DEMOS.values())]
print(json.dumps({
    'package': mmprune_ext.__file__,
    'indexed': get_config('mmprune_ext::pruning/mmcls/l1/l1_resnet56_cifar10.py').filename,
    'not indexed': get_config('mmprune_ext::cifar/resnet20_cifar10.py').filename,
    'inherited': reading.read_config('own.py').model.backbone.type,
    'shipped': {name: str(libraries.shipped(name)) for name in files}}))
'''


def test_shipped_files_are_found(installed, tmp_path):
    """By mmengine, by the reader of configs and by the demonstrations, in the installation and nowhere else."""
    out = call(sys.executable, '-c', SCRIPT, cwd=tmp_path, PYTHONPATH=str(installed))
    found, package = json.loads(out.splitlines()[-1]), installed / 'mmprune_ext'
    assert f'python {package}/.mim/tools/train.py -h' in out
    assert 'usage: train.py' in (tmp_path / 'step1.log').read_text()
    assert found['package'] == str(package / '__init__.py')
    assert found['indexed'] == str(package / '.mim' / SAMPLE)
    assert found['not indexed'] == str(package / '.mim' / 'configs' / 'cifar' / 'resnet20_cifar10.py')
    assert found['inherited'] == 'mmprune_ext.CifarResNet'
    assert found['shipped'] == {name: str(package / '.mim' / name) for name in found['shipped']}
    assert len(found['shipped']) > 2


def test_shipped_tools_use_the_package_they_came_with(installed, tmp_path):
    """They put the folder above them on the path, which holds no package here."""
    tools = installed / 'mmprune_ext' / '.mim' / 'tools'
    assert 'usage' in call(sys.executable, tools / 'datasets' / 'draw_scenes.py', '-h', cwd=tmp_path,
                           PYTHONPATH=str(installed))
    assert os.access(tools / 'dist_train.sh', os.X_OK)
