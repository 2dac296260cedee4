"""tools/setup_env.sh on machines that lack something, and its repairs, without building anything."""
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What the script itself calls; the tests then add or leave out what an environment needs.
SHELL = ('bash', 'env', 'dirname', 'cat', 'mkdir', 'rm', 'mv', 'mktemp', 'sha256sum', 'cut', 'uname', 'flock', 'grep',
         'sed', 'tail', 'tr', 'sleep', 'sort', 'paste', 'getconf', 'awk', 'rmdir')


@pytest.fixture
def machine(tmp_path):
    """Return a function that runs the script with only the named programs on PATH, and an empty folder."""
    folder = tmp_path / 'bin'
    folder.mkdir()
    for name in SHELL:
        (folder / name).symlink_to(shutil.which(name))

    def run(*arguments: str, python: str | None = None, programs: tuple[str, ...] = (), **variables: str):
        for name in programs:
            program = folder / name
            program.write_text('#!/bin/sh\nexit 0\n')
            program.chmod(0o755)
        if python is not None:
            program = folder / 'python3'
            program.write_text(python)
            program.chmod(0o755)
        environment = {'PATH': str(folder), 'HOME': str(tmp_path), 'MMPRUNE_ENV': str(tmp_path / 'root'), **variables}
        command = [str(folder / 'bash'), str(ROOT / 'tools' / 'setup_env.sh'), *arguments]
        # Into files: of a script that is killed a child may live on, and would hold a pipe open.
        with (tmp_path / 'out').open('w+') as out, (tmp_path / 'err').open('w+') as err:
            code = subprocess.run(command, env=environment, stdout=out, stderr=err, timeout=60).returncode
        texts = [(tmp_path / name).read_text() for name in ('out', 'err')]
        return subprocess.CompletedProcess(command, code, *texts)

    return run


GOOD_PYTHON = f'#!/bin/sh\nexec "{os.path.realpath(sys.executable)}" "$@"\n'


def refused(run: subprocess.CompletedProcess, *texts: str) -> None:
    """Check that a run ended with exit code 2, one line of message and nothing on stdout."""
    assert run.returncode == 2, run.stderr
    assert run.stdout == ''
    lines = [line for line in run.stderr.splitlines() if 'cannot set up' in line]
    assert len(lines) == 1, run.stderr
    assert all(text in lines[0] for text in texts), lines[0]


def test_no_python(machine):
    refused(machine(), 'no fit python', 'python3.11: not found', 'install Python 3.11')


@pytest.mark.parametrize(('answer', 'text'), [
    ('is Python 3.9, needed is 3.10 to 3.12', 'python3 is Python 3.9, needed is 3.10 to 3.12'),
    ('has no Python.h (Debian: apt-get install python3.11-dev)', 'apt-get install python3.11-dev'),
])
def test_unfit_python(machine, answer, text):
    refused(machine(python=f'#!/bin/sh\necho "{answer}"\n'), text, 'MMPRUNE_PYTHON')


def test_python_that_does_not_run(machine):
    refused(machine(python='#!/bin/sh\nexit 127\n'), 'python3 does not run')


def test_named_python_is_not_replaced_by_another(machine):
    refused(machine(python=GOOD_PYTHON, MMPRUNE_PYTHON='python3.8'), 'python3.8: not found')


def test_missing_compiler_and_git_are_named_together(machine):
    refused(machine(python=GOOD_PYTHON), 'git', 'a C compiler (gcc)', 'a C++ compiler (g++)', 'apt-get install')


def test_missing_cpp_compiler_alone(machine):
    run = machine(python=GOOD_PYTHON, programs=('git', 'gcc'))
    refused(run, 'missing a C++ compiler (g++).')


def test_folder_that_cannot_be_written(machine, tmp_path):
    (tmp_path / 'file').touch()
    run = machine(python=GOOD_PYTHON, MMPRUNE_ENV=str(tmp_path / 'file'))
    refused(run, str(tmp_path / 'file'), 'set MMPRUNE_ENV')


def environment_folder(machine, tmp_path: Path) -> Path:
    """Return where the script would make its environment, after a run that stopped for want of a compiler."""
    machine(python=GOOD_PYTHON)
    lock, = (tmp_path / 'root' / 'envs').glob('*.lock')
    return lock.with_suffix('')


def fake_environment(folder: Path, *stamps: str) -> None:
    (folder / 'bin').mkdir(parents=True)
    (folder / 'bin' / 'python').symlink_to(os.path.realpath(sys.executable))
    for stamp in stamps:
        (folder / stamp).touch()


@pytest.mark.parametrize(('stamps', 'message', 'kept'), [
    (('.done-venv', '.done-torch', '.installing'), 'was interrupted while it installed: making it anew', False),
    ((), 'was interrupted while it installed: making it anew', False),
    (('.done-venv', '.done-torch'), 'was interrupted: going on where it stopped', True),
    (('.done-venv', '.complete'), 'is broken (pip is', False),
])
def test_half_finished_and_broken_environments(machine, tmp_path, stamps, message, kept):
    folder = environment_folder(machine, tmp_path)
    fake_environment(folder, *stamps)
    run = machine(python=GOOD_PYTHON)
    # There is no compiler, so each run stops after it has said what it thinks of what it found.
    assert run.returncode == 2
    assert message in run.stderr
    assert folder.exists() == kept
    assert not list(folder.parent.glob('*.discarded.*'))


def test_complete_environment_without_python(machine, tmp_path):
    folder = environment_folder(machine, tmp_path)
    fake_environment(folder, '.done-venv', '.complete')
    (folder / 'bin' / 'python').unlink()
    run = machine(python=GOOD_PYTHON)
    assert 'is broken (its python is gone): making it anew' in run.stderr


def test_second_run_waits_for_the_first(machine, tmp_path):
    folder = environment_folder(machine, tmp_path)
    command = ['flock', f'{folder}.lock', 'sh', '-c', 'echo held; sleep 2']
    with subprocess.Popen(command, stdout=subprocess.PIPE) as first:
        first.stdout.readline()
        run = machine(python=GOOD_PYTHON)
        assert first.wait() == 0
    assert f'waiting for another set-up of {folder}' in run.stderr
    assert 'a C++ compiler' in run.stderr, 'and then it goes on'


@pytest.mark.parametrize('arguments', [('--frobnicate', ), ('--classification', '--frobnicate')])
def test_unknown_argument(machine, arguments):
    run = machine(*arguments, python=GOOD_PYTHON)
    assert run.returncode == 2
    assert 'usage: bash tools/setup_env.sh' in run.stderr


# A python that notes how it was called, makes environments of itself, whose pip installs nothing and builds empty
# wheels. What FAKE names goes wrong.
FAKE_PYTHON = f'#!{os.path.realpath(sys.executable)} -IS\n' + textwrap.dedent('''
    import os, shutil, signal, sys, zipfile
    from pathlib import Path
    arguments, fault = sys.argv[1:], os.environ.get('FAKE')
    with open(os.environ['CALLS'], 'a') as file:
        print(*arguments, file=file)
    if arguments[:2] == ['-I', '-'] and len(arguments) == 3:
        print('has no Python.h' if fault == 'no headers' and arguments[2] == 'full' else '3.11')
    elif arguments[:2] == ['-I', '-'] and fault == 'broken':
        sys.exit('torch is missing')
    elif arguments[:2] == ['-m', 'venv']:
        Path(arguments[2], 'lib', 'python3.11', 'site-packages').mkdir(parents=True)
        Path(arguments[2], 'bin').mkdir()
        shutil.copy(sys.argv[0], Path(arguments[2], 'bin', 'python'))
    elif arguments[:3] == ['-m', 'pip', 'wheel']:
        tag = 'cp311-cp311-linux_x86_64' if fault == 'compiled' else 'py3-none-any'
        name = arguments[-1].replace('-', '_').replace('==', '-')
        zipfile.ZipFile(Path(arguments[arguments.index('-w') + 1], name + '-' + tag + '.whl'), 'w').close()
    elif arguments[:3] == ['-I', '-m', 'zipfile']:
        zipfile.ZipFile(arguments[4])
    elif arguments[:3] == ['-m', 'pip', 'install'] and '--no-compile' in arguments and fault == 'killed':
        os.kill(os.getppid(), signal.SIGKILL)
''')


@pytest.fixture
def small(machine, tmp_path):
    """Return a function that asks for an environment, and returns the run and what it called python for."""
    calls = tmp_path / 'calls'

    def run(fault: str = '', *, full: bool = False) -> tuple[subprocess.CompletedProcess, list[str]]:
        calls.write_text('')
        arguments = () if full else ('--classification', )
        result = machine(*arguments, python=FAKE_PYTHON, CALLS=str(calls), FAKE=fault)
        return result, calls.read_text().splitlines()

    return run


def chosen(run: subprocess.CompletedProcess) -> Path:
    """Return the folder of the environment whose python a run printed last."""
    assert run.returncode == 0, run.stderr
    python = Path(run.stdout.splitlines()[-1])
    assert python.name == 'python' and python.is_file()
    return python.parents[1]


def of(calls: list[str], command: str) -> list[str]:
    """Return what pip was called with for a command."""
    return [call.partition(f'pip {command} ')[2] for call in calls if call.startswith(f'-m pip {command} ')]


@pytest.fixture
def full_environment(small, tmp_path) -> Path:
    """The full environment, complete."""
    assert small(full=True)[0].returncode == 2  # there is no compiler, but its name is known now
    lock, = (tmp_path / 'root' / 'envs').glob('*-cpu-*.lock')
    folder = lock.with_suffix('')
    (folder / 'bin').mkdir(parents=True)
    shutil.copy(tmp_path / 'bin' / 'python3', folder / 'bin' / 'python')
    (folder / '.complete').touch()
    return folder


def test_small_environment_needs_no_compiler(small, tmp_path):
    run, calls = small()
    folder = chosen(run)
    assert folder.name.startswith('py3.11-classification-') and (folder / '.complete').exists()
    wheel, = (tmp_path / 'root' / 'wheels').glob('*/*.whl')
    assert wheel.parent.name == 'pure'
    build, = of(calls, 'wheel')
    assert '--no-build-isolation' not in build and '--no-cache-dir' in build
    tools, libraries = (install.split() for install in of(calls, 'install'))
    assert [tool.partition('==')[0] for tool in tools] == ['pip', 'setuptools']
    assert str(wheel) in libraries and any(word.startswith('scikit-learn==') for word in libraries)
    lists = {Path(word).name for word in libraries if word.endswith('.txt')}
    assert lists == {'torch.txt', 'runtime.txt', 'cls.txt', 'constraints.txt'}
    link, = folder.glob('lib/python3.11/site-packages/*')
    assert (link.suffix, link.read_text()) == ('.pth', f'{ROOT}\n')


def test_small_environment_is_found_again(small):
    folder = chosen(small()[0])
    run, calls = small()
    assert chosen(run) == folder
    assert not of(calls, 'install') and not of(calls, 'wheel')


def test_small_environment_that_is_broken(small):
    folder = chosen(small()[0])
    run, calls = small('broken')
    assert f'{folder} is broken (torch is missing): making it anew' in run.stderr
    assert chosen(run) == folder and len(of(calls, 'install')) == 2


def test_small_environment_on_a_python_without_headers(small):
    assert chosen(small('no headers')[0]).name.startswith('py3.11-classification-')
    refused(small('no headers', full=True)[0], 'no fit python', 'python3 has no Python.h')


def test_full_environment_is_preferred(small, full_environment):
    run, calls = small()
    assert chosen(run) == full_environment
    assert not of(calls, 'install')
    assert not list(full_environment.parent.glob('*-classification-*'))


@pytest.mark.parametrize(('fault', 'message'), [
    ('unfinished', ''),
    ('broken', '{} is broken (torch is missing): bash tools/setup_env.sh'),
    ('in use', 'another set-up of {} is at work'),
])
def test_full_environment_that_cannot_be_taken(small, full_environment, tmp_path, fault, message):
    if fault == 'unfinished':
        (full_environment / '.complete').unlink()
    if fault == 'in use':  # a flock whose time is always up
        flock = tmp_path / 'bin' / 'flock'
        flock.unlink()
        flock.write_text(f'#!/bin/sh\ntest "$1" = -w && exit 1\nexec {shutil.which("flock")} "$@"\n')
        flock.chmod(0o755)
    run, _ = small(fault)
    assert chosen(run).name.startswith('py3.11-classification-')
    assert message.format(full_environment) in run.stderr
    assert full_environment.exists(), 'it is left to its own set-up'


def test_killed_while_installing(small):
    run, _ = small('killed')
    assert run.returncode == -9
    run, calls = small()
    folder = chosen(run)
    assert f'the set-up of {folder} was interrupted while it installed: making it anew' in run.stderr
    assert 'taking the kept wheel' in run.stderr and not of(calls, 'wheel')
    assert (folder / '.complete').exists() and not (folder / '.installing').exists()


def test_damaged_pure_wheel(small, tmp_path):
    shutil.rmtree(chosen(small()[0]))
    wheel, = (tmp_path / 'root' / 'wheels' / 'pure').glob('*.whl')
    whole = wheel.read_bytes()
    wheel.write_bytes(whole[:10])
    run, calls = small()
    assert chosen(run) and f'{wheel} is damaged: building it again' in run.stderr
    assert len(of(calls, 'wheel')) == 1 and wheel.read_bytes() == whole


def test_compiled_wheel_is_not_taken(small):
    run, calls = small('compiled')
    assert run.returncode == 1 and run.stdout == ''
    assert 'the wheel of onedl-mmcv' in run.stderr and 'is not of the kind that is needed' in run.stderr
    assert len(of(calls, 'install')) == 1, 'nothing but pip itself'


@pytest.mark.parametrize(('task', 'environment', 'asked', 'says'), [
    ('digits', 'py3.11-classification-0', '--classification', True),
    ('classification', 'py3.11-cpu-0', '--classification', False),
    ('detection', 'py3.11-cpu-0', '', False),
])
def test_what_a_demonstration_asks_for(tmp_path, task, environment, asked, says):
    for name in ('tools', 'requirements'):
        (tmp_path / name).mkdir()
    shutil.copy(ROOT / 'tools' / 'demo.sh', tmp_path / 'tools')
    python = tmp_path / 'envs' / environment / 'bin' / 'python'
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "demo: $*"\nexit "$CODE"\n')
    python.chmod(0o755)
    (tmp_path / 'tools' / 'setup_env.sh').write_text(f'echo "asked: $*" >&2; echo {python}\n')
    for code in (0, 3):
        run = subprocess.run(['bash', str(tmp_path / 'tools' / 'demo.sh'), task, '--resume'], capture_output=True,
                             text=True, env={**os.environ, 'CODE': str(code)})
        assert run.returncode == code
        assert run.stderr.strip() == f'asked: {asked}'.strip()
        first, *rest = run.stdout.splitlines()
        assert first == f'demo: {tmp_path}/tools/demo.py {task} --resume'
        assert ['bash tools/setup_env.sh' in line for line in rest] == [True] * (says and code == 0)


# A real python, which refuses to make environments: what is broken stays as it is.
NO_VENV = f'#!/bin/sh\ntest "$1 $2" = "-m venv" && exit 1\nexec "{os.path.realpath(sys.executable)}" "$@"\n'


@pytest.fixture
def pinned_environment(machine, tmp_path) -> Path:
    """A small environment that holds what it should by its lists, each package one file."""
    assert machine('--classification', python=NO_VENV).returncode == 1
    lock, = (tmp_path / 'root' / 'envs').glob('*-classification-*.lock')
    folder = lock.with_suffix('')
    shutil.rmtree(folder)
    fake_environment(folder, '.done-venv', '.complete')
    (folder / 'pyvenv.cfg').write_text(f'home = {os.path.dirname(os.path.realpath(sys.executable))}\n')
    site = folder / 'lib' / 'python{}.{}'.format(*sys.version_info) / 'site-packages'
    lists = [ROOT / 'requirements' / f'{name}.txt' for name in ('build', 'torch', 'runtime', 'manual', 'cls', 'tests')]
    pins = {line for path in lists for line in path.read_text().splitlines() if '==' in line}
    for name, version in (pin.split('==') for pin in pins):
        info = site / f'{name.replace("-", "_")}-{version}.dist-info'
        info.mkdir(parents=True)
        (info / 'METADATA').write_text(f'Name: {name}\nVersion: {version}\n')
        (info / 'RECORD').write_text(f'{name}.py,,7\n')
        (site / f'{name}.py').write_text('x = 123')
    (site / 'mmprune_ext.pth').write_text(f'{ROOT}\n')
    return site


@pytest.mark.parametrize(('harm', 'message'), [
    (lambda site: None, None),
    (lambda site: (site / 'mmprune_ext.pth').unlink(), 'step 4/4: linking this checkout'),
    (lambda site: (site / 'torch.py').unlink(), 'is broken (torch is damaged (torch.py))'),
    (lambda site: (site / 'onedl-mmcv.py').write_text('x'), 'is broken (onedl-mmcv is damaged (onedl-mmcv.py))'),
    (lambda site: shutil.rmtree(next(site.glob('scikit*'))), 'is broken (scikit-learn is missing)'),
    (lambda site: next(site.glob('numpy-*/METADATA')).write_text('Name: numpy\nVersion: 1.0\n'),
     'is broken (numpy is 1.0, not'),
    (lambda site: shutil.rmtree(next(site.glob('mmpose-*'))), None),
], ids=['sound', 'not linked', 'file gone', 'file cut', 'package gone', 'version', 'what it need not have'])
def test_inspection_of_the_small_environment(machine, pinned_environment, harm, message):
    harm(pinned_environment)
    run = machine('--classification', python=NO_VENV)
    folder = pinned_environment.parents[2]
    assert (message or f'] environment {folder}\n') in run.stderr
    if 'is broken' in (message or ''):
        assert run.returncode == 1 and run.stdout == ''
    else:
        assert chosen(run) == folder
        assert (pinned_environment / 'mmprune_ext.pth').read_text() == f'{ROOT}\n'
