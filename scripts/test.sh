#!/usr/bin/env bash
# All tests that need no GPU: two files at a time in the torch environment and, beside them, those
# of the simulator's, because most of their time is waiting for processes to start. The simulator's
# output follows the other's. Arguments go to pytest, e.g. scripts/test.sh -m "not slow", or -n 0 for
# one file at a time. What neither has run is counted and named at the end, with its reason.
set -uo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} MUJOCO_GL=${MUJOCO_GL:-osmesa}
unset VLLM_ENABLE_V1_MULTIPROCESSING
unset PYTHONDONTWRITEBYTECODE  # or each of some hundred processes would compile the sources anew
failed=0
simulator_output=$(mktemp) VLARL_NOT_RUN=$(mktemp)
export VLARL_NOT_RUN
set -m  # or a job in the background would be deaf to Ctrl-C
.venv-sim/bin/python -m pytest -q -m "sim" --durations=10 "$@" >"$simulator_output" 2>&1 &
simulator=$!
set +m
trap 'kill -INT $simulator 2>/dev/null; wait $simulator; rm -f "$simulator_output" "$VLARL_NOT_RUN"' EXIT
# In the order of their names, which begins with the longest: e2e. xdist would begin with the files
# that have the most tests, and end with one core at work.
.venv/bin/python -m pytest -q -m "not gpu and not sim" -n 2 --dist loadfile \
    --no-loadscope-reorder --durations=20 "$@" || failed=1
wait $simulator || failed=1
cat "$simulator_output"
if [ -s "$VLARL_NOT_RUN" ]; then
    printf '\nnot run on this machine: %d\n' "$(LC_ALL=C sort -u "$VLARL_NOT_RUN" | wc -l)"
    LC_ALL=C sort -u "$VLARL_NOT_RUN" | while IFS=$'\t' read -r reason test; do
        printf '  %s: %s\n' "$test" "$reason"
    done
fi
exit $failed
