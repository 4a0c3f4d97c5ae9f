"""The broker of a node: a server of its own or the one that it is told, and the log there."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Literal

from bridge.bus.board import SyncBoard
from bridge.bus.embedded import EmbeddedServer
from bridge.bus.nats_bus import NatsBus, open_bus
from bridge.bus.nats_snapshots import NatsSnapshotStore
from bridge.bus.schemas import SchemaStore
from bridge.bus.snapshots import Snapshots
from bridge.bus.streams import LogSettings
from bridge.config.settings import Config
from bridge.errors import UnavailableError
from bridge.node.access import bus_settings
from bridge.node.report import Report


@dataclass(frozen=True, slots=True)
class Broker:
    """What the maps of a node share of it."""

    bus: NatsBus
    embedded: EmbeddedServer | None
    log: LogSettings
    cluster: str
    node: str

    def schemas(self) -> SchemaStore:
        return SchemaStore(self.bus, self.cluster, self.log)

    def snapshots(self) -> Snapshots:
        store = NatsSnapshotStore(self.bus, self.cluster, self.log, self.node)
        return Snapshots(store, self.cluster)

    def board(self) -> SyncBoard:
        return SyncBoard(self.bus, self.cluster, self.log)

    def check(self) -> None:
        """Raises ``UnavailableError`` when the server of the node's own cannot be kept alive."""
        if self.embedded is not None and self.embedded.failed.is_set():
            raise UnavailableError(
                "nats-server: the embedded one ends again and again",
                hint=f"see {self.embedded.log_path}",
            )


async def connect(config: Config, stack: AsyncExitStack, report: Report) -> Broker:
    """Start the server, if it is the node's own, and have the log there; ``stack`` ends both."""
    broker, node = config.broker, config.node
    urls, embedded = broker.urls, None
    if broker.embedded:
        embedded = await stack.enter_async_context(
            EmbeddedServer(
                node.state_directory / "nats",
                host=broker.listen.host,
                port=broker.listen.port or None,
                report=report.say,
            )
        )
        urls = (embedded.url,)
        report.say("embedded nats-server ready", url=embedded.url)
    bus = await open_bus(bus_settings(config, urls=urls), report.say)
    stack.push_async_callback(bus.close)
    log = _log_settings(config)
    await bus.ensure_log(node.cluster, log)
    return Broker(bus, embedded, log, node.cluster, node.name)


def _log_settings(config: Config) -> LogSettings:
    broker = config.broker
    storage: Literal["file", "memory"] = "memory" if broker.storage == "memory" else "file"
    return LogSettings(storage=storage, replicas=broker.replicas)
