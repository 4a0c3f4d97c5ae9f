"""When a snapshot of a map is taken, when it is thrown away, and which one a joiner may use.

Invariant: a snapshot with position S and the log's messages behind S give what the whole log gives.
So its position is what had been *written* when the scan began; a change that the scan may have seen
and that is not in the log yet must be there before the manifest is: the scan has ended, every own
change up to its end was captured, and every own change captured by then is stored. What could
keep one of them from ever getting there voids the snapshot: a loss, an open repair, a waiting
change that a newer one replaced, a change that the kernel did not take.

Times are of one steady clock, watermarks of the kernel's. No I/O: the owner tells the facts.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from bridge.model import Manifest

SLOTS = 2
RETRY_SECONDS = 10.0  # after a snapshot that was thrown away, doubled each time
RETRY_SECONDS_MAX = 300.0
LEASE_SECONDS = 30.0  # a holder that has not renewed its lease for so long has lost it
RUN_SECONDS_MAX = 600.0


class Step(enum.Enum):
    """What the owner of a snapshot does next."""

    WAIT = "wait"
    SEAL = "seal"  # publish the manifest
    DISCARD = "discard"


@dataclass(frozen=True, slots=True)
class Facts:
    """The map as it is now."""

    settled: bool  # it has joined, reads without a hole, and its scan at the start is done
    losses: int  # changes lost so far
    repairing: bool  # a loss is not mended yet
    replaced: int  # changes so far that a newer one replaced before they were stored
    unwritten: int  # changes that the kernel did not take
    watermark: int  # own changes that began before this kernel time have been captured
    captured: int  # own sequence of the last captured change
    stored: int  # own sequence of the last stored change


class Run:
    """One snapshot from the begin of its scan to its manifest."""

    def __init__(self, position: int, began: float, facts: Facts, *, captures: bool) -> None:
        self.position = position
        self.reason = unfit(facts)
        self._began = began
        self._losses = facts.losses
        self._replaced = facts.replaced
        self._captures = captures
        self._ended: int | None = None  # kernel time of the scan's end
        self._upto: int | None = None

    def scanned(self, ended: int) -> None:
        """All of the map has been read, the last entry before kernel time ``ended``."""
        self._ended = ended

    def look(self, now: float, facts: Facts) -> Step:
        """Whether the manifest may be published; ``reason`` tells why it never will."""
        self.reason = self.reason or self._spoiled(facts)
        if not self.reason and now - self._began > RUN_SECONDS_MAX:
            self.reason = "the changes that it holds were not stored in time"
        if self.reason:
            return Step.DISCARD
        if self._ended is None:
            return Step.WAIT
        if not self._captures:
            return Step.SEAL
        if self._upto is None:
            if facts.watermark < self._ended:
                return Step.WAIT
            self._upto = facts.captured
        return Step.SEAL if facts.stored >= self._upto else Step.WAIT

    def _spoiled(self, facts: Facts) -> str:
        if facts.losses != self._losses:
            return "changes were lost meanwhile"
        if facts.replaced != self._replaced:
            return "waiting changes were merged meanwhile"
        return unfit(facts)


def unfit(facts: Facts) -> str:
    """Why no snapshot can be taken of the map as it is, empty when one can."""
    if not facts.settled:
        return "the map has not read the stream to its end"
    if facts.repairing:
        return "a loss is not mended yet"
    if facts.unwritten:
        return "the map has no room for changes of others"
    return ""


@dataclass(frozen=True, slots=True)
class Log:
    """What is known of the log. Ages and bytes of 0: no limit."""

    id: str
    first: int
    last: int
    bytes: int = 0
    bytes_max: int = 0
    age_seconds_max: float = 0.0


def usable(manifests: Sequence[Manifest], log: Log, *, behind: int = 0) -> Manifest | None:
    """The newest snapshot from which the log goes on without a hole, at ``behind`` or later."""
    fitting = [
        m
        for m in manifests
        if m.log == log.id and log.first <= m.position + 1 and behind <= m.position <= log.last
    ]
    return max(fitting, key=lambda m: m.position, default=None)


def next_slot(manifests: Sequence[Manifest]) -> int:
    """Where the next snapshot goes: never over the newest one."""
    newest = max(manifests, key=lambda m: m.taken_at, default=None)
    return 0 if newest is None else (newest.slot + 1) % SLOTS


@dataclass(frozen=True, slots=True)
class Triggers:
    """Limits after which a new snapshot is due."""

    seconds: float
    bytes: int

    def due(self, newest: Manifest | None, log: Log, now: float, read_bytes: int) -> str:
        """Why a snapshot is due, empty while none is.

        ``newest`` usable one; ``now``: seconds since 1970; ``read_bytes``: of this map since then.
        """
        if newest is None:
            if log.first > 1:
                return "the log has begun to forget"
            if _half_full(log):
                return "the log will soon forget"
            return "many changes" if read_bytes >= self.bytes else ""
        behind, held = log.last - newest.position, log.last - log.first + 1
        if (log.first > 1 or _half_full(log)) and behind > held // 2:
            return "the log will soon forget what follows the last one"
        age = now - newest.taken_at
        if log.age_seconds_max and age > log.age_seconds_max / 2:
            return "the log will soon forget what follows the last one"
        if read_bytes >= self.bytes:
            return "many changes"
        return "time" if age >= self.seconds and read_bytes else ""


@dataclass(slots=True)
class Since:
    """How much of a map's messages was read that its newest snapshot does not hold."""

    _newest: int = -1
    _before: int = 0

    def look(self, newest: Manifest | None, position: int, read: int) -> int:
        """``position``: how far the map has come; ``read``: bytes of its messages so far.

        A node that is behind when a snapshot appears reads on what that holds already.
        """
        at = -1 if newest is None else newest.position
        if at > self._newest or position <= at:
            self._newest, self._before = max(at, self._newest), read
        return read - self._before


def _half_full(log: Log) -> bool:
    return 0 < log.bytes_max <= 2 * log.bytes


@dataclass(slots=True)
class Lease:
    """One node at a time takes the snapshots of a map.

    A holder stores a message on the lease's subject again and again, under the condition that the
    last one there is its own. Others take it over when they have seen the same one for longer than
    ``LEASE_SECONDS`` by their own clock, so that no two clocks are compared. Two holders at a
    time cost work and no correctness: each part bears its snapshot's number.
    """

    me: str
    _sequence: int = 0
    _seen_at: float = 0.0
    _holder: str = ""

    def see(self, now: float, sequence: int, holder: str) -> bool:
        """The last message of the subject (0 and empty: none); whether to store one behind it."""
        if sequence != self._sequence or holder != self._holder:
            self._sequence, self._holder, self._seen_at = sequence, holder, now
        return not holder or holder == self.me or now - self._seen_at > LEASE_SECONDS


@dataclass(slots=True)
class Retry:
    """How long to wait after snapshots that were thrown away."""

    _failures: int = 0
    _not_before: float = 0.0

    def failed(self, now: float) -> None:
        wait = min(RETRY_SECONDS * 2.0 ** min(self._failures, 16), RETRY_SECONDS_MAX)
        self._failures += 1
        self._not_before = now + wait

    def done(self) -> None:
        self._failures, self._not_before = 0, 0.0

    def may(self, now: float) -> bool:
        return now >= self._not_before
