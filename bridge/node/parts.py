"""What a map on a node is made of: its judge, its way out, what it is applied with."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from bridge.apply.dry import DryWriter
from bridge.apply.target import ApplyTarget
from bridge.apply.writer import MapWriter
from bridge.bus.outbox import Outbox
from bridge.bus.publish_loop import PublishLoop
from bridge.config.settings import MapConfig
from bridge.core.fingerprints import Fingerprints
from bridge.core.identity import Identity
from bridge.core.replica import Replica
from bridge.core.snapshots import Facts
from bridge.errors import BridgeError
from bridge.kernel.clock import clock_offset_ns
from bridge.kernel.maps import KernelMap, MapType
from bridge.kernel.maptypes import LRU_TYPES
from bridge.layout.fingerprint import fingerprint
from bridge.layout.fitting import Fitter
from bridge.layout.types import Layout
from bridge.model import U8, ConflictPolicy, Origin, new_incarnation
from bridge.node.following import Follower
from bridge.node.halts import gate_of
from bridge.node.ignoring import both, counted_bytes
from bridge.node.judging import require_supported
from bridge.node.lane import Lane
from bridge.node.layouts import own_layout
from bridge.node.policies import folding_of
from bridge.node.services import Services
from bridge.node.snapshots import SnapshotTaker


@dataclass(slots=True)
class MapParts:
    """What exists while the map is open."""

    map: KernelMap
    lane: Lane
    layout: Layout | None
    fitter: Fitter
    counted: U8 | None  # bits of a value that count in comparisons
    target: ApplyTarget | None = None
    loop: PublishLoop | None = None
    publishing: asyncio.Task[None] | None = None
    follower: Follower | None = None
    taker: SnapshotTaker | None = None
    log: str = ""  # id of the log, of a map that is only published

    @property
    def layout_number(self) -> int:
        """The layout's fingerprint; 0: not known."""
        return 0 if self.layout is None else fingerprint(self.layout)


def assemble(config: MapConfig, services: Services, kernel_map: KernelMap) -> MapParts:
    """Raises ``BridgeError`` for a map that cannot be bridged like that, and closes it."""
    role, info = config.role, kernel_map.info
    origin = Origin(services.cluster, config.name, services.node, new_incarnation())
    try:
        require_supported(config, info)
        layout = own_layout(config, kernel_map, services.report)
        fitter = Fitter(layout, config.rules, clock_offset_ns)
        counted = both(counted_bytes(config, kernel_map), fitter.compared)
        folding = folding_of(config, info)
    except BridgeError:
        kernel_map.close()
        raise
    replica = Replica(
        origin,
        publishes=role.publishes,
        applies=role.applies,
        fingerprints=Fingerprints(info.key_size, counted) if role.publishes else None,
        rereads=not role.applies,
        folding=folding,
    )
    outbox = None
    if role.publishes:
        outbox = Outbox(info.key_size, info.value_size, services.outbox_bytes)
    identity = Identity(
        prefixes=info.type == MapType.LPM_TRIE,
        evicts=info.type in LRU_TYPES,
        policy=config.evict,
    )
    lane = Lane(replica, outbox, identity, dry=services.dry_run)
    return MapParts(kernel_map, lane, layout, fitter, counted)


def folds_whole_log(config: MapConfig) -> bool:
    """Whether the map is made of the log from its beginning, so that no snapshot can stand for it.

    A snapshot holds entries, and not what a policy makes them of.
    """
    return config.conflict is not ConflictPolicy.STREAM


def make_target(config: MapConfig, services: Services, parts: MapParts) -> ApplyTarget:
    """What the writing thread needs of the map."""
    lane = parts.lane
    writer = DryWriter(parts.map) if services.dry_run else MapWriter(parts.map)
    gate = gate_of(config, lane.replica.origin, parts.map, services)
    return ApplyTarget(config.name, lane.replica, writer, lane.lock, parts.fitter, gate=gate)


def make_follower(
    config: MapConfig,
    services: Services,
    parts: MapParts,
    *,
    learn: Callable[[int], Awaitable[None]],
) -> Follower:
    """What reads the stream for the map's target, which must be there. ``learn``: a layout."""
    assert parts.target is not None
    return Follower(
        name=config.name,
        cluster=services.cluster,
        publishes=config.role.publishes,
        bus=services.bus,
        snapshots=services.snapshots,
        inbox=services.inbox,
        report=services.report,
        positions=services.positions,
        map=parts.map,
        target=parts.target,
        identity=parts.lane.identity,
        layout=parts.layout_number,
        learn=learn,
        loads=not folds_whole_log(config),
    )


def make_taker(
    config: MapConfig, services: Services, parts: MapParts, *, facts: Callable[[], Facts]
) -> SnapshotTaker:
    """What takes snapshots of a map that follows the stream. ``facts``: how the map stands."""
    assert parts.follower is not None
    return SnapshotTaker(
        name=config.name,
        cluster=services.cluster,
        node=services.node,
        publishes=config.role.publishes,
        bus=services.bus,
        snapshots=services.snapshots,
        map=parts.map,
        follower=parts.follower,
        scans=services.capturing,
        triggers=services.triggers,
        facts=facts,
        report=services.report,
    )
