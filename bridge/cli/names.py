"""Names of maps and nodes as arguments: taken as they are, and known to the shell's completion.

Whatever goes wrong while a shell asks means that nothing is offered: a person who has pressed Tab
is not helped by an error. The broker is asked once, and not for long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from bridge.cli.options import CONFIG_FILE
from bridge.config import Config, load
from bridge.errors import BridgeError

ASK_SECONDS_MAX = 1.0


class _Name(click.ParamType[str]):
    """Any text; a shell that completes it is offered what ``_offered`` finds."""

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        return str(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        config = _config(ctx)
        return [] if config is None else _matching(self._offered(config), incomplete)

    def _offered(self, config: Config) -> list[str]:
        raise NotImplementedError


class MapName(_Name):
    """A map's name in the stream; offered are those of the configuration and of the status."""

    name = "MAP"

    def _offered(self, config: Config) -> list[str]:
        return _maps(config)


class NodeName(_Name):
    """A node's name; offered are this one's and those that the broker knows."""

    name = "NODE"

    def _offered(self, config: Config) -> list[str]:
        return _nodes(config)


MAP = MapName()
NODE = NodeName()


def _matching(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in sorted(set(names)) if name.startswith(incomplete)]


def _config(ctx: click.Context) -> Config | None:
    path = ctx.params.get("config_path")
    try:
        return load(path if isinstance(path, Path) else CONFIG_FILE)
    except (BridgeError, OSError):
        return None


def _maps(config: Config) -> list[str]:
    from bridge.node.instance import read_status

    names = [entry.name for entry in config.maps if not entry.selector.is_pattern]
    try:
        found = (read_status(config.node.state_directory) or {}).get("maps")
    except OSError:
        found = None
    return names + (list(found) if isinstance(found, dict) else [])


def _nodes(config: Config) -> list[str]:
    try:
        return [config.node.name, *asyncio.run(_standing(config))]
    except (BridgeError, OSError, TimeoutError):
        return [config.node.name]


async def _standing(config: Config) -> list[str]:
    from bridge.bus.board import SyncBoard
    from bridge.bus.nats_bus import open_bus
    from bridge.cli.broker import broker_urls
    from bridge.node.access import bus_settings

    async with asyncio.timeout(ASK_SECONDS_MAX):
        bus = await open_bus(bus_settings(config, "tab", broker_urls(config)))
        try:
            return [one.node for one in await SyncBoard(bus, config.node.cluster).all()]
        finally:
            await bus.close()
