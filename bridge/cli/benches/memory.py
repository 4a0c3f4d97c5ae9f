"""``mapbridge bench memory``."""

from __future__ import annotations

import click

from bridge.bench.memory import ENTRIES, MAPS, Memory, measure_memory
from bridge.cli import output
from bridge.cli.output import json_option

ENTRIES_MAX = 50_000_000
MAPS_MAX = 256
_COLUMNS = ("entries", "maps", "capture", "publishes MB", "at most", "applies MB", "at most")


@click.command("memory")
@click.option(
    "--entries",
    type=click.IntRange(1, ENTRIES_MAX),
    multiple=True,
    help="Entries of one map (repeatable).",
)
@click.option(
    "--maps",
    type=click.IntRange(1, MAPS_MAX),
    multiple=True,
    help="Maps of 1,000 entries each (repeatable).",
)
@json_option
def memory(entries: tuple[int, ...], maps: tuple[int, ...], as_json: bool) -> None:
    """Memory that a bridge holds: against entries of one map, then against the number of maps.

    One bridge publishes the maps (16-byte keys, 24-byte values), another applies them; when all
    maps are equal, both processes are asked. The kernel's own memory for maps and rings is not
    among it. With neither option both are measured; with one, only that.

    \b
    Examples:
      mapbridge bench memory
      mapbridge bench memory --entries 1000000 --json
    """
    everything = not entries and not maps
    report = measure_memory(
        lambda text: click.echo(text, err=True),
        entries=ENTRIES if everything else entries,
        maps=MAPS if everything else maps,
    )
    if as_json:
        output.print_json(report)
        return
    output.print_table(_COLUMNS, map(_row, (*report.entries, *report.maps)))


def _row(result: Memory) -> list[object]:
    return [
        f"{result.entries:,}",
        result.maps,
        result.capture,
        result.publisher_rss_mb,
        result.publisher_peak_mb,
        result.applier_rss_mb,
        result.applier_peak_mb,
    ]
