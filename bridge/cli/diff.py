"""``mapbridge diff``: which keys two nodes hold differently."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np

from bridge.cli import output
from bridge.cli.options import config_option
from bridge.cli.peers import peers_of
from bridge.config import Config, load
from bridge.core.digests import BUCKETS_MAX, Drift, differing, lasting
from bridge.errors import BridgeError
from bridge.kernel.maps import open_map
from bridge.layout.reader import read_layout
from bridge.layout.render import Renderer
from bridge.model import MapSelector

KEYS_SHOWN = 1_000


@click.command("diff")
@click.argument("name", metavar="MAP")
@click.argument("nodes", metavar="NODE_A NODE_B", nargs=2)
@config_option
@click.option(
    "--hex", "as_hex", is_flag=True, help="Bytes, although this machine's map has fields."
)
@output.json_option
def command(
    name: str, nodes: tuple[str, str], config_path: Path, as_hex: bool, as_json: bool
) -> None:
    """List the keys that two nodes hold differently, as both were when they were read.

    What changes meanwhile shows as well; `mapbridge verify` tells it from drift. Exit code 0: no
    key differs; 1: some do.

    \b
    Examples:
      mapbridge diff ct node-a node-b
      mapbridge diff ct node-a node-b --json
    """
    config = load(config_path)
    found, truncated = asyncio.run(_diff(config, name, nodes))
    shown = list(_shown(config, name, found[:KEYS_SHOWN], plain=as_hex))
    if as_json:
        output.print_json(
            {
                "map": name,
                "nodes": nodes,
                "differ": len(found),
                "truncated": truncated,
                "keys": shown,
            }
        )
    else:
        for one in shown:
            left, right = (("-" if one[n] is None else one[n]) for n in ("a", "b"))
            output.line(f"{one['key']}  {nodes[0]}: {left}  {nodes[1]}: {right}")
        output.line(f"{len(found)} keys differ" + (", and there are more" if truncated else ""))
    if found:
        click.get_current_context().exit(1)


async def _diff(config: Config, name: str, nodes: tuple[str, str]) -> tuple[list[Drift], bool]:
    async with peers_of(config) as peers:
        readings = await peers.digests(name, nodes, BUCKETS_MAX)
        suspects = np.flatnonzero(differing([r.digest for r in readings])).tolist()
        if not suspects:
            return [], False
        pages = await peers.entries(name, nodes, readings[0].digest, suspects)
        found = lasting([[page.as_mapping() for page in pages]])
        return found, any(page.truncated for page in pages)


def _shown(
    config: Config, name: str, found: list[Drift], *, plain: bool
) -> Iterator[dict[str, object]]:
    known = name in {entry.name for entry in config.maps}
    renderers = _renderers(config.map(name).selector) if known and not plain else None
    for drift in found:
        sides = [_decoded(renderers, drift.key, value) for value in drift.values]
        key = next((side[0] for side in sides if side is not None), drift.key.hex())
        yield {"key": key} | {
            letter: None if side is None else side[1]
            for letter, side in zip("ab", sides, strict=True)
        }


def _decoded(
    renderers: tuple[Renderer, Renderer] | None, key: bytes, value: bytes | None
) -> tuple[object, object] | None:
    if value is None:
        return None
    if renderers is None:
        return key.hex(), value.hex()
    rows = (np.frombuffer(raw, np.uint8).reshape(1, -1) for raw in (key, value))
    shown = [next(renderer.rows(row)) for renderer, row in zip(renderers, rows, strict=True)]
    return shown[0], shown[1]


def _renderers(selector: MapSelector) -> tuple[Renderer, Renderer] | None:
    """Of this machine's map; ``None``: it is not here, or has no types."""
    try:
        with open_map(selector) as opened:
            layout = read_layout(opened)
    except BridgeError:
        return None
    return Renderer(layout.key, "key"), Renderer(layout.value, "value")
