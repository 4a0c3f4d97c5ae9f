"""A picture of each benchmark's JSON, by matplotlib.

Every function takes the figure and the document that ``mapbridge bench NAME --json`` prints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from bridge.errors import BridgeError, UnavailableError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Document = Mapping[str, Any]
OURS = "#1f6f8b"
OTHERS = "#b9c4c9"
SERIES = ("#1f6f8b", "#d1803b", "#5a8f4e", "#8a5fa8")
SIZE_INCHES = (8.0, 4.2)
DPI = 110
HINT = "pip install 'mapbridge[bench]'"


class PlotError(BridgeError):
    """A file that is no answer of a benchmark."""


def plot(name: str, source: Path, target: Path) -> None:
    """Draw the answer in ``source`` of the benchmark ``name`` into ``target`` (.svg, .png).

    Raises ``UnavailableError`` without matplotlib, ``PlotError``.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UnavailableError("plots: matplotlib is not installed", hint=HINT) from error
    mpl.rcParams.update({"svg.hashsalt": "mapbridge", "svg.fonttype": "none", "font.size": 9})
    document = read(source)
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    try:
        DRAWINGS[name](figure, document)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise PlotError(
            f"{source}: not what `mapbridge bench {name} --json` prints (got {error!r})",
            hint="measure again with this version",
        ) from error
    metadata = {"Date": None} if target.suffix == ".svg" else None
    figure.savefig(target, dpi=DPI, metadata=metadata)


def read(source: Path) -> Document:
    """The last line of a file, as JSON: what a command printed."""
    try:
        document = orjson.loads(source.read_bytes().strip().rpartition(b"\n")[2])
    except (OSError, orjson.JSONDecodeError) as error:
        raise PlotError(f"{source}: not readable as JSON (got {error})") from error
    if not isinstance(document, dict):
        raise PlotError(f"{source}: no JSON object (got {type(document).__name__})")
    return document


def sync_rate(figure: Figure, document: Document) -> None:
    rates = sorted(document["rates"], key=lambda rate: float(rate["rate"] or 0))
    rows = [*rates, document]
    labels = [f"{rate['rate']:,.0f}" for rate in rates] + ["saturated"]
    left, right = figure.subplots(1, 2)
    _bars(left, labels, [row["changes_per_second"] for row in rows], "changes/s, map to map")
    left.set_yscale("log")
    for field, colour in (("p50_ms", SERIES[0]), ("p99_ms", SERIES[1])):
        right.plot(labels, [row[field] for row in rows], "o-", color=colour, label=field[:3])
    right.set_yscale("log")
    right.set_title("milliseconds from write to write")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.set_xlabel("changes/s asked for")
        axes.tick_params(axis="x", rotation=30)


def late_join(figure: Figure, document: Document) -> None:
    axes = figure.subplots()
    names = ["plain batch update", "until loaded", "until synced"]
    fields = ("update_batch_seconds", "load_seconds", "seconds")
    _across(axes, names, [document[field] for field in fields], "{:.2f} s")
    axes.set_title(
        f"a node joins a map of {document['entries']:,} entries while "
        f"{document['changes_per_second']:,} changes/s go on"
    )
    axes.set_xlabel("seconds")


def drops(figure: Figure, document: Document) -> None:
    left, right = figure.subplots(1, 2, sharey=True)
    for transport, colour in (("ring", SERIES[0]), ("perf", SERIES[1])):
        sizes = [row for row in document["sizes"] if row["transport"] == transport]
        left.plot(
            [row["buffer_bytes"] / 1024 for row in sizes],
            [row["dropped_percent"] for row in sizes],
            "o-",
            color=colour,
            label=transport,
        )
        writers = [row for row in document["writers"] if row["transport"] == transport]
        right.plot(
            [row["writers"] for row in writers],
            [row["dropped_percent"] for row in writers],
            "o-",
            color=colour,
        )
    left.set_xscale("log", base=2)
    left.set_xlabel("KiB of buffer in all, one writer")
    left.set_ylabel("% dropped")
    left.legend(frameon=False)
    right.set_xlabel(f"writers, {document['writers'][0]['buffer_bytes'] >> 10:,} KiB of buffer")
    figure.suptitle(f"changes that found no room, {document['rate']:,} changes/s asked for")


def overhead(figure: Figure, document: Document) -> None:
    costs = [cost for cost in document["costs"] if cost["writer"] == "program"]
    connections = document["connections"]
    if costs and connections:
        left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    else:
        left = right = figure.subplots()
    if costs:
        labels = [f"{c['mode']}\n{c['key_bytes']}/{c['value_bytes']}" for c in costs]
        _grouped(
            left,
            labels,
            {
                "unwatched": [(c["unwatched"] or 0) / c["bare"] for c in costs],
                "watched": [c["watched"] / c["bare"] for c in costs],
            },
        )
        left.axhline(1, color="black", linewidth=0.7)
        left.set_title("an update by a program, against bare")
        left.tick_params(axis="x", labelsize=7)
    if connections:
        _grouped(
            right,
            [c["mode"] for c in connections],
            {
                "without": [c["bare_per_second"] for c in connections],
                "with the bridge": [c["watched_per_second"] for c in connections],
            },
        )
        right.set_title("TCP connections per second")


def codecs(figure: Figure, document: Document) -> None:
    axes = figure.subplots()
    rows = document["codecs"]
    _grouped(
        axes,
        [row["name"] for row in rows],
        {
            "encode": [row["encode_us"] for row in rows],
            "decode": [row["decode_us"] for row in rows],
        },
    )
    axes.set_yscale("log")
    axes.set_title("processor time per change, microseconds")


def transports(figure: Figure, document: Document) -> None:
    rows = sorted(document["transports"], key=lambda row: float(row["changes_per_second"]))
    left, right = figure.subplots(1, 2, sharey=True)
    names = [row["name"] for row in rows]
    _across(left, names, [row["changes_per_second"] for row in rows], "{:,.0f}")
    left.set_title("changes/s into the other map")
    costs = [row["cpu_us_ends"] + (row["cpu_us_broker"] or 0) for row in rows]
    _across(right, names, costs, "{:,.1f}")
    right.set_title("us of processor time per change")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.margins(x=0.25)


def memory(figure: Figure, document: Document) -> None:
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, series, field in (
        (left, document["entries"], "entries"),
        (right, document["maps"], "maps"),
    ):
        lines: dict[str, list[tuple[float, float]]] = {}
        for row in series:
            for who in ("publisher", "applier"):
                name = f"publishes ({row['capture']})" if who == "publisher" else "applies"
                lines.setdefault(name, []).append((row[field], row[f"{who}_peak_mb"]))
        for name, points in sorted(lines.items()):
            known = {"applies": SERIES[0], "publishes (emit)": SERIES[1]}
            where, held = zip(*sorted(points), strict=True)
            axes.plot(where, held, "o-", color=known.get(name, SERIES[2]), label=name)
        axes.set_xscale("log")
        axes.set_xlabel(field if field == "entries" else "maps of 1,000 entries")
    left.set_ylim(bottom=0)
    left.set_ylabel("MB at most")
    left.legend(frameon=False)
    figure.suptitle("resident memory of a bridge")


def scan(figure: Figure, document: Document) -> None:
    axes = figure.subplots()
    rows = document["sizes"]
    names = {"walk": "plain walk", "sweep": "bridge, sweep", "events": "bridge, events"}
    for (field, label), colour in zip(names.items(), SERIES, strict=False):
        axes.plot(
            [row["entries"] for row in rows],
            [row[field] for row in rows],
            "o-",
            color=colour,
            label=label,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("entries of the map")
    axes.set_ylabel("processor seconds per second")
    axes.legend(frameon=False)
    axes.set_title(
        f"to know of {rows[0]['changes_per_second']:,} changes/s, "
        f"read every {document['interval_seconds']:g} s or told"
    )


DRAWINGS: dict[str, Callable[[Figure, Document], None]] = {
    "sync-rate": sync_rate,
    "late-join": late_join,
    "drops": drops,
    "overhead": overhead,
    "codecs": codecs,
    "transports": transports,
    "memory": memory,
    "scan": scan,
}


def _bars(axes: Axes, labels: Sequence[str], values: Sequence[float], title: str) -> None:
    axes.bar(labels, values, color=OURS)
    axes.set_title(title)


def _across(axes: Axes, names: Sequence[str], values: Sequence[float], form: str) -> None:
    """Bars from left to right, what is mapbridge's in its colour."""
    colours = [OURS if name in {"mapbridge", "until synced"} else OTHERS for name in names]
    bars = axes.barh(names, values, color=colours)
    axes.bar_label(bars, [form.format(value) for value in values], padding=3, fontsize=8)
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)


def _grouped(axes: Axes, labels: Sequence[str], series: Mapping[str, Sequence[float]]) -> None:
    """Bars side by side, a group for each label."""
    width = 0.8 / len(series)
    for number, (name, values) in enumerate(series.items()):
        at = [i + number * width for i in range(len(labels))]
        axes.bar(at, values, width, color=SERIES[number], label=name)
    axes.set_xticks([i + 0.4 - width / 2 for i in range(len(labels))], labels)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
