"""From a configuration to a connection: every part of the program reaches the broker this way."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.bus.connection import BusSettings
from bridge.config import Config


def inbox_prefix(node: str) -> str:
    """Where answers to a node come in: a subject that nobody else need be allowed to read."""
    return f"_INBOX_{node}"


def bus_settings(config: Config, purpose: str = "", urls: Sequence[str] = ()) -> BusSettings:
    """How ``config`` reaches its broker.

    purpose   who connects, beside the node itself: a command of its machine
    urls      instead of the configuration's, for an embedded server
    """
    broker, node = config.broker, config.node.name
    return BusSettings(
        node=f"{node}-{purpose}" if purpose else node,
        urls=tuple(urls) or broker.urls,
        access=broker.access,
        inbox_prefix=broker.inbox_prefix or inbox_prefix(node),
        domain=broker.domain,
    )
