"""tools/setup_env.sh on machines that lack something, and its repairs, without building anything."""
import os
import shutil
import subprocess
import sys
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

    def run(python: str | None = None, programs: tuple[str, ...] = (), **variables: str):
        for name in programs:
            program = folder / name
            program.write_text('#!/bin/sh\nexit 0\n')
            program.chmod(0o755)
        if python is not None:
            program = folder / 'python3'
            program.write_text(python)
            program.chmod(0o755)
        environment = {'PATH': str(folder), 'HOME': str(tmp_path), 'MMPRUNE_ENV': str(tmp_path / 'root'), **variables}
        return subprocess.run([str(folder / 'bash'), str(ROOT / 'tools' / 'setup_env.sh')], env=environment,
                              capture_output=True, text=True, timeout=60)

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


@pytest.mark.parametrize('argument', ['--frobnicate'])
def test_unknown_argument(argument):
    run = subprocess.run(['bash', str(ROOT / 'tools' / 'setup_env.sh'), argument], capture_output=True, text=True)
    assert run.returncode == 2
    assert 'usage: bash tools/setup_env.sh' in run.stderr
