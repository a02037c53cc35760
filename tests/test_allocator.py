"""Freed memory that the process keeps: the next tensors take no pages from the system."""

import os
import subprocess
import sys

import pytest

CHOICES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")
PROGRAM = """
import resource, sys
import torch
import dctps
kept = sys.argv[1] == "keep" and dctps.keep_freed_memory()

def step():
    return [torch.ones(1 << 22).add_(1) for _ in range(8)]  # 16 MiB each

for _ in range(5):  # until every hole has been found
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(choice, **environment):
    command = [sys.executable, "-c", PROGRAM, choice]
    own = {name: value for name, value in os.environ.items() if name not in CHOICES}
    done = subprocess.run(command, env=own | environment, capture_output=True, text=True, check=True)
    return tuple(map(int, done.stdout.split()))


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_a_process_that_keeps_memory_takes_no_new_pages():
    as_ever, pages = faults("leave")
    kept, few = faults("keep")
    assert (as_ever, kept) == (0, 1)
    assert pages > 5 * few


def test_an_allocator_that_the_environment_chose_stays():
    assert faults("keep", MALLOC_TRIM_THRESHOLD_="0")[0] == 0
