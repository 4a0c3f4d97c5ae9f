"""``mapbridge bench overhead``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

import click

from bridge.bench.connections import MODES, ConnectionCost, Connections
from bridge.bench.overhead import EMIT, PROBED, Cost, Overhead
from bridge.cli import output
from bridge.cli.output import json_option

UPDATES, CONNECTIONS = "updates", "connections"
_MODES = tuple(dict.fromkeys([*map(str, PROBED), *MODES]))


@click.command("overhead")
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
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, 3600),
    default=2.0,
    show_default=True,
    help="How long connections are opened, per measurement.",
)
@click.option(
    "--part",
    "parts",
    type=click.Choice((UPDATES, CONNECTIONS)),
    multiple=True,
    help="Measure this part only: updates of maps, or TCP connections (repeatable).",
)
@click.option(
    "--mode",
    "modes",
    type=click.Choice(_MODES),
    multiple=True,
    help="Measure this mode only (repeatable).",
)
@json_option
def overhead(
    rounds: int,
    repeat: int,
    seconds: float,
    parts: tuple[str, ...],
    modes: tuple[str, ...],
    as_json: bool,
) -> None:
    """What capture costs the writer of a map: with no probes, unwatched, and watched.

    Updates: a BPF program, single system calls and batches of them update hash maps of three sizes
    while each mode of capture that this kernel has is attached; the emit header is measured too.
    Connections: TCP connections are opened through the example connection tracker, without a bridge
    and with a whole one. Ratios of one run hold; times move with whatever else the machine does.

    \b
    Examples:
      mapbridge bench overhead
      mapbridge bench overhead --part connections --mode fentry --rounds 3 --json
    """

    def say(text: str) -> None:
        click.echo(text, err=True)

    wanted = modes or _MODES
    costs: tuple[Cost, ...] = ()
    connections: list[ConnectionCost] = []
    unavailable: dict[str, str] = {}
    if UPDATES in (parts or (UPDATES,)):
        probed = [mode for mode in PROBED if mode in wanted]
        updates = Overhead(say, rounds=rounds, repeat=repeat, modes=probed).run()
        costs = tuple(cost for cost in updates.costs if cost.mode != EMIT or EMIT in wanted)
        unavailable.update(updates.unavailable)
    if CONNECTIONS in (parts or (CONNECTIONS,)):
        left = [mode for mode in MODES if mode in wanted and mode not in unavailable]
        through = Connections(rounds, seconds, say, left)
        connections = through.run()
        unavailable.update(through.unavailable)
    if as_json:
        output.print_json(
            {
                "costs": [asdict(cost) for cost in costs],
                "connections": [asdict(cost) for cost in connections],
                "unavailable": unavailable,
            }
        )
        return
    _print(costs, connections)
    for mode, reason in unavailable.items():
        output.line(f"{mode}: not measured: {reason}")


def _print(costs: Iterable[Cost], connections: Iterable[ConnectionCost]) -> None:
    rows = [_cost_row(cost) for cost in costs]
    if rows:
        columns = ["mode", "writer", "key", "value", "bare ns", "unwatched", "watched", "lost"]
        output.print_table(columns, rows)
    rows = [_connection_row(cost) for cost in connections]
    if rows:
        columns = ["mode", "connections/s", "with", "fewer", "CPU ns", "unwatched", "watched"]
        output.print_table([*columns, "dropped"], rows)


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


def _connection_row(cost: ConnectionCost) -> list[object]:
    unwatched = "-" if cost.unwatched is None else f"x{cost.unwatched / cost.bare:.2f}"
    return [
        cost.mode,
        f"{cost.bare_per_second:,}",
        f"{cost.watched_per_second:,}",
        f"{cost.lost_percent:.1f} %",
        f"{cost.bare:,}",
        unwatched,
        f"x{cost.watched / cost.bare:.2f}",
        cost.dropped,
    ]
