#!/usr/bin/env bash
# local-engine.sh FOLDER: a Docker engine without a network, and images that it can't pull, for
# tests/e2e/test_compose_engine.py on a Debian machine where no engine runs. As root; ten minutes
# and 15 GB. The engine has a mount and a network namespace of its own, so the machine's bridges and
# firewall stay as they are. It runs until its process is ended; then remove FOLDER.
#
#     apt-get install mmdebstrap iptables tini
#     scripts/local-engine.sh /var/tmp/engine &
#     source /var/tmp/engine/environment    # once it is there
#     .venv/bin/python -m pytest tests/e2e/test_compose_engine.py
#
# Python is Debian's 3.11; what pip would download lies in the base image. Redis stands in for
# Valkey; both images' commands have Valkey's names.
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$(dirname "$0")/.."
pip=(.venv/bin/python -m pip --quiet)
mirror=${MIRROR:-http://deb.debian.org/debian}

mkdir -p "$folder"/{debs,root,data,exec,python/wheels,valkey,prometheus}
(cd "$folder/debs" && apt-get download docker.io containerd runc busybox-static)
for one in "$folder"/debs/*.deb; do dpkg -x "$one" "$folder/root"; done
ln -sf /usr/bin/tini-static "$folder/root/usr/bin/docker-init"

for lock in torch-cpu sim reward wandb; do
    "${pip[@]}" download --no-deps -d "$folder/python/wheels" -r "requirements/$lock.txt"
done
"${pip[@]}" download --no-deps -d "$folder/python/wheels" setuptools wheel
libraries=libnuma1,libosmesa6,libgl1,libegl1,libglib2.0-0,libgomp1
mmdebstrap --variant=minbase --include="python3.11-venv,python3-venv,ca-certificates,$libraries" \
    bookworm "$folder/python.tar" "$mirror"
mmdebstrap --variant=minbase --include=redis-server,redis-tools bookworm "$folder/valkey.tar" "$mirror"
mmdebstrap --variant=minbase --include=prometheus bookworm "$folder/prometheus.tar" "$mirror"

cat >"$folder/python/Dockerfile" <<'END'
FROM local/python-bare
# apt finds the packages there already and needs no index.
RUN ln -s /usr/bin/python3.11 /usr/local/bin/python \
    && rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*
COPY wheels /wheels
ENV PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
END
cat >"$folder/valkey/Dockerfile" <<'END'
FROM local/valkey-bare
RUN ln -s /usr/bin/redis-server /usr/local/bin/valkey-server \
    && ln -s /usr/bin/redis-cli /usr/local/bin/valkey-cli && install -d -o 999 -g 1000 /data
ENV PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
END
cp "$folder/root/bin/busybox" "$folder/prometheus/wget"
cat >"$folder/prometheus/Dockerfile" <<'END'
FROM local/prometheus-bare
COPY wget /usr/local/bin/wget
RUN install -d -m 777 /prometheus
ENV PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
USER 65534:65534
ENTRYPOINT ["/usr/bin/prometheus"]
END

export PATH=$folder/root/usr/bin:$folder/root/usr/sbin:$PATH DOCKER_BUILDKIT=0
export DOCKER_HOST=unix://$folder/docker.sock
# shellcheck disable=SC2016 # the inner shell's variables
unshare --mount --net sh -c 'ip link set lo up
    exec dockerd --data-root "$0/data" --exec-root "$0/exec" --pidfile "$0/docker.pid" \
        -H "$DOCKER_HOST"' "$folder" &>"$folder/engine.log" &
engine=$!
trap 'kill $engine; wait' EXIT
until docker info &>/dev/null; do kill -0 $engine && sleep 1; done
for image in python valkey prometheus; do
    docker import "$folder/$image.tar" "local/$image-bare" >/dev/null
    rm "$folder/$image.tar"
    docker build --quiet -t "local/$image" "$folder/$image" >/dev/null
done
cat >"$folder/environment" <<END
export DOCKER_HOST=$DOCKER_HOST DOCKER_BUILDKIT=0
export PYTHON_IMAGE=local/python VALKEY_IMAGE=local/valkey PROMETHEUS_IMAGE=local/prometheus
END
echo "the engine is ready; source $folder/environment"
wait $engine
