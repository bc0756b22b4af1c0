"""Where an iteration's time goes with a policy that answers chunks; see `benchmarks.loop`.

    python -m benchmarks.loop_chunks [--quick]

An untrained OpenVLA-OFT of the same size, one camera, eight control steps an answer, each action
held for one. The env pool alone gets eight actions at a time, too, and renders after the last.
"""

from __future__ import annotations

import sys
import tempfile

from benchmarks.loop import CONFIG, asked_to_be_quick, measure
from benchmarks.report import Report
from vlarl.models.openvla_oft.starting import make_tiny_oft_checkpoint

CHUNK = 8
WANTED = 0.9


def main() -> None:
    """Entry point."""
    quick = asked_to_be_quick(__doc__)
    report = Report("loop_chunks", f"A whole iteration of {CONFIG.name}, task 0, chunks of {CHUNK}")
    with tempfile.TemporaryDirectory(prefix="vlarl-") as folder:
        make_tiny_oft_checkpoint(folder, chunk=CHUNK)
        settings = [f"policy.checkpoint={folder}", "env.action_repeat=1"]
        met = measure(report, quick=quick, wanted=WANTED, settings=settings)
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
