"""Memory that is freed stays with the process, and with those that it starts."""
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# A tensor of 16 MB, a hundred times; by default each page of it is a fault each time.
FAULTS = '''
import resource, sys, torch
from mmprune_ext.cli.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
torch.zeros(4 * 1024 ** 2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    torch.zeros(4 * 1024 ** 2)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
'''
PAGES = 100 * 16 * 1024 ** 2 // resource.getpagesize()
pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='another C library')


def faults(how: str, **variables: str) -> int:
    environment = {name: value for name, value in os.environ.items() if not name.startswith('MALLOC_')}
    done = subprocess.run([sys.executable, '-c', FAULTS, how], env={**environment, **variables}, cwd=ROOT, check=True,
                          capture_output=True, text=True)
    return int(done.stdout)


def test_freed_memory_is_used_again():
    assert faults('kept') < PAGES / 4


def test_what_the_user_has_set_stays():
    # Everything is taken from the system and given back; transparent huge pages would hide it in part.
    assert faults('kept', MALLOC_MMAP_THRESHOLD_='65536', GLIBC_TUNABLES='glibc.malloc.hugetlb=0') > PAGES / 2
