"""``mapbridge resume``: a map that a mass change halted goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from bridge.bus.control import Answer
from bridge.cli import output
from bridge.cli.names import MAP, NODE
from bridge.cli.options import config_option
from bridge.cli.peers import peers_of
from bridge.config import Config, load


@click.command("resume")
@click.argument("name", metavar="MAP", type=MAP)
@config_option
@click.option("--node", metavar="NODE", type=NODE, help="Another node than this one.")
@output.json_option
def command(name: str, config_path: Path, node: str | None, as_json: bool) -> None:
    """Let a map go on to which nothing was applied since a mass change.

    Everything that is in the stream by now is applied without asking again. Exit code 1: the map
    is not halted.

    \b
    Examples:
      mapbridge resume ct
      mapbridge resume ct --node node-b
    """
    config = load(config_path)
    answer = asyncio.run(_resume(config, name, node or config.node.name))
    if as_json:
        output.print_json({"map": name, **answer})
        return
    output.line(f"{name}: goes on (was halted for a {answer['reason']})")


async def _resume(config: Config, name: str, node: str) -> Answer:
    async with peers_of(config) as peers:
        return await peers.tell(node, "resume", {"map": name, "position": await peers.head()})
