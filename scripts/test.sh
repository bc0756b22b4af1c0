#!/usr/bin/env bash
# All tests that need no GPU: first in the torch environment, then the simulator's.
# Arguments go to pytest, e.g. scripts/test.sh -m "not slow".
set -uo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} MUJOCO_GL=${MUJOCO_GL:-osmesa}
unset VLLM_ENABLE_V1_MULTIPROCESSING
failed=0
.venv/bin/python -m pytest -q -m "not gpu and not sim" --durations=15 "$@" || failed=1
.venv-sim/bin/python -m pytest -q -m "sim" --durations=15 "$@" || failed=1
exit $failed
