#!/usr/bin/env bash
# The benchmarks, one after the other; run them on a machine that does nothing else. Results go to
# build/benchmarks/*.json and docs/benchmarks.md. Arguments go to each of them, e.g. --quick.
# Exits with 1 where a wanted ratio was missed.
set -uo pipefail
cd "$(dirname "$0")/.."
export MUJOCO_GL=${MUJOCO_GL:-osmesa}
missed=0
.venv-sim/bin/python -m benchmarks.env "$@" || missed=1
.venv-sim/bin/python -m benchmarks.env_memory "$@" || missed=1
.venv-sim/bin/python -m benchmarks.scenes "$@" || missed=1
.venv-sim/bin/python -m benchmarks.blind "$@" || missed=1
.venv/bin/python -m benchmarks.policy "$@" || missed=1
.venv/bin/python -m benchmarks.policy_chunks "$@" || missed=1
.venv/bin/python -m benchmarks.load "$@" || missed=1
.venv/bin/python -m benchmarks.swap "$@" || missed=1
.venv/bin/python -m benchmarks.loop "$@" || missed=1
.venv/bin/python -m benchmarks.loop_chunks "$@" || missed=1
.venv/bin/python -m benchmarks.reward "$@" || missed=1
.venv/bin/python -m benchmarks.scale "$@" || missed=1
.venv/bin/python -m benchmarks.learner "$@" || missed=1
if .venv/bin/python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    .venv/bin/python -m benchmarks.seven_b "$@" || missed=1
fi
.venv/bin/python -m benchmarks.publish
exit $missed
