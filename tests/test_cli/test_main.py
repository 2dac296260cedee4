"""The console command: the tools under one name."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mmprune_ext.cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]
TOOLS = {path.stem: path for path in [*(ROOT / 'tools').glob('*.py'), *(ROOT / 'tools').glob('*/*.py')]}
# What answers for arguments, and for the files that they name, before anything that takes long is imported.
LIGHT = """
import sys
from mmprune_ext.cli.main import main
try:
    main(sys.argv[1:])
finally:
    assert not {'torch', 'mmengine', 'numpy'} & set(sys.modules), 'heavy imports'
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)


def test_every_tool_is_a_command():
    assert set(COMMANDS.values()) == set(TOOLS)


@pytest.mark.parametrize('arguments', [[], ['-h'], ['--help']])
def test_the_commands_are_listed_with_what_they_do(arguments, capsys):
    main(arguments)
    lines = capsys.readouterr().out.splitlines()
    listed = dict(line.split(maxsplit=1) for line in lines if line.startswith('  '))
    assert list(listed) == list(COMMANDS)
    assert listed['units'] == "Show a model's channel units, or write them as JSON."


@pytest.mark.parametrize('name', [*COMMANDS, *sorted({*COMMANDS.values()} - {*COMMANDS})])
def test_help_is_the_tools_own_under_the_commands_name(name, capsys, monkeypatch):
    """By the short name and by the tool's own; the tool in ``tools/`` names its file."""
    module = COMMANDS.get(name, name)
    shown = []
    with pytest.raises(SystemExit) as ended:
        main([name, '-h'])
    assert ended.value.code == 0
    shown.append(capsys.readouterr().out)
    assert shown[0].startswith(f'usage: mmprune {name} [-h]')
    tool = run(str(TOOLS[module]), '-h')
    assert tool.stdout.startswith(f'usage: {module}.py [-h]'), tool.stderr
    # The width of the name moves the words of the usage, so that words are compared and not lines.
    assert shown[0].split()[3:] == tool.stdout.split()[2:]


@pytest.mark.parametrize(('name', 'near'), [('prun', 'did you mean prune?'), ('get_flop', 'did you mean get_flops'),
                                            ('unit', 'did you mean units'), ('xyz', 'choose from train, test, prune')])
def test_an_unknown_command_names_the_nearest(name, near, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, 'config.py'])
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(f'error: unknown command "{name}"; {near}') and err.count('\n') == 1


def test_python_m_runs_a_command_with_its_exit_code(tmp_path):
    done = run('-m', 'mmprune_ext', 'unpack-sheets', str(tmp_path / 'none'), str(tmp_path / 'out'))
    assert done.returncode == 2
    assert done.stderr.startswith('error: ') and str(tmp_path / 'none') in done.stderr and done.stderr.count('\n') == 1
    assert run('-m', 'mmprune_ext', '--version').stdout.startswith('mmprune_ext 0.')


@pytest.mark.parametrize('arguments', [
    ['-h'], ['none'], *([name, '-h'] for name in COMMANDS),
    ['prune', 'config.py'], ['train', 'config.py', '--launcher', 'none', '--flag'], ['train', 'none.py'],
    ['test', 'none.py', '--work-dir', 'x', 'none.pth'], ['demo', 'tracking'], ['convert', 'none.pth', 'a.pth'],
    ['prune', 'README.md', 'none.pth', '--algorithm', 'l1', '--flops', '0.5', '-o', 'x']], ids=' '.join)
def test_arguments_are_answered_for_at_once(arguments):
    done = run('-c', LIGHT, *arguments)
    assert 'heavy imports' not in done.stderr
    assert done.returncode == (0 if '-h' in arguments else 2), done.stderr


def test_names_that_are_known_without_imports():
    from mmprune_ext.cli.commands import convert_checkpoint, demo
    from mmprune_ext.models.convert import MODELS
    from mmprune_ext.workflows.demo import DEMOS
    assert sorted(DEMOS) == list(demo.TASKS) and MODELS == convert_checkpoint.NETWORKS
