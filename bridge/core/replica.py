"""The judge of one map: which changes of the stream are written, which are our own.

Invariant: the order of the stream decides. An own change is *pending* from the moment it is
captured until its message has come back; while a key is pending, changes of others on it are
skipped, because the own one comes later in the stream and wins everywhere. A key is *dirty* when an
own change of it overlapped a foreign write, another own change or the attaching of the probes, so
that nobody knows which of them the kernel kept: when the own message comes back its value is
written again. So when writing stops and the stream is drained, every replica equals the fold of
the stream.

A node that only publishes writes nothing back: its dirty keys are to be read again and captured as
own changes (``reread``). No foreign value can stand in its map, so that is always its own.

Judgement happens only in ``judge``, at the hand-over to the writer, and is atomic with ``capture``:
the owner of a ``Replica`` calls both under one lock. While nothing is pending and no key is dirty,
a batch passes without any work per key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bridge.core.batches import folded_to_last, not_evicted, without_evictions
from bridge.core.doubts import Doubts
from bridge.core.fingerprints import Fingerprints
from bridge.core.foldscan import FoldScan
from bridge.core.keys import KeySet
from bridge.core.origins import OriginTracker
from bridge.core.pending import PendingChanges
from bridge.core.policies import Folded, PolicyFold
from bridge.core.rejoin import Rejoin
from bridge.core.touches import Touch
from bridge.core.unwritten import Unwritten
from bridge.model import U8, Delta, DeltaBatch, Op, Origin


@dataclass(frozen=True, slots=True)
class Verdict:
    """``writes``: the last change per key, to be written now; set ``touch.end`` afterwards."""

    writes: DeltaBatch | None
    touch: Touch | None
    changes: int  # foreign changes judged
    superseded: int  # of these, skipped for a pending own change
    duplicates: int  # seen before
    missed: int  # jumped over by an origin's sequence


class Replica:
    """State of one map on one node. ``origin`` names this node's changes of this start."""

    def __init__(
        self,
        origin: Origin,
        *,
        publishes: bool,
        applies: bool,
        fingerprints: Fingerprints | None = None,  # only where scans are compared with the fold
        rereads: bool = False,  # the owner asks ``reread``, on a node that only publishes
        folding: PolicyFold | None = None,  # where not the order of the stream alone decides
    ) -> None:
        self.origin = origin
        self.captured = 0  # own changes so far: the last own sequence
        self._publishes = publishes
        self._applies = applies
        self._rereads = rereads and not applies
        self._fingerprints = fingerprints
        self.scan = FoldScan(fingerprints)
        self._folding = folding
        self._pending = PendingChanges()
        self._doubts = Doubts()
        self._origins = OriginTracker()
        self._full = Unwritten()  # not in the map, and not in the fingerprints
        self._blocked = Unwritten()  # nobody knows what the map holds instead
        self._rejoin: Rejoin | None = None
        self._observed = 0  # the newest own sequence that came back
        self._again = 0  # own changes up to here come back once more

    @property
    def pending_rows(self) -> int:
        return len(self._pending)

    @property
    def dirty_keys(self) -> int:
        return len(self._doubts.dirty)

    @property
    def observed(self) -> int:
        """The newest own sequence that came back in the stream."""
        return self._observed

    @property
    def unwritten_rows(self) -> int:
        return len(self._full) + len(self._blocked)

    @property
    def forgotten_rows(self) -> int:
        """Changes that the kernel did not take and nobody will try again: there were too many."""
        return self._full.forgotten + self._blocked.forgotten

    def capture(self, batch: DeltaBatch) -> None:
        """Own changes, in the order in which they will be published."""
        self.captured += len(batch)
        # An eviction says nothing of what the key should be: it is no reason to skip others.
        lasting = not_evicted(batch)
        if self._fingerprints is not None:
            self._fingerprints.note(self._doubts.sure(batch, lasting))
        if self._applies:
            self._pending.add(self.captured - len(batch) + 1, batch, lasting)
        batch = batch if lasting is None else batch.take(lasting)
        if not len(batch) or not (self._applies or self._rereads):
            return
        if self._applies:
            self._full.drop(batch.keys)
            self._blocked.drop(batch.keys)
        self._doubts.note(batch)

    def recall(self, batch: DeltaBatch) -> None:
        """What this node had published before: the fold begins with it. Where nothing is applied.

        To be called before the first change is captured.
        """
        assert not self._applies, "the judge notes what it reads"
        assert self._fingerprints is not None, "scans are not compared for this map"
        self._fingerprints.note(batch)

    def replaced(self, first: int, batch: DeltaBatch) -> None:
        """Own changes from sequence ``first`` on have become ``batch``: fewer, with new numbers.

        None of them was sent. To be called under the lock that ``capture`` is called under.
        """
        self.captured = first + len(batch) - 1
        self._pending.drop_from(first)
        if self._applies:
            self._pending.add(first, batch, not_evicted(batch))

    def attached(self) -> None:
        """Operations older than the probes may still be going on, and will not be recorded.

        All own changes are in doubt until ``settled``; the owner judges and scans only after it.
        """
        self._doubts.attached()

    def settled(self, now: int) -> None:
        """Every operation that is older than the probes had ended by ``now``."""
        self._doubts.settled(now)

    def reread(self, keys_max: int) -> U8 | None:
        """Keys whose value in the map is to be captured again; only where nothing is applied.

        To be called with the lock held; the reading itself needs none. What is read counts as an
        own change that began before the reading and left after it, so a change that overlaps it
        puts the key in doubt once more.
        """
        if self._applies or not self._doubts.dirty:
            return None
        return self._doubts.dirty.take(keys_max)

    def begin_scan(self, now: int) -> None:
        """The map is about to be read, step by step as ``scan`` says. At most one scan is open.

        What it finds beyond the fold counts as own changes: hand it to ``capture`` in any case.
        """
        self.scan.begin(self._doubts.since(now, self._blocked.keys))

    def drained(self, watermark: int) -> None:
        """Own changes that began at or before ``watermark`` have been captured, all of them.

        Before the first call there is nothing to wait for: ``forget`` alone decides.
        """
        self._doubts.drained(watermark)

    def forget(self, watermark: int) -> None:
        """No operation that began at or before ``watermark`` is still going on."""
        self._doubts.forget(watermark)

    def rejoin(self, saved: int) -> None:
        """The map lived on since the stream's position ``saved`` had been applied to it.

        Until ``rejoined`` nothing is written. To be called before the first judgement.
        """
        self._rejoin = Rejoin(saved)

    def rejoined(self) -> Verdict:
        """All of the stream has been judged: what the map has to take from it."""
        assert self._rejoin is not None, "the map did not rejoin"
        writes, self._rejoin = self._rejoin.finish(), None
        if writes is not None:
            writes = self._pending.without(writes)  # captured since
        if writes is None or not len(writes):
            return Verdict(None, None, 0, 0, 0, 0)
        return Verdict(writes, self._begin(writes), 0, 0, 0, 0)

    def judge(self, deltas: Sequence[Delta], sequences: Sequence[int] = ()) -> Verdict:
        """Messages in stream order; several at once are folded to one write per key.

        ``sequences``: their places in the stream, which only a map that rejoins needs.
        """
        kept: list[DeltaBatch] = []
        changes = superseded = duplicates = missed = 0
        for number, delta in enumerate(deltas):
            admission = self._origins.admit(delta)
            duplicates += admission.first_row
            missed += admission.missed
            batch = delta.batch
            if admission.first_row:
                batch = batch.take(slice(admission.first_row, None))
            folded = None
            if self._folding is not None:
                folded = self._folding.take(delta.origin.node, batch)
            if delta.origin == self.origin and delta.last_sequence > self._again:
                again = self._observe(delta)
                if folded is not None:
                    batch, again = folded.batch, self._settled(folded, again)
                if self._rejoin is not None:
                    self._rejoin.note(sequences[number], batch, foreign=False)
                    for batch in again:
                        self._rejoin.note(sequences[number], batch, foreign=True)
                    continue
                kept.extend(again)
                continue
            changes += len(batch)
            if folded is not None:
                own = delta.origin.node == self.origin.node
                batch = folded.batch.take(
                    folded.differs | folded.changed if own else folded.changed
                )
            free = self._pending.without(batch)
            superseded += len(batch) - len(free)
            free = without_evictions(free)
            if self._rejoin is not None:
                foreign = delta.origin.node != self.origin.node
                self._rejoin.note(sequences[number], free, foreign=foreign)
                if self._fingerprints is not None:
                    self._fingerprints.note(free)
            elif len(free):
                kept.append(free)
        writes = folded_to_last(kept)
        if writes is not None:
            self._full.drop(writes.keys)
            self._blocked.drop(writes.keys)
        return Verdict(writes, self._begin(writes), changes, superseded, duplicates, missed)

    def jump(self, stored: int, *, learns: bool = False) -> U8 | None:
        """The position moves to a snapshot's, which holds own changes up to sequence ``stored``.

        They will not come back: their keys are pending no more, and take what the snapshot says,
        be it that it lacks them. The answer are these keys; ``None``: there are none.
        The position may move back, so own messages that were seen come once more: written then.
        ``learns``: a map that rejoins goes on to; otherwise it is loaded instead.
        """
        settled = self._pending.before(stored + 1)
        self._pending.release(stored)
        self._origins.jump()
        self._again = self._observed
        if not learns:
            self._load_instead()
        dirty = self._doubts.dirty
        if dirty:
            keys = dirty.all()
            dirty.resolve(keys[~self._pending.holds(keys)])
        return settled

    def _load_instead(self) -> None:
        """What was noted to be taken later is not; nor is it what the stream says."""
        rejoin, self._rejoin = self._rejoin, None
        noted = None if rejoin is None else rejoin.abandon()
        if noted is None or self._fingerprints is None:
            return
        gone = self._pending.without(noted)
        self._fingerprints.note(replace(gone, ops=np.full(len(gone), Op.DELETE, np.uint8)))

    def load(self, batch: DeltaBatch) -> Verdict:
        """A part of a snapshot, or the deletes of what it lacks: changes of others.

        A snapshot holds entries, and not what a policy makes them of: owners, parts, what the map
        was about to be told. So there is none for a map with a policy.
        """
        assert self._folding is None, "a policy folds the log from its beginning"
        free = without_evictions(self._pending.without(batch))
        skipped = len(batch) - len(free)
        if self._rejoin is not None:  # it only tells what the stream says
            if self._fingerprints is not None:
                self._fingerprints.note(free)
            return Verdict(None, None, 0, skipped, 0, 0)
        self._full.drop(free.keys)
        self._blocked.drop(free.keys)
        writes = free if len(free) else None
        return Verdict(writes, self._begin(writes), len(batch), skipped, 0, 0)

    def refuse(self, batch: DeltaBatch, *, full: bool) -> None:
        """The kernel did not take these writes of the last verdict; ``retry`` gives them again.

        ``full``: because the map had no room, so the keys are not in it.
        """
        batch = self._pending.without(batch)  # captured since the judgement
        (self._full if full else self._blocked).add(batch)
        if full and self._fingerprints is not None and len(batch):
            self._fingerprints.note(replace(batch, ops=np.full(len(batch), Op.DELETE, np.uint8)))

    def retry(self, rows_max: int) -> Verdict:
        """Writes that the kernel did not take before, at most ``rows_max``."""
        batch = self._blocked.take(rows_max) or self._full.take(rows_max)
        return Verdict(batch, self._begin(batch), 0, 0, 0, 0)

    def _begin(self, writes: DeltaBatch | None) -> Touch | None:
        if writes is None or not self._publishes:
            return None
        if self._fingerprints is not None:
            self._fingerprints.note(writes)
        return self._doubts.touches.begin(writes.keys)

    def _observe(self, delta: Delta) -> list[DeltaBatch]:
        """An own message came back: what of it must be written again.

        A dirty key waits for its newest own change. A message may end inside of what was captured
        at once: what it holds is pending no more, for the others' changes behind it count.
        """
        self._pending.release(delta.last_sequence)
        self._observed = delta.last_sequence
        dirty, keys = self._doubts.dirty, delta.batch.keys
        if not dirty:
            return []
        resolved = dirty.holds(keys) & ~self._pending.holds(keys)
        if not resolved.any():
            return []
        again = delta.batch.take(resolved)
        dirty.resolve(again.keys)
        return [without_evictions(again)]

    def _settled(self, folded: Folded, again: list[DeltaBatch]) -> list[DeltaBatch]:
        """What a policy made of an own message, where the map may hold something else."""
        needed = folded.differs.copy()
        for batch in again:
            needed |= KeySet(batch.keys).holds(folded.batch.keys)
        return [self._pending.without(folded.batch.take(needed))]
