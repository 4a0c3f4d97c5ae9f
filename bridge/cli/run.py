"""``mapbridge run``: the daemon of one node."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from bridge.cli.options import config_option, set_option
from bridge.cli.output import json_option
from bridge.config import load, read
from bridge.node.process import run_node
from bridge.node.report import LogReport


@click.command("run")
@config_option
@click.option("--dry-run", is_flag=True, help="Capture and judge; write and publish nothing.")
@set_option
@json_option
def command(config_path: Path, dry_run: bool, settings: tuple[str, ...], as_json: bool) -> None:
    """Run the bridge of this node until SIGTERM.

    SIGTERM or Ctrl-C lets everything captured go out first; a second one ends at once. SIGHUP has
    the configuration read again, see `mapbridge reload`. Standard error gets lines for a person on
    a terminal, and JSON otherwise or with --json.

    With --dry-run no map is written and nothing is published; `mapbridge status` counts what would
    have been.

    \b
    Examples:
      mapbridge run -c node-a.toml
      mapbridge run -c node-a.toml --json 2>node-a.log
      mapbridge run -c node-a.toml --dry-run
    """
    loaded = read(config_path, settings)
    config = loaded.config
    report = LogReport(json=as_json or None, node=config.node.name)
    for warning in loaded.warnings:
        report.warn(warning)
    asyncio.run(run_node(config, report, lambda: load(config_path, settings), dry_run=dry_run))
