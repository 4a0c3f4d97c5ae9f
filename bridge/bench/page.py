"""The tables of the docs' page of measurements, out of what the benchmarks answered.

    python -m bridge.bench.page DIRECTORY PAGE      fill the page from DIRECTORY/NAME.json
    python -m bridge.bench.page --machine FILE      write down what this machine is

A table stands between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``, a picture is drawn where
the page shows ``FOLDER/NAME.svg``. What has no file in DIRECTORY stays as it is.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from bridge import __version__
from bridge.bench.plots import Document, plot, read
from bridge.bus.server_binary import find_server
from bridge.errors import BridgeError

_PICTURE = re.compile(r"!\[[^]]*\]\((\S+)/(\S+)\.svg\)")
_BLOCK = re.compile(r"(<!-- begin (\S+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)
_MEGABYTE = 1 << 20


def machine() -> dict[str, object]:
    """What the figures depend on."""
    model = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    return {
        "processor": model.group(1) if model else platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_mb": int(memory.group(1)) // 1024 if memory else 0,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "nats_server": ".".join(map(str, find_server().version)),
        "mapbridge": __version__,
    }


def fill(page: str, directory: Path) -> tuple[str, list[str]]:
    """The page with its tables, and the names of those for which there was no file."""
    missing: list[str] = []

    def block(match: re.Match[str]) -> str:
        name = match.group(2)
        source = directory / f"{name}.json"
        if not source.is_file():
            missing.append(name)
            return match.group(0)
        return f"{match.group(1)}{TABLES[name.split('.')[0]](read(source))}{match.group(3)}"

    return _BLOCK.sub(block, page), missing


def draw(text: str, directory: Path, beside: Path) -> None:
    """The pictures that the page shows, into the folder where it looks for them."""
    for folder, name in _PICTURE.findall(text):
        source = directory / f"{name}.json"
        if source.is_file():
            (beside / folder).mkdir(exist_ok=True)
            plot(name.split(".")[0], source, beside / folder / f"{name}.svg")


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(_cell(cell) for cell in line)} |\n" for line in lines)


def _cell(cell: object) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        return str(cell)
    return (
        f"{cell:,}" if isinstance(cell, int) else f"{cell:,.3g}" if cell < 100 else f"{cell:,.0f}"
    )


def _machine(document: Document) -> str:
    kernel = re.split(r"[-+]", document["kernel"])[0]  # without whoever built it
    return (
        f"{document['processor']}, {document['cpus']} processors, "
        f"{document['memory_mb'] / 1024:.0f} GB of memory; Linux {kernel}, "
        f"Python {document['python']}, nats-server {document['nats_server']}, "
        f"mapbridge {document['mapbridge']}.\n"
    )


def _sync_rate(document: Document) -> str:
    rows = [document, *sorted(document["rates"], key=lambda rate: -float(rate["rate"] or 0))]
    columns = ["asked for", "changes/s", "missing", "dropped", "p50 ms", "p99 ms"]
    return _table(
        [*columns, "CPU of both bridges, us/change", "of the server"],
        [
            [
                f"{row['rate']:,.0f}/s" if row.get("rate") else "as fast as it goes",
                *(row[field] for field in ("changes_per_second", "missing", "dropped")),
                *(row[field] for field in ("p50_ms", "p99_ms")),
                float(row["cpu_us"]["publisher"] + row["cpu_us"]["replicas"]),
                row["cpu_us"]["server"],
            ]
            for row in rows
        ],
    )


def _late_join(document: Document) -> str:
    names = {
        "entries": "entries of the snapshot",
        "changes_per_second": "changes per second that go on",
        "seconds": "seconds until synced",
        "update_batch_seconds": "seconds of plain `BPF_MAP_UPDATE_BATCH`",
        "share": "share of that rate",
        "rss_mb": "most memory of the joining bridge, MB",
        "missing": "entries that differ at the end",
    }
    return _table(["figure", "value"], [[text, document[name]] for name, text in names.items()])


def _transports(document: Document) -> str:
    rows = sorted(document["transports"], key=lambda row: -float(row["changes_per_second"]))
    columns = ["", "changes/s", "missing", "CPU us/change", "mapbridge's speed against it"]
    return _table(
        [*columns, "its CPU against mapbridge's"],
        [
            [
                f"`{row['name']}`",
                row["changes_per_second"],
                row["missing"],
                float(row["cpu_us_ends"] + (row["cpu_us_broker"] or 0)),
                None if row["mapbridge_ratio"] is None else f"{row['mapbridge_ratio']:.1f} x",
                None if row["cpu_ratio"] is None else f"{row['cpu_ratio']:.1f} x",
            ]
            for row in rows
        ],
    )


def _sessions(document: Document) -> str:
    columns = ["", "sessions", "missing", "changes", "CPU of both daemons, us/change"]
    return _table(
        [*columns, "of the broker", "delay p50 ms", "p99 ms"],
        [
            [
                row["name"],
                *(row[field] for field in ("sessions", "missing", "changes", "cpu_us_per_change")),
                *(row[field] for field in ("cpu_us_per_change_broker", "delay_p50_ms")),
                row["delay_p99_ms"],
            ]
            for row in document["sessions"]
        ],
    )


def _connections(document: Document) -> str:
    columns = ["mode", "connections/s without", "with the bridge", "fewer", "more CPU"]
    return _table(
        [*columns, "more CPU, map not watched", "changes lost", "buffer"],
        [
            [
                row["mode"],
                row["bare_per_second"],
                row["watched_per_second"],
                f"{row['lost_percent']:.1f} %",
                _more(row["watched"], row["bare"]),
                None if row["unwatched"] is None else _more(row["unwatched"], row["bare"]),
                row["dropped"],
                f"{row['buffer_bytes'] / _MEGABYTE:.0f} MiB" if row["buffer_bytes"] else None,
            ]
            for row in document["connections"]
        ],
    )


def _more(cost: float, bare: float) -> str:
    return f"{100 * (cost / bare - 1):.1f} %"


def _updates(document: Document) -> str:
    rows = [row for row in document["costs"] if row["writer"] == "program"]
    return _table(
        ["mode", "key", "value", "bare ns", "unwatched", "watched"],
        [
            [
                *(row[field] for field in ("mode", "key_bytes", "value_bytes", "bare")),
                None if row["unwatched"] is None else f"x {row['unwatched'] / row['bare']:.2f}",
                f"x {row['watched'] / row['bare']:.2f}",
            ]
            for row in rows
        ],
    )


def _overhead(document: Document) -> str:
    tables = [_connections(document)] if document["connections"] else []
    tables += [_updates(document)] if document["costs"] else []
    return "\n".join(tables)


def _drops(document: Document) -> str:
    def series(rows: Sequence[Document], columns: Sequence[str], field: str) -> str:
        found = {(row["transport"], row[field]): row["dropped_percent"] for row in rows}
        keys = sorted({key for _, key in found})
        names = [f"{key >> 10:,} KiB" if field == "buffer_bytes" else str(key) for key in keys]
        return _table(
            [*columns, *names],
            [
                [
                    name,
                    *(f"{found[name, key]:.1f} %" if (name, key) in found else "-" for key in keys),
                ]
                for name in ("ring", "perf")
            ],
        )

    return "\n".join(
        [
            series(document["sizes"], ["one writer, buffer in all"], "buffer_bytes"),
            series(document["writers"], ["writers, one size"], "writers"),
        ]
    )


def _memory(document: Document) -> str:
    columns = ["entries of each map", "maps", "capture", "publishes, MB", "at most"]
    fields = ("entries", "maps", "capture", "publisher_rss_mb", "publisher_peak_mb")
    return _table(
        [*columns, "applies, MB", "at most"],
        [
            [row[field] for field in (*fields, "applier_rss_mb", "applier_peak_mb")]
            for row in (*document["entries"], *document["maps"])
        ],
    )


def _scan(document: Document) -> str:
    columns = ["entries", "changes/s", "plain walk", "bridge, sweep", "bridge, events"]
    return _table(
        columns,
        [
            [row["entries"], row["changes_per_second"], row["walk"], row["sweep"], row["events"]]
            for row in document["sizes"]
        ],
    )


def _codecs(document: Document) -> str:
    return _table(
        ["codec", "bytes", "encode us", "decode us"],
        [
            [f"`{row['name']}`", row["bytes_per_change"], row["encode_us"], row["decode_us"]]
            for row in document["codecs"]
        ],
    )


def _both(document: Document) -> str:
    tables = [_transports(document)]
    tables += [_sessions(document)] if document["sessions"] else []
    return "\n".join(tables)


TABLES: dict[str, Callable[[Document], str]] = {
    "machine": _machine,
    "sync-rate": _sync_rate,
    "late-join": _late_join,
    "transports": _both,
    "overhead": _overhead,
    "drops": _drops,
    "memory": _memory,
    "scan": _scan,
    "codecs": _codecs,
}


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 2:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    try:
        if arguments[0] == "--machine":
            Path(arguments[1]).write_text(json.dumps(machine()) + "\n", encoding="utf-8")
            return 0
        directory, page = map(Path, arguments)
        text, missing = fill(page.read_text(encoding="utf-8"), directory)
        page.write_text(text, encoding="utf-8")
        draw(text, directory, page.parent)
    except (BridgeError, OSError) as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    for name in missing:
        sys.stderr.write(f"{name}: no {directory}/{name}.json, the table stays as it was\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
