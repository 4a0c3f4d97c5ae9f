"""``mapbridge bench sync-rate``."""

from __future__ import annotations

from dataclasses import asdict

import click

from bridge.bench.sync_rate import Rate, Setup, SyncRate
from bridge.cli import output
from bridge.cli.options import RATE_MAX
from bridge.cli.output import json_option

RATES = (1_000, 10_000, 100_000, 500_000, 1_000_000)


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
    default=RATES,
    show_default=True,
    help="Also at this many changes per second (repeatable).",
)
@click.option("--saturation-only", is_flag=True, help="At no fixed rate.")
@click.option(
    "--replicas",
    type=click.IntRange(1, 16),
    default=1,
    show_default=True,
    help="Nodes that apply the changes, each to a map of its own.",
)
@click.option(
    "--storage",
    type=click.Choice(["file", "memory"]),
    default="file",
    show_default=True,
    help="Where the servers keep the log.",
)
@click.option(
    "--copies",
    type=click.Choice(["1", "3"]),
    default="1",
    show_default=True,
    help="Servers that each keep the log (R1, R3).",
)
@json_option
def sync_rate(
    seconds: float,
    rates: tuple[int, ...],
    saturation_only: bool,
    replicas: int,
    storage: str,
    copies: str,
    as_json: bool,
) -> None:
    """Changes per second from map to map, first as fast as it goes.

    A BPF program changes a map (16-byte keys, 24-byte values) and emits each change; bridges and
    nats-server on this machine carry them into other maps; all maps are compared.

    \b
    Examples:
      mapbridge bench sync-rate
      mapbridge bench sync-rate --seconds 30 --rate 100000 --rate 500000 --json
      mapbridge bench sync-rate --saturation-only --replicas 4 --storage memory
    """
    results = SyncRate(
        seconds,
        lambda text: click.echo(text, err=True),
        (None,) if saturation_only else (None, *rates),
        Setup(replicas, storage, int(copies)),
    ).run()
    if as_json:
        saturated, *fixed = (asdict(result) for result in results)
        output.print_json({**saturated, "rates": fixed})
        return
    output.print_table(
        [
            "rate",
            "changes/s",
            "missing",
            "dropped",
            "p50 ms",
            "p99 ms",
            "changes/message",
            "CPU us/change",
            "publisher",
            "server",
            "replicas",
            "generator",
        ],
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
        result.changes_per_message,
        result.cpu_us_per_change,
        result.cpu_us.publisher,
        result.cpu_us.server,
        result.cpu_us.replicas,
        result.cpu_us.generator,
    ]
