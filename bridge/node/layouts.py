"""What a node tells the cluster of its maps' layouts, before the first change that names one."""

from __future__ import annotations

import asyncio

from bridge.bus.schemas import SchemaStore
from bridge.config.settings import MapConfig
from bridge.errors import BridgeError
from bridge.feed.schema import MapSchema, decode_schema, encode_schema
from bridge.kernel.handle import KernelMap
from bridge.layout.fingerprint import fingerprint
from bridge.layout.fitting import Fitter
from bridge.layout.reader import NoLayoutError, map_layout
from bridge.layout.types import Layout
from bridge.node.report import Report

LEARN_TRIES = 5
LEARN_PAUSE_SECONDS = 1.0


def own_layout(entry: MapConfig, opened: KernelMap, report: Report) -> Layout | None:
    """What the bytes of the map mean; ``None``: nobody says it, and changes travel as bytes.

    Raises ``LayoutSizeError``, ``RuleError`` when the configuration says what cannot be.
    """
    declared = None if entry.declared is None else entry.declared.layout
    try:
        return map_layout(opened, declared, entry.rules)
    except BridgeError as error:
        if declared is not None or entry.rules:
            raise
        if isinstance(error, NoLayoutError):
            return None
        report.warn_once(f"fields are not known: {error}", map=entry.name)
        return None


async def announce(
    store: SchemaStore, cluster: str, name: str, layout: Layout | None, report: Report
) -> int:
    """Store the layout for readers; its fingerprint, 0 for none.

    A broker that does not let it be stored costs readers the names of fields, and nobody a change.
    """
    if layout is None:
        return 0
    try:
        schema = MapSchema.of(cluster, name, layout)
        await store.put(name, schema.fingerprint, encode_schema(schema))
    except BridgeError as error:
        report.warn_once(f"layout is not published: {error}", map=name, hint=error.hint)
    return fingerprint(layout)


async def learn(store: SchemaStore, fitter: Fitter, name: str, number: int, report: Report) -> None:
    """Tell the fitter what a sender's layout is, as stored beside the log.

    Whoever publishes stores it first, so one that is not there will hardly come. It is waited for
    all the same, because its changes are left out for good when it is given up.
    """
    trouble = ""
    for attempt in range(LEARN_TRIES):
        try:
            stored = await store.get(name, number)
            if stored is not None:
                schema = decode_schema(stored.data)
                if (schema.map, schema.fingerprint) != (name, number):
                    trouble = "another layout is stored in its place"
                    break
                fitter.learn(number, schema.layout)
                return
            trouble = "nobody has stored it"
        except BridgeError as error:
            trouble = str(error)
        if attempt + 1 < LEARN_TRIES:
            await asyncio.sleep(LEARN_PAUSE_SECONDS)
    report.warn_once(f"layout {number:016x} cannot be had: {trouble}", map=name)
    fitter.learn(number, None)
