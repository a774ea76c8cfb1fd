"""What the system does for us, as the kernel counts it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
FAULTS = """
import resource, torch
{0}

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(2**24).fill_(1.0)  # 64 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(min(faults() for _ in range(3)))
"""


def faults_of_64_mb(line, **environment):
    told = {key: value for key, value in os.environ.items() if key != "THP_MEM_ALLOC_ENABLE"} | environment
    done = subprocess.run(
        [sys.executable, "-c", FAULTS.format(line)], env=told, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(
    not PAGES.exists() or "[never]" in PAGES.read_text() or "[always]" in PAGES.read_text(),
    reason="large pages are not for the asking here",
)
def test_large_tensors_lie_on_large_pages_unless_someone_said_otherwise():
    small = faults_of_64_mb("")  # 16,384 pages of 4 KB
    assert faults_of_64_mb("import leaf.hardware") < small / 2  # 32 of 2 MB, if there are as many to be had
    assert faults_of_64_mb("import leaf.hardware", THP_MEM_ALLOC_ENABLE="0") > 0.9 * small
