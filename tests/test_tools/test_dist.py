"""dist_train.sh and dist_test.sh: two CPU ranks with gloo, started by torchrun."""
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ranks import environment, free_port

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'tests' / 'data' / 'toy_classifier.py'

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def launch(script: str, *arguments: str) -> str:
    """Run a torchrun script; return its output after checking its exit status."""
    run = subprocess.run(['sh', str(ROOT / 'tools' / script), *arguments], capture_output=True, text=True,
                         env={**environment(), 'PYTHONPATH': str(CONFIG.parent),  # the script adds its own checkout
                              'PYTHON': sys.executable, 'PORT': str(free_port())})
    output = run.stdout + run.stderr
    assert run.returncode == 0, output[-5000:]
    return output


def test_two_ranks_train_and_test(tmp_path):
    work_dir = tmp_path / 'work dir'
    trained = launch('dist_train.sh', str(CONFIG), '2', f'--work-dir={work_dir}')
    assert 'Distributed launcher: pytorch' in trained
    assert 'GPU number: 2' in trained, 'mmengine prints the number of ranks under this name'
    assert 'Epoch(train) [1][4/4]' in trained  # 32 images, 4 an iteration and rank, 2 ranks

    checkpoint = work_dir / 'epoch_1.pth'
    tested = launch('dist_test.sh', str(CONFIG), str(checkpoint), '2', f'--work-dir={work_dir}')
    top1 = [re.findall(r'accuracy/top1: ([\d.]+)', output)[-1] for output in (trained, tested)]
    assert top1[0] == top1[1]
