"""The node as a service that others find, and what it finds of them for its page."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from bridge import __version__
from bridge.bus.control import Answer
from bridge.bus.micro import MicroService, ask_nodes
from bridge.bus.nats_bus import NatsBus
from bridge.config.settings import Config
from bridge.errors import BridgeError
from bridge.health.neighbours import Neighbours
from bridge.health.summary import summary
from bridge.wire.subjects import control_subject

GATHER_SECONDS = 0.4
LOOK_SECONDS = 0.25


def service_of(config: Config, document: Callable[[], Mapping[str, object]]) -> MicroService:
    """``document``: that of ``status.json``, when it is asked for."""
    node = config.node

    def told() -> Answer:
        return summary(document())

    return MicroService(
        version=__version__,
        subject=control_subject(node.cluster, node.name),
        metadata={"node": node.name, "cluster": node.cluster},
        summary=told,
    )


async def watch_neighbours(bus: NatsBus, cluster: str, neighbours: Neighbours) -> None:
    """Ask the nodes while somebody looks; until cancelled."""
    while True:
        if not neighbours.wanted():
            await asyncio.sleep(LOOK_SECONDS)
            continue
        try:
            link = bus.link_now
            if link is not None:
                neighbours.tell(await ask_nodes(link, cluster, GATHER_SECONDS))
        except BridgeError:
            pass  # what is shown gets old, and says so
        await asyncio.sleep(neighbours.pause_seconds)
