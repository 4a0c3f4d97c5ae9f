"""Where commands find the layout of a map: this kernel, the configuration, or beside the log."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path

import click

from bridge.bus.nats_bus import NatsBus
from bridge.bus.schemas import SchemaStore
from bridge.cli.broker import reader_bus
from bridge.config import Config, MapConfig, load
from bridge.errors import BridgeError, UnavailableError
from bridge.feed.schema import MapSchema, SchemaError, decode_schema
from bridge.kernel.maps import open_map
from bridge.layout.fingerprint import fingerprint
from bridge.layout.reader import map_layout
from bridge.layout.types import Layout
from bridge.model import MapSelector

BROKER_SECONDS_MAX = 5.0
_STORED = re.compile(r"(.+)@(?:0x)?([0-9a-f]{1,16})")


@dataclass(frozen=True, slots=True)
class Found:
    """A layout, and where it is from."""

    place: str
    layout: Layout

    @property
    def fingerprint(self) -> int:
        return fingerprint(self.layout)


def configured(config: Config, name: str, path: Path) -> MapConfig:
    """The map of that name; raises the error of a wrongly called command."""
    try:
        return config.map(name)
    except KeyError:
        known = ", ".join(entry.name for entry in config.maps) or "none"
        raise click.BadParameter(f"{name!r} is not in {path} (it has: {known})") from None


def layout_here(entry: MapConfig) -> Layout:
    """The layout of this machine's map, as its node takes it."""
    with open_map(entry.selector) as opened:
        declared = None if entry.declared is None else entry.declared.layout
        return map_layout(opened, declared, entry.rules)


def layout_or_reason(entry: MapConfig) -> Layout | str:
    """The same, or why it is not known."""
    try:
        return layout_here(entry)
    except BridgeError as error:
        return str(error)


def find_layout(text: str, config_path: Path | None) -> Found:
    """What a person names: ``MAP``, ``MAP@FINGERPRINT``, ``id:N``, ``name:NAME`` or a pin."""
    selector = _selector(text)
    if selector is not None:
        with open_map(selector) as opened:
            return Found(text, map_layout(opened, None))
    if config_path is None:
        raise click.UsageError(f"{text} is a name of a configuration: give its file with -c")
    config = load(config_path)
    stored = _STORED.fullmatch(text)
    if stored is None:
        return Found(text, layout_here(configured(config, text, config_path)))
    name, prefix = stored.groups()
    fitting = [schema for schema in stored_layouts(config, name) if _is_of(schema, prefix)]
    if len(fitting) != 1:
        told = "no layout" if not fitting else f"{len(fitting)} layouts"
        raise BridgeError(
            f"{text}: {told} of map {name} beside the log begins so",
            hint=f"`mapbridge schema check {name}` lists the cluster's layouts",
        )
    return Found(text, fitting[0].layout)


def stored_layouts(config: Config, name: str) -> list[MapSchema]:
    """All layouts of a map that the cluster's publishers stored, the first one first."""

    async def ask() -> list[MapSchema]:
        async with reader_bus(config, "schema", seconds_max=BROKER_SECONDS_MAX) as bus:
            return await cluster_layouts(bus, config.node.cluster, name)

    try:
        return asyncio.run(ask())
    except TimeoutError as error:
        raise UnavailableError("broker: does not answer in time") from error


async def cluster_layouts(bus: NatsBus, cluster: str, name: str) -> list[MapSchema]:
    """The same over a connection that is open. What cannot be read is told and left out."""
    found = []
    for stored in await SchemaStore(bus, cluster).all(name):
        try:
            found.append(decode_schema(stored.data))
        except SchemaError as error:
            click.echo(f"skipped: {error}", err=True)
    return found


def _selector(text: str) -> MapSelector | None:
    if text.startswith("/"):
        return MapSelector(pin=text)
    if text.startswith("id:") and text[3:].isdecimal() and int(text[3:]):
        return MapSelector(id=int(text[3:]))
    if text.startswith("name:"):
        return MapSelector(name=text[5:])
    return None


def _is_of(schema: MapSchema, prefix: str) -> bool:
    return f"{schema.fingerprint:016x}".startswith(prefix)
