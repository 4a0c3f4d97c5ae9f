"""``mapbridge bench overhead``."""

from __future__ import annotations

from dataclasses import asdict

import click

from bridge.bench.overhead import Cost, Overhead
from bridge.cli import output
from bridge.cli.output import json_option


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
