"""slurm_train.sh and slurm_test.sh on a real one-node Slurm cluster, two CPU ranks with gloo."""
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'tests' / 'data' / 'toy_classifier.py'

pytestmark = [pytest.mark.e2e, pytest.mark.slurm, pytest.mark.timeout(600)]


def submit(slurm: dict[str, str], script: str, work_dir: Path, *arguments: str, **variables: str) -> str:
    """Run a Slurm script on the toy config; return its output after checking its exit status."""
    environment = {**slurm, 'PYTHON': sys.executable, 'PYTHONPATH': str(CONFIG.parent), 'OMP_NUM_THREADS': '1',
                   **variables}
    run = subprocess.run(['sh', str(ROOT / 'tools' / script), 'toy', 'a job', str(CONFIG), str(work_dir), *arguments],
                         env=environment, cwd=work_dir.parent, capture_output=True, text=True)
    output = run.stdout + run.stderr
    assert run.returncode == 0, output[-5000:]
    return output


def accuracy(output: str) -> float:
    """Return the last top-1 accuracy that a run printed."""
    return float(re.findall(r'accuracy/top1: ([\d.]+)', output)[-1])


@pytest.mark.parametrize('variables', [{'GPUS': '2'}, {'GPUS': '0', 'NTASKS': '2'}], ids=['gres', 'no-gres'])
def test_two_ranks_train_and_test(slurm, tmp_path, variables):
    work_dir = tmp_path / 'work dir'
    trained = submit(slurm, 'slurm_train.sh', work_dir, '--cfg-options', 'train_dataloader.batch_size=8', **variables)
    assert 'Distributed launcher: slurm' in trained
    assert 'GPU number: 2' in trained, 'mmengine prints the number of ranks under this name'
    # 32 images, 8 an iteration and rank, 2 ranks; and --cfg-options reached tools/train.py.
    assert 'Epoch(train) [1][2/2]' in trained
    checkpoint = work_dir / 'epoch_1.pth'
    assert checkpoint.is_file()

    tested = submit(slurm, 'slurm_test.sh', work_dir, '--checkpoint', str(checkpoint), **variables)
    assert 'Epoch(test) [2/2]' in tested
    assert accuracy(tested) == accuracy(trained)


def test_gpus_are_asked_from_slurm(slurm, tmp_path):
    """More GPUs than the node has is Slurm's error, so --gres was really sent."""
    environment = {**slurm, 'PYTHON': sys.executable, 'GPUS': '3', 'CPUS_PER_TASK': '1'}
    run = subprocess.run(['sh', str(ROOT / 'tools' / 'slurm_train.sh'), 'toy', 'job', str(CONFIG), str(tmp_path)],
                         env=environment, capture_output=True, text=True)
    assert run.returncode != 0
    assert 'Requested node configuration is not available' in run.stderr


def test_failing_rank_ends_the_job(slurm, tmp_path):
    environment = {**slurm, 'PYTHON': sys.executable, 'GPUS': '2'}
    run = subprocess.run(['sh', str(ROOT / 'tools' / 'slurm_train.sh'), 'toy', 'job', 'no_such_config.py',
                          str(tmp_path)], env=environment, capture_output=True, text=True)
    assert run.returncode != 0
    assert 'no_such_config.py' in run.stdout + run.stderr
