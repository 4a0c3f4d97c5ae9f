"""``mapbridge bench``: measurements of this machine, to size a deployment."""

from __future__ import annotations

import mmap
from dataclasses import asdict

import click

from bridge.bench.drops import BUFFER_BYTES, RATE, SIZES, WRITERS, Drops, measure_drops
from bridge.bench.late_join import LateJoin
from bridge.bench.overhead import Cost, Overhead
from bridge.bench.sync_rate import Rate, SyncRate
from bridge.cli import output
from bridge.cli.output import json_option
from bridge.config.units import format_size, parse_size

RATE_MAX = 10_000_000
ENTRIES_MAX = 50_000_000
WRITERS_MAX = 64  # CHURN_WRITERS
BUFFER_BYTES_MAX = 1 << 30
_DROPS_COLUMNS = (
    *("transport", "buffer", "writers", "changes/s", "dropped", "dropped %"),
    *("unaccounted", "reader us/change"),
)


def _bytes(_: click.Context, __: click.Parameter, value: str | tuple[str, ...]) -> object:
    """Sizes with their units, of buffers that can be made."""
    return _size(value) if isinstance(value, str) else tuple(_size(text) for text in value)


def _size(text: str) -> int:
    try:
        size = parse_size(text)
    except ValueError as error:
        raise click.BadParameter(f"{error} (got {text!r})") from error
    if size & (size - 1) or not mmap.PAGESIZE <= size <= BUFFER_BYTES_MAX:
        limits = f"{format_size(mmap.PAGESIZE)} to {format_size(BUFFER_BYTES_MAX)}"
        raise click.BadParameter(f"must be a power of two, {limits} (got {text!r})")
    return size


@click.group("bench")
def command() -> None:
    """Measure this machine. Needs root; removes everything it makes."""


@command.command("sync-rate")
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, 3600),
    default=10.0,
    show_default=True,
    help="How long to change the map, per rate.",
)
@click.option(
    "--rate",
    "rates",
    type=click.IntRange(1, RATE_MAX),
    multiple=True,
    help="Also at this many changes per second (repeatable).",
)
@json_option
def sync_rate(seconds: float, rates: tuple[int, ...], as_json: bool) -> None:
    """Changes per second from map to map, first as fast as it goes.

    A BPF program changes a map (16-byte keys, 24-byte values) and emits each change; two bridges
    and a nats-server on this machine carry them into a second map; both maps are compared.

    \b
    Examples:
      mapbridge bench sync-rate
      mapbridge bench sync-rate --seconds 30 --rate 100000 --rate 500000 --json
    """
    results = SyncRate(seconds, lambda text: click.echo(text, err=True), (None, *rates)).run()
    if as_json:
        saturated, *fixed = (asdict(result) for result in results)
        output.print_json({**saturated, "rates": fixed})
        return
    output.print_table(
        ["rate", "changes/s", "missing", "dropped", "p50 ms", "p99 ms", "CPU us/change"],
        [_row(result) for result in results],
    )


@command.command("drops")
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, 3600),
    default=2.0,
    show_default=True,
    help="How long to change the map, per measurement.",
)
@click.option(
    "--rate",
    type=click.IntRange(1, RATE_MAX),
    default=RATE,
    show_default=True,
    help="Changes per second of all writers together.",
)
@click.option(
    "--size",
    "sizes",
    metavar="SIZE",
    callback=_bytes,
    multiple=True,
    help="Buffer of all CPUs together, a power of two such as 512KiB (repeatable).",
)
@click.option(
    "--writers",
    type=click.IntRange(1, WRITERS_MAX),
    multiple=True,
    help="Threads that write (repeatable).",
)
@click.option(
    "--buffer",
    metavar="SIZE",
    callback=_bytes,
    default=format_size(BUFFER_BYTES),
    show_default=True,
    help="The buffer while the number of writers varies.",
)
@json_option
def drops(
    seconds: float,
    rate: int,
    sizes: tuple[int, ...],
    writers: tuple[int, ...],
    buffer: int,
    as_json: bool,
) -> None:
    """Changes that find no room on their way to the reader: ring buffer against perf buffers.

    A BPF program changes a map and sends each change; the bridge's own reader decodes them and
    throws them away. First with buffers of several sizes and one writer, then with several writers.

    \b
    Examples:
      mapbridge bench drops
      mapbridge bench drops --size 64KiB --size 16MiB --writers 4 --seconds 10 --json
    """
    report = measure_drops(
        seconds,
        lambda text: click.echo(text, err=True),
        rate=rate,
        sizes=sizes or SIZES,
        writers=writers or WRITERS,
        buffer_bytes=buffer,
    )
    if as_json:
        output.print_json(report)
        return
    output.print_table(_DROPS_COLUMNS, map(_drops_row, report.sizes))
    output.line()
    output.print_table(_DROPS_COLUMNS, map(_drops_row, report.writers))


def _drops_row(result: Drops) -> list[object]:
    return [
        result.transport,
        format_size(result.buffer_bytes),
        result.writers,
        f"{result.changes_per_second:,.0f}",
        f"{result.dropped:,}",
        f"{result.dropped_percent:.2f}",
        result.unaccounted,
        f"{result.reader_cpu_us_per_change:.2f}",
    ]


@command.command("codecs")
@click.option(
    "--changes",
    type=click.IntRange(1_000, 10_000_000),
    default=200_000,
    show_default=True,
    help="How many changes each codec encodes and decodes.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1, 100),
    default=3,
    show_default=True,
    help="How often; the best round counts.",
)
@json_option
def codecs(changes: int, rounds: int, as_json: bool) -> None:
    """Ways to write changes for readers, side by side: processor time to encode and decode.

    The changes are those of a connection tracker (40-byte keys, 40-byte values, 15 fields). Needs
    no privileges and no broker.

    \b
    Examples:
      mapbridge bench codecs
      mapbridge bench codecs --changes 1000000 --json
    """
    from bridge.bench.codecs import measure

    results = measure(changes, rounds)
    if as_json:
        output.print_json({"changes": changes, "codecs": results})
        return
    output.print_table(
        ["codec", "bytes", "encode us", "decode us", "encode/s", "decode/s"],
        [
            [
                each.name,
                f"{each.bytes_per_change:.1f}",
                f"{each.encode_us:.2f}",
                f"{each.decode_us:.2f}",
                f"{1e6 / each.encode_us:,.0f}",
                f"{1e6 / each.decode_us:,.0f}",
            ]
            for each in results
        ],
    )


@command.command("late-join")
@click.option(
    "--entries",
    type=click.IntRange(1_000, ENTRIES_MAX),
    default=1_000_000,
    show_default=True,
    help="How many entries the map holds.",
)
@click.option(
    "--rate",
    type=click.IntRange(0, RATE_MAX),
    default=50_000,
    show_default=True,
    help="Changes per second that go on meanwhile.",
)
@json_option
def late_join(entries: int, rate: int, as_json: bool) -> None:
    """Seconds until a node that starts late holds a map that goes on changing.

    The map (16-byte keys, 24-byte values) is on one node; its snapshot is taken while a program
    changes it; then another node starts, loads the snapshot and reads on. For comparison the same
    entries are written into an empty map by plain BPF_MAP_UPDATE_BATCH, meanwhile too.

    \b
    Examples:
      mapbridge bench late-join
      mapbridge bench late-join --entries 100000 --json
    """
    result = LateJoin(entries, rate, lambda text: click.echo(text, err=True)).run()
    if as_json:
        output.print_json(asdict(result))
        return
    output.print_table(["measured", "value"], list(asdict(result).items()))


def _row(result: Rate) -> list[object]:
    return [
        "saturated" if result.rate is None else f"{result.rate:,.0f}",
        f"{result.changes_per_second:,.0f}",
        result.missing,
        result.dropped,
        result.p50_ms,
        result.p99_ms,
        result.cpu_us_per_change,
    ]


@command.command("overhead")
@click.option(
    "--rounds",
    type=click.IntRange(1, 100),
    default=5,
    show_default=True,
    help="How often each variant is measured; each round attaches all probes anew.",
)
@click.option(
    "--repeat",
    type=click.IntRange(1024, 1_000_000),
    default=50_021,
    show_default=True,
    help="Updates of one measurement.",
)
@json_option
def overhead(rounds: int, repeat: int, as_json: bool) -> None:
    """What capture costs the writer of a map: with no probes, unwatched, and watched.

    A BPF program, single system calls and batches of them update hash maps of three sizes while
    each mode of capture that this kernel has is attached; the emit header is measured too. Ratios
    of one run hold; times move with whatever else the machine does.

    \b
    Examples:
      mapbridge bench overhead
      mapbridge bench overhead --rounds 3 --repeat 20011 --json
    """
    found = Overhead(lambda text: click.echo(text, err=True), rounds=rounds, repeat=repeat).run()
    if as_json:
        costs = [asdict(cost) for cost in found.costs]
        output.print_json({"costs": costs, "unavailable": found.unavailable})
        return
    output.print_table(
        ["mode", "writer", "key", "value", "bare ns", "unwatched", "watched", "lost"],
        [_cost_row(cost) for cost in found.costs],
    )
    for mode, reason in found.unavailable.items():
        click.echo(f"{mode}: not measured: {reason}")


def _cost_row(cost: Cost) -> list[object]:
    unwatched = "-" if cost.unwatched is None else f"x{cost.unwatched / cost.bare:.2f}"
    return [
        cost.mode,
        cost.writer,
        cost.key_bytes,
        cost.value_bytes,
        f"{cost.bare:,.0f}",
        unwatched,
        f"x{cost.watched / cost.bare:.2f}",
        cost.lost,
    ]
