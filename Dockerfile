# SPDX-License-Identifier: Apache-2.0
# make docker    (docker, podman or buildah, with or without a registry: deploy/build-image.sh)
# docker run -p 127.0.0.1:8080:8080 -v lossd:/data -e LOSSD_ALLOW_ANONYMOUS=1 lossd
#
# The first stage compiles and runs every test; the second holds the binary and its five libraries. What clients register
# and record is kept in /data; everything else may be read-only. There is no nvcc here, so the daemon is built for the
# CPU only; g++ is for the tests, whose emulated device runs the kernels all the same.
#
# BASE is a tag, which moves. A release names what it was made from: make docker BASE=docker.io/library/debian@sha256:...

ARG BASE=docker.io/library/debian:trixie-slim
FROM ${BASE} AS build
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        curl g++ gcc libc6-dev make pkg-config libgnutls28-dev libjansson-dev libjs-dygraphs libmicrohttpd-dev \
        libsqlite3-dev zlib1g-dev check chromium chromium-driver haproxy nginx openssl prometheus python3 \
        python3-jsonschema python3-numpy python3-requests python3-selenium python3-torch python3-yaml slowhttptest strace \
 && apt-get clean && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN make WERROR=1 && make test && make install DESTDIR=/stage

FROM ${BASE}
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get upgrade -y --no-install-recommends \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        libgnutls30t64 libjansson4 libmicrohttpd12t64 libsqlite3-0 zlib1g \
 && apt-get clean && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/* /var/cache/ldconfig/* \
        /var/log/apt /var/log/*.log \
 && install -d -o 65532 -g 65532 -m 750 /data
COPY --from=build /stage/usr/local/bin/lossd /usr/local/bin/lossd
COPY LICENSE /usr/share/doc/lossd/LICENSE
COPY --from=build /usr/share/doc/libjs-dygraphs/copyright /usr/share/doc/lossd/dygraphs.copyright
COPY deploy/sbom deploy/audit /usr/share/doc/lossd/
ARG SOURCE_DATE_EPOCH
RUN cd /usr/share/doc/lossd && ./sbom /usr/local/bin/lossd image >lossd.spdx.json

LABEL org.opencontainers.image.title="lossd" \
      org.opencontainers.image.description="Object detection losses over HTTP" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV LOSSD_LISTEN=0.0.0.0:8080 \
    LOSSD_DATA_DIR=/data
USER 65532:65532
WORKDIR /data
VOLUME /data
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s --retries=3 CMD ["lossd", "--healthcheck"]
ENTRYPOINT ["lossd"]
