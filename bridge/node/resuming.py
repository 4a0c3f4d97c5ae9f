"""How far a map that was bridged before had come in the log, if it is the same map and log.

A log that went back, or did so and grew again, is not the one that a position counts in. That it
ends before the position is looked at for a while first: whoever answers may be the leader of a part
of the cluster that was cut off.
"""

from __future__ import annotations

import asyncio

from bridge.bus.protocol import Bus, LogState
from bridge.bus.shorter import Shorter
from bridge.node.positions import Positions
from bridge.node.report import Report

RETRY_SECONDS = 0.5


async def resume(
    bus: Bus, cluster: str, positions: Positions, name: str, map_id: int, report: Report
) -> tuple[LogState, int | None]:
    """The log now, and what of it had been applied to this very map; ``None``: nothing is known."""
    shorter = Shorter()
    while True:
        log = await bus.log_state(cluster)
        saved = positions.of(name, map_id, log.id)
        if saved is None:
            return log, None
        if saved <= log.last:
            return log, saved if await _is_same(bus, cluster, positions, name) else None
        if shorter.told(shorter=True):
            return log, None
        report.warn_once(
            "the log ends before what this map had taken: it is asked again",
            map=name,
            position=saved,
            last=log.last,
        )
        await asyncio.sleep(RETRY_SECONDS)


async def _is_same(bus: Bus, cluster: str, positions: Positions, name: str) -> bool:
    anchor = positions.anchor(name)
    stored = None if anchor is None else await bus.stored_at(cluster, anchor.sequence)
    return stored is None or anchor is None or stored == anchor.stored_at_ns
