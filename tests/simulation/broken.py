"""Parts of the core and of its owner as they are without one rule: see ``rules``.

Each function stands in for a method or a function of the same arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from unittest import mock

from bridge.core import (
    coalesce as coalescing,
    snapshots as snapshot_rules,
)
from bridge.core.doubts import Doubts
from bridge.core.policies import PolicyFold
from bridge.core.rejoin import Rejoin
from bridge.core.replica import Replica, Verdict
from bridge.core.snapshots import Facts, Run, Step
from bridge.core.touches import FOREVER, Touches
from bridge.model import Delta, DeltaBatch, Op
from bridge.node.synced import Sync, SyncGate
from tests.simulation.node import Node
from tests.simulation.writing import Writer

_doubts = Doubts._of
_observe = Replica._observe
_judge = Replica.judge
_touch_doubts = Touches.doubts
_note = Rejoin.note
_refuse = Replica.refuse
_land = Writer.land
_look = Run.look
_unfit = snapshot_rules.unfit
_coalesce = coalescing.coalesce
_sync = SyncGate.look


def by_exit_time(self: Doubts, batch: DeltaBatch) -> object:
    return _doubts(self, replace(batch, entered=batch.left))


def first_own_message(self: Replica, delta: object) -> object:
    again = _observe(self, delta)  # type: ignore[arg-type]
    self._pending.drop_from(0)
    return again


def not_written_back(self: Replica, delta: object) -> object:
    _observe(self, delta)  # type: ignore[arg-type]
    return []


def own_by_node(self: Replica, deltas: list[Delta], sequences: Sequence[int] = ()) -> Verdict:
    own = self.origin
    taken = [replace(d, origin=own) if d.origin.node == own.node else d for d in deltas]
    return _judge(self, taken, sequences)


def only_finished(self: Touches, keys: object, entered: object) -> object:
    unfinished = [touch for touch in self._list if touch.end == FOREVER]
    self._list = [touch for touch in self._list if touch.end != FOREVER]
    found = _touch_doubts(self, keys, entered)  # type: ignore[arg-type]
    self._list += unfinished
    return found


def refused_and_known(self: Replica, batch: DeltaBatch, *, full: bool) -> None:
    with mock.patch.object(self, "_fingerprints", None):
        _refuse(self, batch, full=full)


def begin_unnoted(self: Replica, writes: DeltaBatch | None) -> object:
    return writes and self._doubts.touches.begin(writes.keys)


def forget_everything(self: Doubts, watermark: int) -> None:
    self.touches.forget(FOREVER - 1)


def forget_undrained(self: Doubts, watermark: int) -> None:
    self._drained = FOREVER
    self.touches.forget(max((t.end for t in self.touches._list if t.end < FOREVER), default=0))


def anybody(self: PolicyFold, node: str, said: DeltaBatch, rows: object) -> object:
    return said.ops == Op.UPDATE, said.values.copy()


def last_part(self: PolicyFold, parts: object, node: str, said: DeltaBatch, rows: object) -> object:
    return anybody(self, node, said, rows)


def captures_echo(self: Writer, now: int) -> bool:
    landing = self.landing
    done = _land(self, now)
    if landing is not None and self.landing is None and landing.verdict.writes is not None:
        self.node.kernel.ring.append(landing.verdict.writes)
    return done


def looks_at(**facts: object) -> Callable[[Run, float, Facts], Step]:
    return lambda self, now, found: _look(self, now, replace(found, **facts))  # type: ignore[arg-type]


def never_unfit(**facts: object) -> Callable[[Facts], str]:
    return lambda found: _unfit(replace(found, **facts))  # type: ignore[arg-type]


def without_deletes(batches: Sequence[DeltaBatch]) -> DeltaBatch:
    merged = _coalesce(batches)
    return merged.take(merged.ops != Op.DELETE)


def passes_holes(self: Node) -> bool:
    if self.joining is None and self.connected and self.read == len(self.log):
        self.marks.verified = self.read
    return False


def note_as_foreign(self: Rejoin, sequence: int, batch: DeltaBatch, *, foreign: bool) -> None:
    _note(self, sequence, batch, foreign=True)


def synced_at_once(self: SyncGate, now: float, *, ready: bool, level: bool, newest: float) -> Sync:
    return _sync(self, now, ready=True, level=True, newest=now)
