# The bridge on Debian, because BCC comes with the distribution: compiled against its LLVM, with
# Python bindings for its Python.
#
#   make image                            build it, with docker or podman, and look whether it works
#   docker build -t mapbridge .           the same by hand
#   docker build --target example -t mapbridge-example .
#
# The daemon runs as root, because maps, probes and tracefs belong to root; of root's capabilities it
# needs those in docker-compose.yml. Commands that only read the stream (watch, feed, export,
# status --nodes) need none and run as any user.
#
# The probes are compiled at start against the host's kernel headers, so the host's /lib/modules and
# /usr/src are mounted (see docker-compose.yml). Without them, and without privileges, the bridge
# still sweeps maps that are pinned below a mounted /sys/fs/bpf.
ARG BASE=docker.io/library/debian:bookworm-slim

FROM ${BASE} AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv ca-certificates \
    && apt-get clean && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY LICENSES LICENSES
COPY scripts scripts
COPY bridge bridge
COPY bpf bpf
COPY schemas schemas
COPY deploy/keepalived deploy/keepalived
COPY benchmarks benchmarks
RUN python3 -m venv /build \
    && /build/bin/pip install --no-cache-dir -q build \
    && /build/bin/python -m build --wheel --outdir /wheel .
# --system-site-packages: BCC's bindings belong to the distribution's Python. The environment has no
# pip of its own, and numpy leaves its tests here.
RUN python3 -m venv --system-site-packages --without-pip /opt/mapbridge \
    && /build/bin/pip --python /opt/mapbridge/bin/python install --no-cache-dir -q \
        "$(echo /wheel/*.whl)[embedded]" \
    && find /opt/mapbridge/lib -path '*/numpy/*' -type d -name tests -prune -exec rm -r {} +

FROM ${BASE} AS bridge
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-bpfcc ca-certificates kmod \
    && apt-get clean && rm -rf /var/lib/apt/lists/* /var/cache/debconf/*-old /var/log/*
COPY --from=build /opt/mapbridge /opt/mapbridge
RUN ln -s /opt/mapbridge/bin/mapbridge /usr/local/bin/mapbridge \
    && mapbridge --version \
    && /opt/mapbridge/bin/python -c 'from bcc import BPF'
LABEL org.opencontainers.image.title="mapbridge" \
      org.opencontainers.image.description="Change data capture and multi-node replication of eBPF maps over NATS JetStream" \
      org.opencontainers.image.licenses="Apache-2.0 AND (GPL-2.0-only OR Apache-2.0)"
VOLUME /var/lib/mapbridge
# Where the configuration file is another one, MAPBRIDGE_CONFIG tells both the daemon and this.
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s --retries=3 \
    CMD ["mapbridge", "status", "--alive"]
# A SIGTERM lets everything captured go out first.
STOPSIGNAL SIGTERM
ENTRYPOINT ["mapbridge"]
CMD ["run"]

# The connection tracker with traffic of its own, to see something move: docker-compose.yml.
FROM bridge AS example
RUN apt-get update \
    && apt-get install -y --no-install-recommends clang bpftool iproute2 libbpf-dev libc6-dev \
    && apt-get clean && rm -rf /var/lib/apt/lists/*
COPY deploy/compose/conntrack.py /opt/mapbridge/
HEALTHCHECK NONE
ENTRYPOINT ["/opt/mapbridge/bin/python", "-u", "/opt/mapbridge/conntrack.py"]
CMD []

# What a build without --target makes.
FROM bridge
