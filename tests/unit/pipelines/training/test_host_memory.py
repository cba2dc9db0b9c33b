"""Facts about the memory of a training on a CPU."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from pipelines.training.host_memory import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(8):
    blocks = [np.ones(6 * 2**20) for _ in range(2)]
    del blocks
before = faults()
blocks = [np.ones(6 * 2**20) for _ in range(2)]
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_a_step_gets_the_memory_that_the_one_before_it_freed():
    def new_pages(how):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, how], check=True, capture_output=True, text=True
        )
        return int(done.stdout)

    assert new_pages("keep") < 100
    assert new_pages("default") >= 2 * 48  # at least one for each MiB, also with large pages
