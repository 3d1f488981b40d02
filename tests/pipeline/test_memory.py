"""What a training does with the memory that it frees."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource
import numpy as np
from pipeline.training.setup import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        np.ones(16 * 2**20, dtype=np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = faults()
told = keep_freed_memory()
faults()
print(told, first, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has mallopt")
def test_a_block_that_was_freed_is_used_again() -> None:
    # In a process of its own: the setting cannot be taken back.
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True
    )
    message, before, after = done.stdout.split()
    if message != "True":
        pytest.skip("this C library has no mallopt")
    assert int(after) < int(before) / 10
