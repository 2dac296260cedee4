"""A real one-node Slurm cluster for the tests of the Slurm scripts."""
import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ranks import free_port

PROGRAMS = ('munged', 'slurmctld', 'slurmd', 'srun', 'sinfo', 'scancel')
START_S = 60


def write_config(folder: Path) -> Path:
    """Write slurm.conf and gres.conf of one node with two GPUs that are empty files."""
    host = socket.gethostname().split('.')[0]
    for number in range(2):
        (folder / f'gpu{number}').touch()
    for name in ('state', 'spool'):
        (folder / name).mkdir()
    (folder / 'gres.conf').write_text(f'Name=gpu File={folder}/gpu[0-1]\n')
    config = folder / 'slurm.conf'
    config.write_text(f'''\
ClusterName=mmprune
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={free_port()}
SlurmdPort={free_port()}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
GresTypes=gpu
# The two tasks of a test ask for more CPUs than a small machine has.
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=16 Gres=gpu:2 State=UNKNOWN
PartitionName=toy Nodes={host} Default=YES State=UP
''')
    return config


def start(stack: contextlib.ExitStack, folder: Path, command: list[str], environment: dict[str, str]) -> None:
    """Run a daemon in the foreground until the stack closes, with its output in a log file."""
    log = stack.enter_context((folder / f'{Path(command[0]).name}.log').open('w'))
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def stop() -> None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    stack.callback(stop)


def wait_until_idle(folder: Path, environment: dict[str, str]) -> None:
    """Wait for the node to take jobs; fail with the daemons' logs."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        state = subprocess.run(['sinfo', '-h', '-o', '%T'], env=environment, capture_output=True, text=True)
        if state.stdout.strip() == 'idle':
            return
        time.sleep(0.5)
    logs = '\n'.join(f'== {log.name}\n{log.read_text()[-3000:]}' for log in folder.glob('*.log'))
    pytest.fail(f'the Slurm cluster did not start in {START_S} s; sinfo: {state.stdout}{state.stderr}\n{logs}')


@pytest.fixture(scope='session')
def slurm() -> Iterator[dict[str, str]]:
    """Start a one-node cluster with partition `toy`; yield the environment in which srun finds it."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} missing (Debian: apt-get install slurm-wlm munge)")
    if os.geteuid() != 0:
        pytest.skip('slurmd must be started by root')
    # Not pytest's tmp_path: munged wants folders that every user may enter.
    folder = Path(tempfile.mkdtemp(prefix='mmprune-slurm-', dir='/tmp'))
    folder.chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(('SLURM_', 'SBATCH_'))}
    environment['SLURM_CONF'] = str(write_config(folder))
    key = folder / 'munge.key'
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        start(stack, folder, ['munged', '--foreground', '--force', f'--key-file={key}',
                              f'--socket={folder}/munge.socket', f'--pid-file={folder}/munged.pid',
                              f'--seed-file={folder}/munged.seed', f'--log-file={folder}/munge.log'], environment)
        while not (folder / 'munge.socket').exists():
            time.sleep(0.1)
        start(stack, folder, ['slurmctld', '-D'], environment)
        start(stack, folder, ['slurmd', '-D'], environment)
        wait_until_idle(folder, environment)
        stack.callback(subprocess.run, ['scancel', '--user=root'], env=environment, check=False)
        yield environment
