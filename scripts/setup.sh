#!/usr/bin/env bash
# Sets up the two environments from the lock files: .venv (torch, vLLM) and .venv-sim (LIBERO).
# What is up to date already is left alone, so running it again costs nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/sbin:/usr/sbin  # ldconfig
python=${PYTHON:-python3.11}
command -v "$python" >/dev/null || python=python3
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || {
    echo "error: vlarl's lock files are for Python 3.11; set PYTHON to such an interpreter" >&2
    exit 1
}

# Software rendering for MuJoCo, and what OpenCV's wheel links to.
libraries_missing() {
    local known library
    known=$(ldconfig -p)
    for library in libOSMesa.so libGL.so.1 libgthread-2.0.so.0; do
        [[ $known == *"$library"* ]] || return 0
    done
    return 1
}
if libraries_missing; then
    root=""
    [ "$(id -u)" = 0 ] || root=sudo
    echo "installing system libraries (libosmesa6, libgl1, libegl1, libglib2.0-0)"
    $root apt-get update -qq
    $root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        libosmesa6 libgl1 libegl1 libglib2.0-0 >/dev/null
fi

# install FOLDER LOCK...: a virtual environment that holds exactly these lock files, and vlarl.
install() {
    local folder=$1 stamp
    shift
    stamp=$(cat "$@" pyproject.toml | sha256sum | cut -c1-16)
    [ "$(cat "$folder/.stamp" 2>/dev/null)" = "$stamp" ] && return
    echo "setting up $folder from $* (some minutes)"
    "$python" -m venv "$folder"
    requirements/install.sh "$folder/bin/python" "$@"
    "$folder/bin/python" -m pip --quiet --disable-pip-version-check \
        install --no-deps --no-build-isolation -e . 2> >(grep -v 'is ignored' >&2 || true)
    echo "$stamp" >"$folder/.stamp"
}
# Side by side, as pip works on one core.
set -m  # or a job in the background would be deaf to Ctrl-C
install .venv-sim requirements/sim.txt requirements/test.txt &
simulator=$!
set +m
trap 'kill -INT -- -$simulator 2>/dev/null; wait' EXIT
install .venv requirements/torch-cpu.txt requirements/wandb.txt requirements/test.txt requirements/dev.txt
wait $simulator
trap - EXIT

# Prometheus and promtool judge deploy/prometheus in the tests; unpacked, not installed: no daemon of
# the system's is to start. Where Debian's package can't be had, these tests are skipped.
bring_prometheus() {
    local folder
    folder=$(mktemp -d)
    (cd "$folder" && apt-get download -qq prometheus && dpkg-deb -x prometheus_*.deb .) \
        >/dev/null 2>&1 && cp "$folder"/usr/bin/prom* .venv/bin/
    rm -rf "$folder"
}
if ! [ -x .venv/bin/promtool ] && ! command -v promtool >/dev/null; then
    bring_prometheus || echo "no promtool here (apt-get install prometheus): its tests are skipped"
fi
echo "environments are ready"
