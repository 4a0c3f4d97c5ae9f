# The bridge on Debian, because BCC comes with the distribution: compiled against its LLVM, with
# Python bindings for its Python.
#
#   docker build -t mapbridge .
#
# The probes are compiled at start against the host's kernel headers, so the host's /lib/modules and
# /usr/src are mounted (see docker-compose.yml). Without them, and without privileges, the bridge
# still sweeps maps that are pinned below a mounted /sys/fs/bpf.
ARG BASE=docker.io/library/debian:bookworm-slim

FROM ${BASE} AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv ca-certificates \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY LICENSES LICENSES
COPY bridge bridge
COPY bpf bpf
COPY schemas schemas
COPY scripts scripts
RUN python3 -m venv /build \
    && /build/bin/pip install --no-cache-dir -q build \
    && /build/bin/python -m build --wheel --outdir /wheel .

FROM ${BASE}
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        python3 python3-venv python3-bpfcc ca-certificates kmod \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /wheel /wheel
# --system-site-packages: BCC's bindings belong to the distribution's Python.
RUN python3 -m venv --system-site-packages /opt/mapbridge \
    && /opt/mapbridge/bin/pip install --no-cache-dir -q \
        "$(echo /wheel/*.whl)[embedded]" \
    && rm -rf /wheel \
    && ln -s /opt/mapbridge/bin/mapbridge /usr/local/bin/mapbridge \
    && mapbridge --version \
    && /opt/mapbridge/bin/python -c 'from bcc import BPF'
VOLUME /var/lib/mapbridge
HEALTHCHECK --interval=30s --timeout=5s --retries=3 CMD ["mapbridge", "--version"]
# A SIGTERM lets everything captured go out first.
STOPSIGNAL SIGTERM
ENTRYPOINT ["mapbridge"]
CMD ["run"]
