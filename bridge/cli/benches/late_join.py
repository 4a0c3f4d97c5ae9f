"""``mapbridge bench late-join``."""

from __future__ import annotations

from dataclasses import asdict

import click

from bridge.bench.late_join import LateJoin
from bridge.cli import output
from bridge.cli.options import RATE_MAX
from bridge.cli.output import json_option

ENTRIES_MAX = 50_000_000


@click.command("late-join")
@click.option(
    "--entries",
    type=click.IntRange(1_000, ENTRIES_MAX),
    default=1_000_000,
    show_default=True,
    help="How many entries the map holds.",
)
@click.option(
    "--rate",
    type=click.IntRange(0, RATE_MAX),
    default=50_000,
    show_default=True,
    help="Changes per second that go on meanwhile.",
)
@json_option
def late_join(entries: int, rate: int, as_json: bool) -> None:
    """Seconds until a node that starts late holds a map that goes on changing.

    The map (16-byte keys, 24-byte values) is on one node; its snapshot is taken while a program
    changes it; then another node starts, loads the snapshot and reads on. For comparison the same
    entries are written into an empty map by plain BPF_MAP_UPDATE_BATCH, meanwhile too.

    \b
    Examples:
      mapbridge bench late-join
      mapbridge bench late-join --entries 100000 --json
    """
    result = LateJoin(entries, rate, lambda text: click.echo(text, err=True)).run()
    if as_json:
        output.print_json(asdict(result))
        return
    output.print_table(["measured", "value"], list(asdict(result).items()))
