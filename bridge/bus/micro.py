"""A node as a NATS micro service, so that `nats micro ls`, `info` and `stats` know the bridges.

The questions are those of the protocol (NATS ADR-32): PING, INFO and STATS, to all services, to
those of a name, or to one instance. What the node says of itself is the ``data`` of its statistics.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from bridge.bus.control import Answer, ask_all
from bridge.bus.link import Link

SERVICE = "mapbridge"
_ROOT = "$SRV"
_TYPES = {"PING": "ping_response", "INFO": "info_response", "STATS": "stats_response"}
VERBS = tuple(f"{_ROOT}.{verb}" for verb in _TYPES)


@dataclass(frozen=True, slots=True)
class MicroService:
    """One instance. ``subject``: where the node answers questions; ``summary``: what it says."""

    version: str
    subject: str
    metadata: Mapping[str, str]
    summary: Callable[[], Answer]
    instance: str = field(default_factory=lambda: secrets.token_hex(8))
    started: datetime = field(default_factory=lambda: datetime.now(UTC))

    def subjects(self) -> tuple[str, ...]:
        """Where questions come from, all of the protocol's forms."""
        tails = ("", f".{SERVICE}", f".{SERVICE}.{self.instance}")
        return tuple(f"{_ROOT}.{verb}{tail}" for verb in _TYPES for tail in tails)

    async def handle(self, subject: str, question: Answer) -> Answer:
        """The same for a ``ControlServer``; the protocol's questions say nothing."""
        del question
        return self.answer(subject) or {}

    def answer(self, subject: str) -> Answer | None:
        """What is answered to a question on ``subject``; ``None``: it is none of these."""
        root, _, rest = subject.partition(".")
        verb = rest.partition(".")[0]
        if root != _ROOT or verb not in _TYPES:
            return None
        found: Answer = {
            "type": f"io.nats.micro.v1.{_TYPES[verb]}",
            "name": SERVICE,
            "id": self.instance,
            "version": self.version,
            "metadata": dict(self.metadata),
        }
        endpoint: Answer = {"name": "control", "subject": self.subject, "queue_group": ""}
        if verb == "INFO":
            found |= {
                "description": "keeps eBPF maps of several machines equal",
                "endpoints": [{**endpoint, "metadata": {}}],
            }
        elif verb == "STATS":
            counts = {"num_requests": 0, "num_errors": 0, "last_error": ""}
            times = {"processing_time": 0, "average_processing_time": 0}
            found |= {
                "started": self.started.isoformat().replace("+00:00", "Z"),
                "endpoints": [{**endpoint, **counts, **times, "data": self.summary()}],
            }
        return found


async def ask_nodes(link: Link, cluster: str, seconds: float) -> list[Answer]:
    """What the nodes of a cluster say of themselves, by name: all that answer within ``seconds``.

    Raises ``RequestError``.
    """
    nodes: dict[str, Answer] = {}
    for answer in await ask_all(link, f"{_ROOT}.STATS.{SERVICE}", {}, seconds):
        endpoints = answer.get("endpoints")
        for endpoint in endpoints if isinstance(endpoints, list) else []:
            data = endpoint.get("data") if isinstance(endpoint, dict) else None
            if isinstance(data, dict) and data.get("cluster") == cluster:
                nodes[str(data.get("node"))] = data
    return [nodes[name] for name in sorted(nodes)]
