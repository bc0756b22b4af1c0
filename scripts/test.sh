#!/usr/bin/env bash
# All tests that need no GPU: two files at a time in the torch environment and, beside them, those
# of the simulator's, because most of their time is waiting for processes to start. The simulator's
# output follows the other's. Arguments go to pytest, e.g. scripts/test.sh -m "not slow", or -n 0 for
# one file at a time. What failed at first and passed alone is counted and named at the end.
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
cache=.pytest_cache/torch
torch=(.venv/bin/python -m pytest -q -o "cache_dir=$cache" -m "not gpu and not sim")
failures() { # one a line, as pytest keeps them
    .venv/bin/python - "$cache/v/cache/lastfailed" <<'PYTHON'
import json, pathlib, sys
file = pathlib.Path(sys.argv[1])
print(*sorted(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else (), sep="\n")
PYTHON
}
rm -f "$cache/v/cache/lastfailed"  # of another run
at_first=""
# What fails beside others may have been short of time; what fails alone, too, has failed.
"${torch[@]}" -n 2 --dist loadfile --durations=20 "$@" || {
    at_first=$(failures)
    "${torch[@]}" --last-failed --last-failed-no-failures none "$@" || failed=1
}
wait $simulator || failed=1
cat "$simulator_output"
# In the order of characters, as Python sorts them, not in the locale's.
passed_alone=$(LC_ALL=C comm -23 <(echo "$at_first") <(failures) | sed '/^$/d')
if [ -n "$passed_alone" ]; then
    echo
    echo "failed at first, passed alone: $(wc -l <<<"$passed_alone")"
    sed 's/^/  /' <<<"$passed_alone"
fi
exit $failed
