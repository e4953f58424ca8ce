#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Build the container image `lossd` with whatever is here: docker, podman or buildah.
#
# With buildah neither an engine nor an image registry is needed: when the base image cannot be pulled, it is made from
# Debian's packages, with mmdebstrap and the mirror of this machine's apt sources, under the name the Dockerfile has.
set -eu
cd "$(dirname "$0")/.."
tag=${1:-lossd}

for engine in docker podman; do
    if command -v "$engine" >/dev/null && "$engine" info >/dev/null 2>&1; then
        exec "$engine" build -t "$tag" .
    fi
done
command -v buildah >/dev/null || {
    echo "neither docker, podman nor buildah works here; on Debian: apt-get install buildah mmdebstrap" >&2
    exit 1
}

if [ "$(id -u)" = 0 ]; then
    # As root in a plain container: no overlay mounts, no user namespaces.
    export STORAGE_DRIVER="${STORAGE_DRIVER:-vfs}" BUILDAH_ISOLATION="${BUILDAH_ISOLATION:-chroot}"
fi

base=$(awk '$1 == "FROM" { print $2; exit }' Dockerfile)
suite=${base##*:}
suite=${suite%-slim}

if ! buildah inspect --type image "$base" >/dev/null 2>&1 && ! buildah pull -q "$base" >/dev/null 2>&1; then
    command -v mmdebstrap >/dev/null || {
        echo "$base cannot be pulled, and mmdebstrap is not here to make it" >&2
        exit 1
    }
    mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null |
        grep -v '^[[:space:]]*#' | tr -s '[:space:]' '\n' | grep -E '^https?://.*/debian/?$' | head -n 1)
    [ -n "$mirror" ] || {
        echo "no Debian mirror in this machine's apt sources" >&2
        exit 1
    }
    echo "making $base from $mirror"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    mmdebstrap --quiet --variant=minbase "$suite" "$work/base.tar" "$mirror"
    container=$(buildah from scratch)
    buildah add -q "$container" "$work/base.tar" / >/dev/null
    buildah config --cmd /bin/bash "$container"
    buildah commit -q "$container" "$base" >/dev/null
    buildah rm "$container" >/dev/null
fi

buildah bud --pull=never --format docker -t "$tag" . # the docker format keeps HEALTHCHECK
echo "built $tag in buildah's store; for an engine elsewhere: buildah push $tag docker-archive:lossd.tar"
