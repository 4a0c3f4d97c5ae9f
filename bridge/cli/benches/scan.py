"""``mapbridge bench scan``."""

from __future__ import annotations

import click

from bridge.bench.scanning import ENTRIES, INTERVAL_SECONDS, RATE, Scanning, measure_scanning
from bridge.cli import output
from bridge.cli.options import RATE_MAX
from bridge.cli.output import json_option

ENTRIES_MAX = 50_000_000
_COLUMNS = ("entries", "changes/s", "walk", "sweep", "events")


@click.command("scan")
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, 3600),
    default=10.0,
    show_default=True,
    help="How long each is measured.",
)
@click.option(
    "--entries",
    type=click.IntRange(1_000, ENTRIES_MAX),
    multiple=True,
    help="Entries of the map (repeatable).",
)
@click.option(
    "--rate",
    type=click.IntRange(1, RATE_MAX),
    default=RATE,
    show_default=True,
    help="Changes per second.",
)
@click.option(
    "--interval",
    type=click.FloatRange(0.01, 3600),
    default=INTERVAL_SECONDS,
    show_default=True,
    help="Seconds from one reading of the map to the next.",
)
@json_option
def scan(
    seconds: float, entries: tuple[int, ...], rate: int, interval: float, as_json: bool
) -> None:
    """Reading a map again and again, next to being told of its changes: processor time of each.

    A plain walk over the map once an interval, a bridge that sweeps it, and a bridge that takes the
    events of a program. The figures are processor seconds per second: 1 is a whole processor.

    \b
    Examples:
      mapbridge bench scan
      mapbridge bench scan --entries 100000 --rate 10000 --interval 0.25 --json
    """
    report = measure_scanning(
        seconds,
        lambda text: click.echo(text, err=True),
        entries=entries or ENTRIES,
        rate=rate,
        interval=interval,
    )
    if as_json:
        output.print_json(report)
        return
    output.print_table(_COLUMNS, map(_row, report.sizes))


def _row(size: Scanning) -> list[object]:
    costs = (f"{cost:.3f}" for cost in (size.walk, size.sweep, size.events))
    return [f"{size.entries:,}", f"{size.changes_per_second:,}", *costs]
