"""Rules of the core and of its owner, each with a way to take it away.

Without any one of them the simulation must fail: that is the proof that it can find the fault. A
mutation replaces attributes, of the production core wherever the rule lives there.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from unittest import mock

import numpy as np

from bridge.apply.gate import ApplyGate
from bridge.apply.loading import Load
from bridge.bus.marks import Marks
from bridge.core import (
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
from bridge.core.replica import Replica, Verdict
from bridge.core.snapshots import Run
from bridge.core.touches import FOREVER, Touches
from bridge.model import ConflictPolicy
from bridge.node.synced import SyncGate
from tests.simulation import broken, node as node_steps
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
        ((Doubts, "_of", broken.by_exit_time),),
    ),
    "2 pending keys": Mutation(
        "changes of others on keys with an unobserved own change are skipped",
        ((PendingChanges, "without", lambda self, batch: batch),),
    ),
    "2 newest own message": Mutation(
        "a key is pending until its newest own message has come back",
        ((Replica, "_observe", broken.first_own_message),),
    ),
    "2 cut messages": Mutation(
        "a message may end inside of a capture",
        ((Pending, "behind", lambda self, sequence: self),),
    ),
    "2 written back": Mutation(
        "a key in doubt gets its own message's value when that comes back",
        ((Replica, "_observe", broken.not_written_back),),
    ),
    "2 incarnations": Mutation(
        "messages of one's earlier instances are those of somebody else",
        ((Replica, "judge", broken.own_by_node),),
    ),
    "2 before the first write": Mutation(
        "a write of the bridge counts from before it begins",
        ((Touches, "doubts", broken.only_finished),),
    ),
    "2 seen before": Mutation(
        "a message that is stored twice counts once",
        ((OriginTracker, "admit", lambda self, delta: Admission(0, 0)),),
        where=lambda profile: profile.leaders_change and profile.nodes > 2,
    ),
    "2 echo": Mutation(
        "what the bridge writes is not captured",
        ((Writer, "land", broken.captures_echo),),
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
        ((Replica, "refuse", broken.refused_and_known),),
    ),
    "4 watermark": Mutation(
        "writes of the bridge are remembered until older changes have arrived",
        ((Doubts, "forget", broken.forget_everything),),
    ),
    "4 undrained": Mutation(
        "writes of the bridge are remembered while records wait in the ring",
        ((Doubts, "forget", broken.forget_undrained),),
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
        ((Replica, "_begin", broken.begin_unnoted),),
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
        ((Rejoin, "note", broken.note_as_foreign),),
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
        ((PolicyFold, "_summed", broken.last_part),),
        where=lambda profile: profile.policy == ConflictPolicy.SUM,
    ),
    "policy: owners": Mutation(
        "a change by another node than the key's owner is void",
        ((PolicyFold, "_owned", broken.anybody),),
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
        ((Run, "look", broken.looks_at(watermark=FOREVER)),),
        where=lambda profile: profile.snapshots and profile.crashes,
    ),
    "9 losses": Mutation(
        "a loss voids a snapshot",
        ((Run, "look", broken.looks_at(losses=0)), (snapshot_rules, "unfit", broken.never_unfit())),
        where=lambda profile: profile.snapshots and profile.ring_rows_max == 2,
    ),
    "10 holes": Mutation(
        "who meets a hole in the log loads a snapshot",
        ((Node, "notice", broken.passes_holes),),
        where=_snapshots,
    ),
    "10 the leader's word": Mutation(
        "the log is read to its end when its leader says so, not the server that is read from",
        ((Marks, "behind", False),),
        where=lambda profile: profile.lags,
    ),
    "11 deletes": Mutation(
        "changes that are merged keep their deletes",
        ((node_steps, "coalesce", broken.without_deletes),),
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
        ((SyncGate, "look", broken.synced_at_once),),
    ),
}
