"""``mapbridge bench transports``."""

from __future__ import annotations

import click

from bridge.bench.sessions import SESSIONS, Kept
from bridge.bench.transports import CONNTRACKD, OTHERS, Carried, Comparison
from bridge.cli import output
from bridge.cli.output import json_option
from bridge.demo.traffic import SESSIONS_MAX

_COLUMNS = ("transport", "changes/s", "missing", "CPU us/change", "broker us", "speed", "CPU")

_KEPT_COLUMNS = ("sessions", "of", "missing", "changes", "CPU us/change", "broker us", "p50", "p99")


@click.command("transports")
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, 3600),
    default=3.0,
    show_default=True,
    help="How long each transport carries changes, per round.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1, 100),
    default=3,
    show_default=True,
    help="How often; medians are told.",
)
@click.option(
    "--only",
    type=click.Choice([*OTHERS, CONNTRACKD]),
    multiple=True,
    help="Compare mapbridge with this one (repeatable); all of them if left out.",
)
@click.option(
    "--sessions",
    type=click.IntRange(1_000, SESSIONS_MAX),
    default=SESSIONS,
    show_default=True,
    help="TCP sessions that mapbridge and conntrackd keep.",
)
@json_option
def transports(
    seconds: float, rounds: int, only: tuple[str, ...], sessions: int, as_json: bool
) -> None:
    """The same changes through mapbridge, net/rpc, gRPC and plain NATS, from process to map.

    A program's changes (16-byte keys, 24-byte values) are recorded once. Each transport carries
    them to another process, which writes them to a map. mapbridge captures and stores them as well.
    Then mapbridge and conntrackd (in reliable mode) keep the same TCP sessions, in turn.

    \b
    Examples:
      mapbridge bench transports
      mapbridge bench transports --only netrpc-block --seconds 10 --json
    """
    names = tuple(dict.fromkeys(only)) or (*OTHERS, CONNTRACKD)
    found = Comparison(
        seconds,
        rounds,
        lambda text: click.echo(text, err=True),
        [name for name in names if name != CONNTRACKD],
        sessions=sessions if CONNTRACKD in names else 0,
    ).run()
    if as_json:
        output.print_json(found)
        return
    output.print_table(_COLUMNS, map(_row, found.transports))
    if found.sessions:
        output.print_table(_KEPT_COLUMNS, map(_kept_row, found.sessions))
    for name, reason in found.unavailable.items():
        output.line(f"{name}: not measured: {reason}")


def _row(carried: Carried) -> list[object]:
    ratio = carried.mapbridge_ratio
    return [
        carried.name,
        f"{carried.changes_per_second:,}",
        carried.missing,
        f"{carried.cpu_us_ends:.2f}",
        "-" if carried.cpu_us_broker is None else f"{carried.cpu_us_broker:.2f}",
        "-" if ratio is None else f"1/{ratio:.1f}",
        "-" if carried.cpu_ratio is None else f"x{carried.cpu_ratio:.1f}",
    ]


def _kept_row(kept: Kept) -> list[object]:
    return [
        f"{kept.sessions:,}",
        kept.name,
        kept.missing,
        f"{kept.changes:,}",
        f"{kept.cpu_us_per_change:.1f}",
        f"{kept.cpu_us_per_change_broker:.1f}",
        f"{kept.delay_p50_ms:.1f} ms",
        f"{kept.delay_p99_ms:.1f} ms",
    ]
