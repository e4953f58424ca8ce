#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Build the container image `lossd` with whatever is here: docker, podman or buildah. BASE is the image to start from, if
# not the Dockerfile's. With SOURCE_DATE_EPOCH everything in it has that date: the same sources and packages make the same
# image with podman and buildah; docker needs BuildKit's rewrite-timestamp for it.
#
# With buildah neither an engine nor an image registry is needed: when the base image cannot be pulled, it is made from
# Debian's packages, with mmdebstrap and the mirror of this machine's apt sources, under the name the Dockerfile has.
set -eu
cd "$(dirname "$0")/.."
tag=${1:-lossd}
base=${BASE:-$(sed -n 's/^ARG BASE=//p' Dockerfile)}
epoch=${SOURCE_DATE_EPOCH:-}
set -- --build-arg BASE="$base" ${epoch:+--build-arg SOURCE_DATE_EPOCH="$epoch"}

for engine in docker podman; do
    if command -v "$engine" >/dev/null && "$engine" info >/dev/null 2>&1; then
        [ "$engine" = docker ] || set -- "$@" ${epoch:+--timestamp="$epoch"}
        exec "$engine" build "$@" -t "$tag" .
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

suite=${base##*:}
suite=${suite%-slim}

# Addresses of this machine's apt sources that end in NAME.
mirrors() {
    cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null |
        grep -v '^[[:space:]]*#' | tr -s '[:space:]' '\n' | grep -E "^https?://.*/$1/?\$" | head -n 1
}

if ! buildah inspect --type image "$base" >/dev/null 2>&1 && ! buildah pull -q "$base" >/dev/null 2>&1; then
    case "$base" in *@*) echo "$base cannot be pulled" >&2 && exit 1 ;; esac
    command -v mmdebstrap >/dev/null || {
        echo "$base cannot be pulled, and mmdebstrap is not here to make it" >&2
        exit 1
    }
    mirror=$(mirrors debian)
    security=$(mirrors debian-security)
    if [ -z "$mirror" ] || [ -z "$security" ]; then
        echo "this machine's apt sources have no mirror of debian and debian-security to make $base from" >&2
        exit 1
    fi
    echo "making $base from $mirror and $security"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    mmdebstrap --quiet --variant=minbase "$suite" "$work/base.tar" \
        "deb $mirror $suite main" "deb $mirror $suite-updates main" "deb $security $suite-security main"
    container=$(buildah from scratch)
    buildah add -q "$container" "$work/base.tar" / >/dev/null
    buildah config --cmd /bin/bash "$container"
    buildah commit -q ${epoch:+--timestamp="$epoch"} "$container" "$base" >/dev/null
    buildah rm "$container" >/dev/null
fi

# The docker format keeps HEALTHCHECK.
buildah bud --pull=never --format docker "$@" ${epoch:+--timestamp="$epoch"} -t "$tag" .
echo "built $tag in buildah's store; for an engine elsewhere: buildah push $tag docker-archive:lossd.tar"
