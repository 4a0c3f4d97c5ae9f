"""``mapbridge bench``: measurements of this machine, to size a deployment."""

from __future__ import annotations

from dataclasses import asdict

import click

from bridge.bench.overhead import Cost, Overhead
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
