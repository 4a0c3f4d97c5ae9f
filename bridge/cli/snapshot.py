"""``mapbridge snapshot``: have the running bridge store a map's contents now."""

from __future__ import annotations

from pathlib import Path

import click

from bridge.cli import output
from bridge.cli.names import MAP
from bridge.cli.options import Duration, config_option
from bridge.cli.status import read_running
from bridge.config import load
from bridge.node.requests import ask


@click.command("snapshot")
@click.argument("name", metavar="MAP", type=MAP)
@config_option
@click.option(
    "--timeout",
    "timeout_seconds",
    type=Duration(1.0),
    default="60s",
    show_default=True,
    help="How long to wait for it.",
)
@output.json_option
def command(name: str, config_path: Path, timeout_seconds: float, as_json: bool) -> None:
    """Store a snapshot of a map, from which nodes that start or fell behind go on.

    The bridge of this node takes one by itself when it is due. Exit code 75: not now, with the
    reason; 69: no bridge runs here, or it was not done in time.

    \b
    Examples:
      mapbridge snapshot conntrack
      mapbridge snapshot conntrack --timeout 5m --json
    """
    config = load(config_path)
    names = [entry.name for entry in config.maps]
    if name not in names:
        raise click.UsageError(f"{name} is no map of {config_path} (maps: {', '.join(names)})")
    read_running(config.node.state_directory)
    answer = ask(config.node.state_directory, "snapshot", name, timeout_seconds)
    if as_json:
        output.print_json(answer)
        return
    output.line(
        f"map {name}: snapshot of {answer['entries']} entries at position {answer['position']}, "
        f"taken in {answer['seconds']} s"
    )
