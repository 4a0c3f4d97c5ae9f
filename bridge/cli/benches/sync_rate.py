"""``mapbridge bench sync-rate``."""

from __future__ import annotations

from dataclasses import asdict

import click

from bridge.bench.sync_rate import Rate, SyncRate
from bridge.cli import output
from bridge.cli.options import RATE_MAX
from bridge.cli.output import json_option


@click.command("sync-rate")
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
