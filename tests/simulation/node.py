"""One node: the production judge between a simulated kernel and the log, in steps.

What the owner of a ``Replica`` has to do, this one does as ``bridge.node`` and ``bridge.apply`` do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from bridge.apply.gate import ApplyGate
from bridge.apply.inbox import Arrival
from bridge.bus.marks import Marks
from bridge.bus.snapshots import Snapshots
from bridge.core.coalesce import coalesce
from bridge.core.fingerprints import Fingerprints
from bridge.core.guard import GuardLimits
from bridge.core.joining import Acks, rejoins
from bridge.core.policies import PolicyFold
from bridge.core.replica import Replica
from bridge.core.snapshots import Facts
from bridge.model import U8, ConflictPolicy, Delta, DeltaBatch, Manifest, Op, Origin
from bridge.node.synced import Sync, SyncGate
from tests.simulation.joining import Joining, keys_of, now_done
from tests.simulation.kernel import Kernel, entries
from tests.simulation.log import Log
from tests.simulation.publisher import Publisher
from tests.simulation.sweeping import Sweeper
from tests.simulation.taking import Taker
from tests.simulation.writing import Writer

KEYS = 3
NO_GUARD = GuardLimits()


@dataclass(slots=True)
class Node:
    """``publishes_only``: nothing of the stream is written here, dirty keys are read again."""

    name: str
    kernel: Kernel
    log: Log
    snapshots: Snapshots
    seconds: Callable[[], float]  # a steady clock
    publishes_only: bool = False
    policy: ConflictPolicy = ConflictPolicy.STREAM
    applies_only: bool = False
    limits: GuardLimits = NO_GUARD
    halted: str = ""  # on disk
    bridged: bool = False  # on disk: this very map was bridged before
    up: bool = False
    connected: bool = True
    stale: int = 0
    replica: Replica = field(init=False)
    publisher: Publisher = field(init=False)
    settled: bool = False
    joining: Joining | None = None
    taker: Taker = field(init=False)
    writer: Writer = field(init=False)
    sweeper: Sweeper = field(init=False)
    gate: ApplyGate = field(init=False)
    sync_gate: SyncGate = field(init=False)
    acks: Acks = field(default_factory=Acks)
    marks: Marks = field(default_factory=lambda: Marks.behind_place(0))
    server_end: int | None = None  # what the server that it reads from has of the log; all of it
    asked_at: float = 0.0  # when the log's leader was last asked what there is
    misled_since: float | None = None  # the same, before such a server fell behind
    following: bool = False  # what was the log's end has been written
    drained_to: int = 0  # what ended until then has come out of the ring
    watermark: int = 0  # own changes that began at or before it have been captured
    merged: int = 0  # changes that a newer one replaced before they were sent
    messages_read: int = 0
    saved: tuple[int, int] | None = None  # on disk, with the log's id; outlives the bridge
    rejoining: bool = False
    joined: bool = False  # everything that the log held was applied once
    unasked: int = 0  # messages judged although an operator had to be asked first
    asks: bool = False  # what is told to the operator, and outlives the bridge
    fenced: bool = False  # another instance bears its name
    doubtful_crashes: int = 0  # with a key in doubt, a mark that dies with the bridge

    def start(self, now: int, incarnation: int) -> bool:
        """A new process of the bridge; the kernel's map may be old."""
        if self.up:
            return False
        self.up = True
        self.replica = Replica(
            Origin("c", "m", self.name, incarnation),
            publishes=not self.applies_only,
            applies=not self.publishes_only,
            fingerprints=None if self.one_way else Fingerprints(1),
            rereads=self.publishes_only,
            folding=folding_of(self.policy),
        )
        self.publisher = Publisher(self.replica.origin, self.log.last(self.name), self._acked)
        self.writer = Writer(self)
        self.sweeper = Sweeper(self, wanted=not self.one_way, lost_seen=self.kernel.lost)
        self.marks, self.merged, self.messages_read = Marks.behind_place(0), 0, 0
        self.settled = self.joined = self.following = False
        self.acks, self.taker, self.sync_gate = Acks(), Taker(self, incarnation), SyncGate()
        self.gate = ApplyGate(
            self.replica.origin,
            self.limits,
            count=lambda: len(self.kernel.map),
            on_halt=self._halt,
            halted=self.halted,
            clock=self.seconds,
        )
        saved = self.saved_position()
        self.rejoining = rejoins(saved, self.log.view(), publishes=not self.one_way)
        if saved is not None and self.rejoining:
            self.replica.rejoin(saved)
        self.joining = Joining(self)
        self.kernel.attach(now)
        self.watermark, self.drained_to = now - 1, now - 1
        self.replica.attached()
        self.replica.drained(now - 1)
        return True

    @property
    def one_way(self) -> bool:
        return self.publishes_only or self.applies_only

    def crash(self) -> None:
        self.up = False
        self.kernel.attached_at = None
        landing = self.writer.landing
        settling = landing is not None and landing.settles
        self.doubtful_crashes += settling or self.replica.dirty_keys > 0

    def saved_position(self) -> int | None:
        """What had been applied to this map, when the log is the one that it counts in."""
        saved, log = self.saved, self.log
        known = saved is not None and saved[0] == log.generation and saved[1] <= len(log)
        return saved[1] if saved is not None and known else None

    @property
    def loads(self) -> bool:
        """A policy folds the log from its beginning."""
        return self.policy is ConflictPolicy.STREAM and not self.one_way and not self.kernel.lru

    @property
    def keys(self) -> int:
        return KEYS

    def keys_now(self) -> U8:
        return keys_of(self.kernel.map)

    def manifests(self) -> list[Manifest]:
        return now_done(self.snapshots.manifests("m"))

    def facts(self) -> Facts:
        return Facts(
            settled=self.joined and self.following and self.sweeper.scanned,
            losses=self.kernel.lost,
            repairing=self.sweeper.mends,
            replaced=self.merged,
            unwritten=self.replica.unwritten_rows,
            watermark=self.watermark,
            captured=self.replica.captured,
            stored=self.publisher.stored_rows,
        )

    def _halt(self, reason: str) -> None:
        self.asks = True
        self.keep_halted(reason)

    def keep_halted(self, reason: str) -> None:
        self.halted = reason

    def _acked(self, own: int, at: int) -> None:
        self.acks.note(own, at, self.replica.observed)

    def join(self, now: int) -> bool:
        return self.joining is not None and self.joining.step(now)

    def follow(self, after: int) -> None:
        """The log is read from here on."""
        self.marks, self.writer.applied = Marks.behind_place(after), after
        self.ask()
        self.joining = None

    def ask(self) -> None:
        """What the leader holds has to come, whatever the server has that is read from."""
        self.marks.expect(len(self.log), len(self.log))
        self.asked_at = self.seconds()

    @property
    def end(self) -> int:
        """Of the log, as the server knows it that is read from."""
        return len(self.log) if self.server_end is None else min(self.server_end, len(self.log))

    def notice(self) -> bool:
        """The log's beginning is looked at now and then: it may have passed what was read."""
        if self.joining is not None or not self.connected or self.publishes_only:
            return False
        if self.marks.begins(self.log.first) is not None:
            self.joining, self.following = Joining(self, self.log.first - 1), False
            return True
        self.ask()
        return False

    def merge(self) -> bool:
        """What waits for a broker that takes nothing becomes one change per key."""
        queue = self.publisher.queue
        rows = self.publisher.waiting
        if self.connected or rows < 2:
            return False
        merged = coalesce(queue)
        self.merged += rows - len(merged)
        self.publisher.queue = [merged]
        self.replica.replaced(self.publisher.sent + 1, merged)
        return rows > len(merged)

    def resume(self) -> bool:
        """An operator has looked, and lets everything pass that is in the log by now."""
        if not self.gate.halted or self.writer.busy:
            return False
        self.halted, self.asks = "", False
        self.gate.resume(len(self.log))
        return True

    def release(self, now: int) -> bool:
        if self.writer.busy or not self.settled:
            return False
        held = self.gate.released()
        if not held or self.joining is not None:
            return bool(held)
        self._judge([a.delta for a in held], [a.sequence for a in held], now)
        return True

    def level(self) -> bool:
        """Nothing of the log waits to be read or written."""
        waits = self.joining is not None or self.writer.busy or self.gate.held
        return not waits and self.connected and self.read >= self.end and not self.marks.behind

    @property
    def read(self) -> int:
        """Where the last message stands that came."""
        return self.marks.received

    def sync(self) -> Sync:
        """What the node says of itself."""
        ready = self.joined and self.following and self.connected and not self.gate.halted
        return self.sync_gate.look(
            self.seconds(),
            ready=ready,
            level=self.level(),
            newest=self.writer.newest,
        )

    def settle(self, now: int) -> bool:
        """Rule of the start: operations older than the probes have to end first."""
        if self.settled or self.older_go_on():
            return False
        self.replica.settled(now)
        self.settled = True
        return True

    def older_go_on(self) -> bool:
        attached, running = self.kernel.attached_at, self.kernel.running
        assert attached is not None
        return any(o is not None and o.began < attached for o in running)

    def drain(self, now: int) -> bool:
        count = min(len(self.kernel.ring), 3)
        if count:
            rows = [self.kernel.ring.popleft() for _ in range(count)]
            self.capture(DeltaBatch.concatenate(rows))
            self.drained_to = max(self.drained_to, int(rows[-1].left[0]))
        else:
            self.drained_to = now
        self.watermark = self.kernel.oldest(now) - 1
        self.replica.drained(self.watermark)
        self.replica.forget(self.watermark)
        return count > 0

    def capture(self, batch: DeltaBatch) -> None:
        """Own changes, seen or found."""
        self.replica.capture(batch)
        self.publisher.queue.append(batch)
        lasting = batch.take(batch.ops != Op.EVICT)
        self.stale += sum(one not in self.kernel.wrote for one in entries(lasting))

    def judge(self, messages: int, now: int) -> bool:
        """The hand-over to the writer thread."""
        ready = self.settled and self.connected and not self.publishes_only
        ready = ready and self.joining is None and not self.writer.busy and not self.gate.halted
        first = max(self.read, self.log.first - 1)  # what is gone is passed over without a word
        if not ready or first >= self.end:
            return False
        end = min(first + messages, self.end)
        if messages > 1:
            for place in range(first + 1, end + 1):
                self.marks.came(place)
        self.marks.received = end  # others' messages may lie in between
        self.messages_read += end - first
        deltas, places = self.log.messages[first:end], range(first + 1, end + 1)
        arrivals = [Arrival(at, delta) for at, delta in zip(places, deltas, strict=True)]
        if self.gate.admits(arrivals):
            self._judge(deltas, list(places), now)
        return True

    def _judge(self, deltas: list[Delta], places: list[int], now: int) -> None:
        dirty = self.replica.dirty_keys
        self.unasked += self.asks
        verdict = self.replica.judge(deltas, places)
        self.writer.begin(verdict, now, places[-1])
        self.writer.settles(self.replica.dirty_keys < dirty)

    def rejoin(self, now: int) -> bool:
        """All of the stream has been judged: the map takes what it missed."""
        ready = self.rejoining and self.settled and self.connected and not self.writer.busy
        if not ready or not self.level():
            return False
        self.rejoining = False
        self.writer.begin(self.replica.rejoined(), now, self.read)
        return True

    def save(self) -> bool:
        """Write the position to disk. In between, what is there may be old."""
        position = (self.log.generation, self.position())
        unfit = self.rejoining or not self.following or self.replica.unwritten_rows > 0
        if self.publishes_only or unfit or self.saved == position:
            return False
        self.saved, self.bridged = position, True
        return True

    def position(self) -> int:
        """Everything up to here is written."""
        applied = self.writer.applied
        return max(self.marks.verified, applied) if self.level() else applied

    def sweep(self, now: int, *, quiet: bool) -> bool:
        """A whole reading: at the start, after a loss, or again and again."""
        if self.one_way or not self.settled or self.rejoining:
            return False
        if self.level():
            self.joined = self.following = self.gate.armed = True
        return self.sweeper.step(now, quiet=quiet)


def folding_of(policy: ConflictPolicy) -> PolicyFold | None:
    return None if policy is ConflictPolicy.STREAM else PolicyFold(policy, 1, 8)
