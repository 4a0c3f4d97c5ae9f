"""``mapbridge diff``: which keys two nodes hold differently."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np

from bridge.cli import output
from bridge.cli.at import show
from bridge.cli.layouts import configured, layout_here, stored_layouts
from bridge.cli.names import MAP, NODE
from bridge.cli.options import config_option
from bridge.cli.peers import peers_of
from bridge.cli.places import PLACE, Place
from bridge.config import Config, load
from bridge.core.digests import BUCKETS_MAX, Drift, differing, lasting
from bridge.errors import BridgeError
from bridge.layout.render import Renderer

KEYS_SHOWN = 1_000


@click.command("diff")
@click.argument("name", metavar="MAP", type=MAP)
@click.argument("nodes", metavar="[NODE_A NODE_B]", nargs=-1, type=NODE)
@click.option("--from", "begin", type=PLACE, help="Compare two times instead: the earlier one.")
@click.option("--to", "end", type=PLACE, help="The later one.  [default: now]")
@config_option
@click.option("--hex", "as_hex", is_flag=True, help="Bytes, although the fields are known.")
@output.json_option
def command(
    name: str,
    nodes: tuple[str, ...],
    begin: Place | None,
    end: Place | None,
    config_path: Path,
    as_hex: bool,
    as_json: bool,
) -> None:
    """List the keys that two nodes hold differently, as both were when they were read.

    What changes meanwhile shows as well; `mapbridge verify` tells it from drift. Exit code 0: no
    key differs; 1: some do.

    With --from, and no nodes, the map of the cluster at two times is compared, as `mapbridge at`
    does with --since.

    \b
    Examples:
      mapbridge diff ct node-a node-b
      mapbridge diff ct node-a node-b --json
      mapbridge diff ct --from 1h --to 5m
    """
    config = load(config_path)
    if begin is not None and not nodes:
        configured(config, name, config_path)
        later = end or Place(time_ns=time.time_ns())
        asyncio.run(show(config, name, later, begin, as_json=as_json))
        return
    if len(nodes) != 2 or begin is not None or end is not None:
        raise click.UsageError("name two nodes, or two times with --from and --to")
    pair = (nodes[0], nodes[1])
    found, truncated = asyncio.run(_diff(config, name, pair))
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
        keys = "1 key differs" if len(found) == 1 else f"{len(found)} keys differ"
        output.line(keys + (", and there are more" if truncated else ""))
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
    value = next((each for drift in found for each in drift.values if each is not None), b"")
    sizes = (len(found[0].key), len(value)) if found else (0, 0)
    renderers = _renderers(config, name, sizes) if found and known and not plain else None
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


def _renderers(
    config: Config, name: str, sizes: tuple[int, int]
) -> tuple[Renderer, Renderer] | None:
    """Of this machine's map, else of the newest layout beside the log that has such sizes."""
    try:
        layouts = [layout_here(config.map(name))]
    except BridgeError:
        layouts = [schema.layout for schema in reversed(stored_layouts(config, name))]
    for layout in layouts:
        if (layout.key.size, layout.value.size) == sizes:
            return Renderer(layout.key, "key"), Renderer(layout.value, "value")
    return None
