#!/usr/bin/env bash
# install.sh PYTHON LOCK...: puts exactly what the lock files name into PYTHON's environment.
#
# The lock files are complete, so nothing is resolved: pip's own choice would bring gigabytes of
# CUDA, some of which breaks vLLM's CPU build. torch's CPU build lies outside pip's default index:
# TORCH_INDEX=URL (or pip's own configuration) says where. Without one, the default build serves.
set -euo pipefail
python=$1
shift
pip=("$python" -m pip --quiet --disable-pip-version-check)
quiet() { "$@" 2> >(grep -v 'is ignored: it is neither' >&2 || true); }

torch=$(cat "$@" | grep '^torch==' || true)
if [ -n "$torch" ] &&
    ! "${pip[@]}" install --no-deps ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} "$torch" 2>/dev/null; then
    echo "no CPU build of torch in the configured indexes; taking the default build" >&2
    quiet "${pip[@]}" install "${torch%+cpu}"
fi
others=$(mktemp)
cat "$@" | grep -v '^torch==' >"$others"
quiet "${pip[@]}" install --no-deps -r "$others"
rm -f "$others"
