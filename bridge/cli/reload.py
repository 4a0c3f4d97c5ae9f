"""``mapbridge reload``: have the running bridge take its configuration as it is now."""

from __future__ import annotations

from pathlib import Path

import click

from bridge.cli import output
from bridge.cli.options import Duration, config_option
from bridge.cli.status import read_running
from bridge.config import load
from bridge.node.requests import ask


@click.command("reload")
@config_option
@click.option(
    "--timeout",
    "timeout_seconds",
    type=Duration(1.0),
    default="30s",
    show_default=True,
    help="How long to wait for it.",
)
@output.json_option
def command(config_path: Path, timeout_seconds: float, as_json: bool) -> None:
    """Have the running bridge read its configuration again, as SIGHUP does, and tell the outcome.

    Maps are added and removed; those that are as before go on undisturbed. Everything captured of a
    map that is removed goes out first. Keys that are read at the start only are named. When
    anything is wrong with the configuration, nothing is changed: exit code 78. 69: no bridge runs.

    \b
    Examples:
      mapbridge reload
      mapbridge reload -c node-a.toml --json
    """
    directory = load(config_path).node.state_directory
    read_running(directory)
    answer = ask(directory, "reload", "", timeout_seconds)
    if as_json:
        output.print_json(answer)
        return
    told = [
        f"{what} {', '.join(map(str, names))}"
        for what in ("added", "removed", "changed")
        if isinstance(names := answer.get(what), list) and names
    ]
    output.line(f"node {answer['node']}: {'; '.join(told) or 'no map has changed'}")
    restart = answer.get("restart")
    if isinstance(restart, list) and restart:
        output.line(f"as before until the bridge is restarted: {', '.join(map(str, restart))}")
