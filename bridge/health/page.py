"""The docs' page of metrics out of their table: ``python -m bridge.health.page [FILE]``."""

from __future__ import annotations

import sys
from pathlib import Path

from bridge.health.families import Spec
from bridge.health.metrics import SPECS

_HEAD = """\
# Metrics

Served at `/metrics` of the daemon where [`[http] listen`](health.md) is set. Written by
`make pages`.

Every name begins with `mapbridge_`. Counters end in `_total` and begin anew with the process, those
of a map with each map that takes its place. Seconds and bytes are the only units. No label ever
holds a key of a map, so that the number of series follows from the configuration. `map` is the
map's name in the stream; the inbox, which all maps share, has an empty one.

| metric | type | labels | meaning |
|---|---|---|---|
"""
_TAIL = """
Beside these, `process_resident_memory_bytes`, `process_cpu_seconds_total`, `process_open_fds` and
others of the process, as Prometheus clients name them.

Metrics out of the *entries* of maps are another matter: see
[`mapbridge export`](commands.md#mapbridge-export).
"""


def render() -> str:
    return _HEAD + "".join(_row(spec) for spec in SPECS) + _TAIL


def _row(spec: Spec) -> str:
    labels = ", ".join(f"`{label}`" for label in spec.labels) or "none"
    return f"| `{spec.full_name}` | {spec.kind} | {labels} | {spec.help} |\n"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(render(), encoding="utf-8")
    else:
        sys.stdout.write(render())
