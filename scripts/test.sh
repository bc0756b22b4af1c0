#!/usr/bin/env bash
# All tests that need no GPU: two files at a time in the torch environment and, beside them, those
# of the simulator's, because most of their time is waiting for processes to start. The simulator's
# output follows the other's. Arguments go to pytest, e.g. scripts/test.sh -m "not slow", or -n 0 for
# one file at a time.
set -uo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} MUJOCO_GL=${MUJOCO_GL:-osmesa}
unset VLLM_ENABLE_V1_MULTIPROCESSING
failed=0
simulator_output=$(mktemp)
set -m  # or a job in the background would be deaf to Ctrl-C
.venv-sim/bin/python -m pytest -q -m "sim" --durations=10 "$@" >"$simulator_output" 2>&1 &
simulator=$!
set +m
trap 'kill -INT $simulator 2>/dev/null; wait $simulator; rm -f "$simulator_output"' EXIT
torch=(.venv/bin/python -m pytest -q -o cache_dir=.pytest_cache/torch -m "not gpu and not sim")
# What fails beside others may have been short of time; what fails alone, too, has failed.
"${torch[@]}" -n 2 --dist loadfile --durations=20 "$@" ||
    "${torch[@]}" --last-failed --last-failed-no-failures none "$@" || failed=1
wait $simulator || failed=1
cat "$simulator_output"
exit $failed
