#!/usr/bin/env bash
# The benchmarks of docs/benchmarks.md, one after the other on a quiet machine. Results: build/benchmarks/*.json.
# Arguments go to each of them, e.g. scripts/bench.sh --quick.
set -euo pipefail
cd "$(dirname "$0")/.."
export MUJOCO_GL=${MUJOCO_GL:-osmesa}
.venv-sim/bin/python -m benchmarks.env "$@"
.venv/bin/python -m benchmarks.policy "$@"
.venv/bin/python -m benchmarks.swap "$@"
.venv/bin/python -m benchmarks.loop "$@"
