"""``mapbridge bench drops``."""

from __future__ import annotations

import mmap

import click

from bridge.bench.drops import BUFFER_BYTES, RATE, SIZES, WRITERS, Drops, measure_drops
from bridge.cli import output
from bridge.cli.options import RATE_MAX
from bridge.cli.output import json_option
from bridge.config.units import format_size, parse_size

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


@click.command("drops")
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
