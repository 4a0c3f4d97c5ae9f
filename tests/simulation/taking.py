"""How a node takes a snapshot: what ``bridge.node.snapshots`` does, in steps.

When one is due, whether it is any good and whose turn it is decide the rules of the core; parts,
manifest and lease are stored by the production code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from bridge.bus.snapshots import SnapshotConflictError, part_of
from bridge.core.digest import rows_digest
from bridge.core.snapshots import (
    LEASE_SECONDS,
    Lease,
    Retry,
    Run,
    Since,
    Step,
    Triggers,
    next_slot,
    unfit,
    usable,
)
from bridge.model import Anchor, Delta, DeltaBatch, Manifest, Op, Origin, Part
from bridge.wire.codec import encode
from tests.simulation.joining import now_done

if TYPE_CHECKING:
    from tests.simulation.node import Node

TRIGGERS = Triggers(seconds=20.0, bytes=6)  # a message counts as one byte here
PART_ROWS = 2


@dataclass(slots=True)
class Taking:
    """A snapshot from the lease to the manifest."""

    run: Run
    origin: Origin
    slot: int
    log_id: str
    unread: list[int]
    swept: bool  # what a sweep finds is stored, for nothing else sees changes
    read: list[tuple[int, int]] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    first: int = 0
    digest: int = 0
    rows: int = 0
    scanned: bool = False


@dataclass(slots=True)
class Taker:
    """Belongs to one life of a node's bridge."""

    node: Node
    number: int  # tells this life from all others
    taken: int = 0
    discarded: int = 0
    taking: Taking | None = None
    lease: Lease = field(init=False)
    retry: Retry = field(default_factory=Retry)
    lease_sequence: int = 0
    renew_at: float = 0.0
    since: Since = field(default_factory=Since)
    snapshots: int = 0

    def __post_init__(self) -> None:
        self.lease = Lease(f"{self.node.name}.{self.number}")

    def step(self, seconds: float, now: int, *, asked: bool) -> bool:
        node = self.node
        if not node.loads or not node.connected:
            return False
        try:
            if self.taking is None:
                return self._look(seconds, asked=asked)
            return self._go_on(self.taking, seconds, now)
        except SnapshotConflictError:
            self._drop(seconds)
            return True

    def _look(self, seconds: float, *, asked: bool) -> bool:
        node = self.node
        log, manifests = node.log.view(), node.manifests()
        newest = usable(manifests, log)
        read = self.since.look(newest, node.position(), node.messages_read)
        due = TRIGGERS.due(newest, log, seconds, read)
        facts = node.facts()
        if not (asked or (due and self.retry.may(seconds))) or unfit(facts):
            return False
        sequence, holder = now_done(node.snapshots.lease("m"))
        if not self.lease.see(seconds, sequence, holder):
            return bool(due)
        self._hold(seconds, sequence)
        self.snapshots += 1
        number = self.number * 1_000 + self.snapshots
        keys = list(range(node.keys))
        self.taking = Taking(
            Run(self.position(), seconds, facts, captures=True),
            Origin("c", "m", node.name, number),
            self.slot(manifests),
            log.id,
            keys,
            swept=self.sweeps(),
        )
        return True

    def sweeps(self) -> bool:
        """Whether nothing but sweeps sees the changes of this map."""
        return not self.node.kernel.records

    def position(self) -> int:
        return self.node.position()

    def slot(self, manifests: list[Manifest]) -> int:
        return next_slot(manifests)

    def _go_on(self, taking: Taking, seconds: float, now: int) -> bool:
        if seconds >= self.renew_at:
            self._hold(seconds, self.lease_sequence)
        if taking.swept and taking.unread:
            return True  # until the next sweep has shared what it found
        if taking.unread:
            key = taking.unread.pop(0)
            if key in self.node.kernel.map:
                taking.read.append((key, self.node.kernel.map[key]))
            return True
        if taking.read:
            self._store(taking)
            return True
        if not taking.scanned:
            taking.scanned = True
            taking.run.scanned(now)
            return True
        step = taking.run.look(seconds, self.node.facts())
        if step is Step.SEAL:
            self._seal(taking, seconds)
        elif step is Step.DISCARD:
            self.discarded += 1
            self._drop(seconds)
        return True

    def share(self, found: dict[int, int]) -> None:
        """A sweep has read the map, and published what it found."""
        taking = self.taking
        if taking is not None and taking.swept and taking.unread:
            taking.read, taking.unread = sorted(found.items()), []

    def _store(self, taking: Taking) -> None:
        rows, taking.read = taking.read[:PART_ROWS], taking.read[PART_ROWS:]
        keys = np.array([[key] for key, _ in rows], np.uint8)
        values = np.array([value for _, value in rows], np.uint64).view(np.uint8).reshape(-1, 8)
        batch = DeltaBatch.of_entries(Op.UPDATE, keys, values, 0)
        data = encode(Delta(taking.origin, taking.rows + 1, batch))
        number = len(taking.parts)
        at = now_done(self.node.snapshots.put_part("m", taking.slot, number, data))
        taking.first = taking.first or at
        taking.parts.append(part_of(data, len(batch)))
        taking.digest = (taking.digest + rows_digest(batch)) & 0xFFFF_FFFF_FFFF_FFFF
        taking.rows += len(batch)

    def _seal(self, taking: Taking, seconds: float) -> None:
        node, position = self.node, taking.run.position
        self._hold(seconds, self.lease_sequence)
        stored_at = node.log.stored_at(position)
        manifest = Manifest(
            origin=taking.origin,
            log=taking.log_id,
            position=position,
            anchor=None if stored_at is None else Anchor(position, stored_at),
            slot=taking.slot,
            taken_at=seconds,
            clock_offset=0,
            key_size=1,
            value_size=8,
            layout=0,
            parts=tuple(taking.parts),
            first_part=taking.first,
            digest=taking.digest,
        )
        if node.log.view().id == taking.log_id:
            now_done(node.snapshots.seal(manifest))
            self.taken += 1
            self.retry.done()
        self._release()

    def _hold(self, seconds: float, sequence: int) -> None:
        self.lease_sequence = now_done(self.node.snapshots.take_lease("m", self.lease.me, sequence))
        self.renew_at = seconds + LEASE_SECONDS / 3

    def _drop(self, seconds: float) -> None:
        self.retry.failed(seconds)
        self._release()

    def _release(self) -> None:
        self.taking = None
        try:
            now_done(self.node.snapshots.take_lease("m", "", self.lease_sequence))
        except SnapshotConflictError:
            return
