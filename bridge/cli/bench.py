"""``mapbridge bench``: measurements of this machine, to size a deployment."""

from __future__ import annotations

from dataclasses import asdict

import click

from bridge.bench.sync_rate import Rate, SyncRate
from bridge.cli import output
from bridge.cli.output import json_option

RATE_MAX = 10_000_000


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
