"""What the launch scripts hand to srun and torchrun, seen by stand-ins for these programs."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECORD = '''#!/bin/sh
exec "$REAL_PYTHON" -c 'import json, os, sys; json.dump(sys.argv[1:], open(os.environ["RECORD"], "w"))' "$@"
'''


@pytest.fixture
def launch(tmp_path):
    """Return a function that runs a script with stand-ins and returns exit code, stderr and recorded arguments."""
    (tmp_path / 'bin').mkdir()
    for name in ('srun', 'python'):
        program = tmp_path / 'bin' / name
        program.write_text(RECORD)
        program.chmod(0o755)
    sinfo = tmp_path / 'bin' / 'sinfo'
    sinfo.write_text('#!/bin/sh\ncase $* in *--partition=cpu*) echo "(null)" ;; *) echo gpu:8 ;; esac\n')
    sinfo.chmod(0o755)

    def run(script: str, *arguments: str, **variables: str) -> tuple[int, str, list[str]]:
        record = tmp_path / 'record.json'
        record.unlink(missing_ok=True)
        environment = {'PATH': f"{tmp_path / 'bin'}:{os.environ['PATH']}", 'REAL_PYTHON': sys.executable,
                       'RECORD': str(record), **variables}
        done = subprocess.run(['sh', str(ROOT / 'tools' / script), *arguments], env=environment, cwd=tmp_path,
                              capture_output=True, text=True)
        return done.returncode, done.stderr, json.loads(record.read_text()) if record.exists() else []

    return run


@pytest.mark.parametrize('tool', ['train', 'test'])
def test_slurm_arguments_keep_their_quoting(launch, tool):
    code, _, arguments = launch(f'slurm_{tool}.sh', 'gpu', 'my job', 'a config.py', 'a dir', '--cfg-options',
                                "a.b='x y'", 'c=[1,*]', GPUS='16', PY_ARGS='--amp b*', SRUN_ARGS='-w node3')
    assert code == 0
    command = arguments.index('python')
    assert arguments[command:] == ['python', '-u', f'{ROOT}/tools/{tool}.py', 'a config.py', '--work-dir=a dir',
                                   '--launcher=slurm', '--amp', 'b*', '--cfg-options', "a.b='x y'", 'c=[1,*]']
    assert set(arguments[:command]) == {
        '--gres=gpu:8', '--partition=gpu', '--job-name=my job', '--ntasks=16', '--ntasks-per-node=8',
        '--cpus-per-task=5', '--kill-on-bad-exit=1', '-w', 'node3'}


@pytest.mark.parametrize(('partition', 'variables', 'expected'), [
    ('gpu', {}, {'--ntasks=8', '--ntasks-per-node=8', '--gres=gpu:8'}),
    ('gpu', {'GPUS': '2'}, {'--ntasks=2', '--ntasks-per-node=2', '--gres=gpu:2'}),
    ('gpu', {'GPUS': '8', 'GPUS_PER_NODE': '4', 'CPUS_PER_TASK': '3'},
     {'--ntasks=8', '--ntasks-per-node=4', '--gres=gpu:4', '--cpus-per-task=3'}),
    ('gpu', {'GPUS': '0'}, {'--ntasks=1', '--ntasks-per-node=1'}),
    ('gpu', {'GPUS': '0', 'NTASKS': '2'}, {'--ntasks=2', '--ntasks-per-node=2'}),
    ('cpu', {'GPUS': '2'}, {'--ntasks=2', '--ntasks-per-node=2'}),
])
def test_slurm_resources(launch, partition, variables, expected):
    code, _, arguments = launch('slurm_train.sh', partition, 'job', 'c.py', 'w', **variables)
    assert code == 0
    assert expected <= set(arguments)
    asks_for_gpus = any(argument.startswith('--gres') for argument in arguments)
    assert asks_for_gpus == any(argument.startswith('--gres') for argument in expected)


@pytest.mark.parametrize(('script', 'arguments', 'variables'), [
    ('slurm_train.sh', ('gpu', 'job', 'c.py'), {}),
    ('slurm_test.sh', ('gpu', 'job', 'c.py'), {}),
    ('slurm_train.sh', ('gpu', 'job', 'c.py', 'w'), {'GPUS': 'two'}),
    ('dist_train.sh', ('c.py', ), {}),
    ('dist_train.sh', ('c.py', '0'), {}),
    ('dist_train.sh', ('c.py', '--amp'), {}),
    ('dist_test.sh', ('c.py', ), {}),
    ('dist_test.sh', ('c.py', 'x.pth'), {}),
    ('dist_test.sh', ('c.py', 'x.pth', '--amp'), {}),
])
def test_wrong_use_prints_the_usage(launch, script, arguments, variables):
    code, stderr, recorded = launch(script, *arguments, **variables)
    assert code == 2
    assert f'usage: sh tools/{script}' in stderr
    assert recorded == [], 'nothing may be started'


@pytest.mark.parametrize(('arguments', 'expected'), [
    (('c.py', 'a b.pth', '2', '--amp'), ['c.py', '--launcher=pytorch', '--checkpoint=a b.pth', '--amp']),
    (('c.py', '2'), ['c.py', '--launcher=pytorch']),
])
def test_dist_test_takes_an_optional_checkpoint(launch, arguments, expected):
    code, _, recorded = launch('dist_test.sh', *arguments, PORT='1234')
    assert code == 0
    assert '--nproc_per_node=2' in recorded
    assert '--master_port=1234' in recorded
    assert recorded[recorded.index(f'{ROOT}/tools/test.py') + 1:] == expected


PUBLISHED = {
    'train': '''sh tools/slurm_train.sh $PARTITION $JOB_NAME \\
  configs/pruning/mmcls/dcff/dcff_resnet50_8xb32_in1k.py \\
  $WORK_DIR
''',
    'test': '''sh tools/slurm_test.sh $PARTITION $JOB_NAME \\
  configs/pruning/mmcls/dcff/dcff_compact_resnet50_8xb32_in1k.py \\
  $WORK_DIR
''',
}


@pytest.mark.usefixtures('launch')
@pytest.mark.parametrize('tool', PUBLISHED)
def test_published_commands_word_for_word(tmp_path, tool):
    """As DCFF's page prints them, by the plain shell, in the root of the repository."""
    environment = {'PATH': f"{tmp_path / 'bin'}:{os.environ['PATH']}", 'REAL_PYTHON': sys.executable,
                   'RECORD': str(tmp_path / 'record.json'), 'PARTITION': 'gpu', 'JOB_NAME': 'dcff', 'WORK_DIR': 'w'}
    done = subprocess.run(['sh', '-eu', '-c', PUBLISHED[tool]], env=environment, cwd=ROOT, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    arguments = json.loads((tmp_path / 'record.json').read_text())
    command = arguments[arguments.index('python'):]
    assert command[2] == f'{ROOT}/tools/{tool}.py'
    assert (ROOT / command[3]).is_file()
    assert command[4:] == ['--work-dir=w', '--launcher=slurm']
