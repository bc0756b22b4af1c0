import subprocess
import sys

PROGRAM = """
import resource, sys
import numpy as np
from vlarl.allocator import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
faults = []
for _ in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    several = [np.ones(2_000_000) for _ in range(8)]
    del several
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(faults[-1])
"""


def test_memory_that_was_freed_is_used_again_without_a_page_fault() -> None:
    def faults(how: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    assert faults("kept") < 10
    assert faults("returned") > 1_000, "arrays no longer go back: is the call of any use?"
