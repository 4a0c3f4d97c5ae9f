"""Rules of the core and of its owner, each with a way to take it away.

Without any one of them the simulation must fail: that is the proof that it can find the fault. A
mutation replaces attributes, of the production core wherever the rule lives there.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from unittest import mock

import numpy as np

from bridge.apply.gate import ApplyGate
from bridge.apply.loading import Load
from bridge.core import (
    coalesce as coalescing,
    snapshots as snapshot_rules,
)
from bridge.core.doubts import Doubts
from bridge.core.fingerprints import Fingerprints
from bridge.core.foldpart import Noted
from bridge.core.joining import Acks
from bridge.core.origins import Admission, OriginTracker
from bridge.core.overlaps import Overlaps
from bridge.core.pending import Pending, PendingChanges
from bridge.core.policies import PolicyFold
from bridge.core.rejoin import Rejoin
from bridge.core.replica import Replica
from bridge.core.snapshots import Facts, Run, Step
from bridge.core.touches import FOREVER, Touches
from bridge.core.verdict import Verdict
from bridge.model import ConflictPolicy, Delta, DeltaBatch, Op
from bridge.node.synced import SyncGate
from tests.simulation import node as node_steps
from tests.simulation.node import Node
from tests.simulation.profile import Profile
from tests.simulation.publisher import Publisher
from tests.simulation.sweeping import Sweeper
from tests.simulation.taking import Taker
from tests.simulation.writing import Writer

Patch = tuple[object, str, object]


@dataclass(frozen=True, slots=True)
class Mutation:
    """``without``: the rule that is taken away, in words. ``where``: walks that it matters in."""

    without: str
    patches: tuple[Patch, ...]
    where: Callable[[Profile], bool] = lambda profile: True

    def concerns(self, seed: int) -> bool:
        return self.where(Profile.choose(random.Random(seed)))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for owner, name, value in self.patches:
                stack.enter_context(mock.patch.object(owner, name, value))
            yield


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


def _by_exit_time(self: Doubts, batch: DeltaBatch) -> object:
    return _doubts(self, replace(batch, entered=batch.left))


def _first_own_message(self: Replica, delta: object) -> object:
    again = _observe(self, delta)  # type: ignore[arg-type]
    self._pending.drop_from(0)
    return again


def _not_written_back(self: Replica, delta: object) -> object:
    _observe(self, delta)  # type: ignore[arg-type]
    return []


def _own_by_node(self: Replica, deltas: list[Delta], sequences: Sequence[int] = ()) -> Verdict:
    own = self.origin
    taken = [replace(d, origin=own) if d.origin.node == own.node else d for d in deltas]
    return _judge(self, taken, sequences)


def _only_finished(self: Touches, keys: object, entered: object) -> object:
    unfinished = [touch for touch in self._list if touch.end == FOREVER]
    self._list = [touch for touch in self._list if touch.end != FOREVER]
    found = _touch_doubts(self, keys, entered)  # type: ignore[arg-type]
    self._list += unfinished
    return found


def _refused_and_known(self: Replica, batch: DeltaBatch, *, full: bool) -> None:
    with mock.patch.object(self, "_fingerprints", None):
        _refuse(self, batch, full=full)


def _begin_unnoted(self: Replica, writes: DeltaBatch | None) -> object:
    return writes and self._doubts.touches.begin(writes.keys)


def _forget_everything(self: Doubts, watermark: int) -> None:
    self.touches.forget(FOREVER - 1)


def _forget_undrained(self: Doubts, watermark: int) -> None:
    self._drained = FOREVER
    self.touches.forget(max((t.end for t in self.touches._list if t.end < FOREVER), default=0))


def _anybody(self: PolicyFold, node: str, said: DeltaBatch, rows: object) -> object:
    return said.ops == Op.UPDATE, said.values.copy()


def _last_part(
    self: PolicyFold, parts: object, node: str, said: DeltaBatch, rows: object
) -> object:
    return _anybody(self, node, said, rows)


def _captures_echo(self: Writer, now: int) -> bool:
    landing = self.landing
    done = _land(self, now)
    if landing is not None and self.landing is None and landing.verdict.writes is not None:
        self.node.kernel.ring.append(landing.verdict.writes)
    return done


def _looks_at(**facts: object) -> Callable[[Run, float, Facts], Step]:
    return lambda self, now, found: _look(self, now, replace(found, **facts))  # type: ignore[arg-type]


def _never_unfit(**facts: object) -> Callable[[Facts], str]:
    return lambda found: _unfit(replace(found, **facts))  # type: ignore[arg-type]


def _without_deletes(batches: Sequence[DeltaBatch]) -> DeltaBatch:
    merged = _coalesce(batches)
    return merged.take(merged.ops != Op.DELETE)


def _passes_holes(self: Node) -> bool:
    if self.joining is None and self.connected and self.read == len(self.log):
        self.verified = self.read
    return False


def _snapshots(profile: Profile) -> bool:
    return profile.snapshots and profile.forgets


RULES: dict[str, Mutation] = {
    "1 overlaps the bridge": Mutation(
        "a change that overlaps a write of the bridge is in doubt",
        ((Touches, "doubts", lambda self, keys, entered: None),),
    ),
    "1 overlaps an own change": Mutation(
        "a change that overlaps an own one is in doubt",
        ((Overlaps, "add", lambda self, keys, entered, left: None),),
    ),
    "1 entry time": Mutation(
        "it is the begin of a change that counts, not its end",
        ((Doubts, "_of", _by_exit_time),),
    ),
    "2 pending keys": Mutation(
        "changes of others on keys with an unobserved own change are skipped",
        ((PendingChanges, "without", lambda self, batch: batch),),
    ),
    "2 newest own message": Mutation(
        "a key is pending until its newest own message has come back",
        ((Replica, "_observe", _first_own_message),),
    ),
    "2 cut messages": Mutation(
        "a message may end inside of a capture",
        ((Pending, "behind", lambda self, sequence: self),),
    ),
    "2 written back": Mutation(
        "a key in doubt gets its own message's value when that comes back",
        ((Replica, "_observe", _not_written_back),),
    ),
    "2 incarnations": Mutation(
        "messages of one's earlier instances are those of somebody else",
        ((Replica, "judge", _own_by_node),),
    ),
    "2 before the first write": Mutation(
        "a write of the bridge counts from before it begins",
        ((Touches, "doubts", _only_finished),),
    ),
    "2 seen before": Mutation(
        "a message that is stored twice counts once",
        ((OriginTracker, "admit", lambda self, delta: Admission(0, 0)),),
        where=lambda profile: profile.leaders_change and profile.nodes > 2,
    ),
    "2 echo": Mutation(
        "what the bridge writes is not captured",
        ((Writer, "land", _captures_echo),),
    ),
    "3 end of a write": Mutation(
        "a write of the bridge lasts until after its system call",
        ((Writer, "landed_at", lambda self, landing, now: landing.began),),
    ),
    "3 refused writes": Mutation(
        "what a full map refused is kept and tried again",
        ((Replica, "refuse", lambda self, batch, full: None),),
    ),
    "3 refused, not deleted": Mutation(
        "what a full map refused is not taken for deleted by a scan",
        ((Replica, "refuse", _refused_and_known),),
    ),
    "4 watermark": Mutation(
        "writes of the bridge are remembered until older changes have arrived",
        ((Doubts, "forget", _forget_everything),),
    ),
    "4 undrained": Mutation(
        "writes of the bridge are remembered while records wait in the ring",
        ((Doubts, "forget", _forget_undrained),),
    ),
    "5 open scan": Mutation(
        "a scan leaves out what was captured and judged since it began",
        ((Fingerprints, "begin", lambda self: None),),
    ),
    "5 seen anew": Mutation(
        "what an earlier scan saw may be gone",
        ((Noted, "unseen", lambda self: replace(self, late=np.zeros(len(self), np.bool_))),),
    ),
    "5 own writes of the bridge": Mutation(
        "a scan leaves out what the bridge wrote meanwhile",
        ((Touches, "since", lambda self, began, others=None: None),),
    ),
    "5 keys in doubt": Mutation(
        "a scan leaves out keys that are in doubt when it begins",
        ((Doubts, "since", lambda self, began, blocked: self.touches.since(began)),),
    ),
    "5 losses": Mutation(
        "after a loss the whole map is compared",
        ((Sweeper, "lost_more", lambda self: False),),
        where=lambda profile: profile.ring_rows_max == 2,
    ),
    "5 evictions": Mutation(
        "a key that an LRU map lacks was not deleted",
        ((Sweeper, "sees_deletes", lambda self: True),),
        where=lambda profile: profile.lru,
    ),
    "5 fold": Mutation(
        "a scan is compared with the stream, foreign changes included",
        ((Replica, "_begin", _begin_unnoted),),
    ),
    "6 attaching": Mutation(
        "nothing is judged or scanned while operations older than the probes go on",
        ((Node, "older_go_on", lambda self: False), (Replica, "attached", lambda self: None)),
        where=lambda profile: profile.crashes,
    ),
    "8 a map that lived on": Mutation(
        "the history is not written over a map that lived on",
        (
            (Replica, "rejoin", lambda self, saved: None),
            (Replica, "rejoined", lambda self: Verdict(None, None, 0, 0, 0, 0)),
        ),
        where=lambda profile: profile.crashes and profile.keeps,
    ),
    "8 last change": Mutation(
        "only keys whose last change is by others take the stream's value",
        (
            (
                Rejoin,
                "note",
                lambda self, sequence, batch, foreign: _note(self, sequence, batch, foreign=True),
            ),
        ),
        where=lambda profile: profile.crashes and profile.keeps,
    ),
    "8 what others changed": Mutation(
        "a map that lived on takes what others changed meanwhile",
        ((Rejoin, "finish", lambda self: None),),
        where=lambda profile: profile.crashes and profile.saves,
    ),
    "policy: own changes that lost": Mutation(
        "what a policy made of an own change is written where it is something else",
        ((Replica, "_settled", lambda self, folded, again: again),),
    ),
    "policy: parts": Mutation(
        "the parts of all nodes are added up",
        ((PolicyFold, "_summed", _last_part),),
        where=lambda profile: profile.policy == ConflictPolicy.SUM,
    ),
    "policy: owners": Mutation(
        "a change by another node than the key's owner is void",
        ((PolicyFold, "_owned", _anybody),),
    ),
    "8 applied position": Mutation(
        "the position that is saved is that of finished writes",
        ((Node, "position", lambda self: self.read),),
        where=lambda profile: profile.crashes and profile.saves,
    ),
    "7 stored before the position": Mutation(
        "own changes that the snapshot holds are pending no more",
        ((Acks, "stored_by", lambda self, position: 0),),
        where=_snapshots,
    ),
    "7 own keys that it lacks": Mutation(
        "what a snapshot lacks of own stored changes is deleted",
        ((Load, "settles", lambda self, keys: None),),
        where=_snapshots,
    ),
    "7 strangers": Mutation(
        "keys that a snapshot lacks leave the map",
        ((Load, "strangers", lambda self: None),),
        where=_snapshots,
    ),
    "7 loaded, not rejoined": Mutation(
        "a map that lived on and then loads a snapshot takes what it says",
        ((Replica, "_load_instead", lambda self: None),),
        where=lambda profile: _snapshots(profile) and profile.crashes,
    ),
    "9 written": Mutation(
        "a snapshot's position is that of finished writes",
        ((Taker, "position", lambda self: self.node.read),),
        where=_snapshots,
    ),
    "9 captured": Mutation(
        "the manifest waits until what the scan has seen is captured",
        ((Run, "look", _looks_at(watermark=FOREVER)),),
        where=lambda profile: profile.snapshots and profile.crashes,
    ),
    "9 losses": Mutation(
        "a loss voids a snapshot",
        ((Run, "look", _looks_at(losses=0)), (snapshot_rules, "unfit", _never_unfit())),
        where=lambda profile: profile.snapshots and profile.ring_rows_max == 2,
    ),
    "10 holes": Mutation(
        "who meets a hole in the log loads a snapshot",
        ((Node, "notice", _passes_holes),),
        where=_snapshots,
    ),
    "11 deletes": Mutation(
        "changes that are merged keep their deletes",
        ((node_steps, "coalesce", _without_deletes),),
        where=lambda profile: profile.away,
    ),
    "11 new numbers": Mutation(
        "changes that are merged get new numbers, which their keys wait for",
        ((Replica, "replaced", lambda self, first, batch: None),),
        where=lambda profile: profile.away,
    ),
    "guard: not judged": Mutation(
        "the position stays where it was while messages are held back",
        ((ApplyGate, "held", 0),),
        where=lambda profile: profile.guarded and profile.crashes and profile.saves,
    ),
    "guard: over restarts": Mutation(
        "a map that was halted stays so over a restart",
        ((Node, "keep_halted", lambda self, reason: None),),
        where=lambda profile: profile.guarded and profile.crashes,
    ),
    "fencing": Mutation(
        "of two bridges with one name the one that was followed ends",
        ((Publisher, "fenced", lambda self: False),),
        where=lambda profile: profile.twins and not profile.leaders_change,
    ),
    "synced": Mutation(
        "a map is not synced before it has read what the log holds",
        (
            (
                SyncGate,
                "look",
                lambda self, now, *, ready, level, newest: _sync(
                    self, now, ready=True, level=True, newest=now
                ),
            ),
        ),
    ),
}
