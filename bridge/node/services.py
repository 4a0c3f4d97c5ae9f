"""What the maps of a node share, and what is said of each."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from bridge.apply.applier import Applier
from bridge.apply.inbox import Inbox
from bridge.bus.protocol import Bus
from bridge.bus.schemas import SchemaStore
from bridge.bus.snapshots import Snapshots
from bridge.core.snapshots import Triggers
from bridge.node.capturing import Capturing
from bridge.node.halts import Halts
from bridge.node.positions import Positions
from bridge.node.report import Report


class MapState(enum.StrEnum):
    """Where a map is in its life."""

    WAITING = "waiting"  # for the kernel map to appear
    JOINING = "joining"  # reading the stream up to what was its end
    RUNNING = "running"
    LEAVING = "leaving"  # gone or replaced: what was captured of it goes out
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of a node that all maps share."""

    cluster: str
    node: str
    bus: Bus
    capturing: Capturing
    inbox: Inbox
    applier: Applier
    report: Report
    outbox_bytes: int
    positions: Positions
    schemas: SchemaStore
    snapshots: Snapshots
    triggers: Triggers
    halts: Halts
    dry_run: bool = False  # capture and judge, write and publish nothing
