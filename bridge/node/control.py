"""What a node answers to questions of its cluster: which maps it has, their digests, their entries.

A question about a map names a position of the stream. The answer waits until everything up to it
has been written to the map, so that all nodes speak of the same past; what came later may be in it.
"""

from __future__ import annotations

import asyncio
import base64
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from bridge.apply.gate import ApplyGate
from bridge.bus.control import Answer
from bridge.core.digests import BUCKETS_MAX, Digest, buckets_of
from bridge.errors import BridgeError
from bridge.kernel.maps import KernelMap
from bridge.model import U8, Cause, DeltaBatch, Op, Role
from bridge.node.halts import Halts
from bridge.node.lane import Lane
from bridge.node.verdicts import Verdicts
from bridge.wire.subjects import control_subject

REACH_SECONDS_MAX = 5.0
POLL_SECONDS = 0.02
ENTRIES_BYTES_MAX = 256 << 10  # keys and values of one answer
REPAIRED_KEYS_MAX = 4_096


class UnknownMapError(BridgeError):
    """The node does not bridge such a map, or has not joined with it yet."""


@dataclass(frozen=True, slots=True)
class MapView:
    """A map for whoever looks into it beside replication.

    ``sequence``: place in the stream up to which everything is written; ``level``: nothing waits.
    ``counted``: bits of a value that count in comparisons, ``None``: all.
    """

    map: KernelMap
    lane: Lane
    role: Role
    sequence: Callable[[], int]
    level: Callable[[], bool]
    counted: U8 | None = None
    layout: str = ""  # of the map's fields, empty where nothing tells
    gate: ApplyGate | None = None
    joined: bool = True

    def scan(self) -> Iterator[tuple[U8, U8]]:
        """The entries as they are compared: keys as they stand in the stream."""
        for keys, values in self.map.scan():
            counted = values if self.counted is None else values & self.counted
            yield self.lane.identity.keys(keys), counted

    def form(self) -> str:
        """What must be the same of two maps whose bytes are compared, whatever these mean."""
        sizes = f"{self.map.info.key_size}+{self.map.info.value_size} bytes"
        if self.counted is None:
            return sizes
        return f"{sizes}, compared in part ({zlib.crc32(self.counted.tobytes()):08x})"


class Control:
    """Answers one node's questions; see ``handle``."""

    def __init__(
        self,
        cluster: str,
        node: str,
        views: Callable[[], Mapping[str, MapView]],
        halts: Halts,
        verdicts: Verdicts,
    ) -> None:
        self.subjects = (control_subject(cluster), control_subject(cluster, node))
        self._verdicts = verdicts
        self._node = node
        self._views = views
        self._halts = halts

    async def handle(self, subject: str, question: Answer) -> Answer:
        """The answer. Raises ``BridgeError``, and ``ValueError`` and the like for nonsense."""
        if subject == self.subjects[0]:
            joined = {name: view for name, view in self._views().items() if view.joined}
            roles = {name: str(view.role) for name, view in joined.items()}
            return {"node": self._node, "maps": roles}
        verb = subject.rpartition(".")[2]
        view = self._view(str(question["map"]))
        match verb:
            case "digest":
                reached = await _reach(view, int(str(question["position"])))
                found = await asyncio.to_thread(_digest, view, question)
            case "entries":
                reached = await _reach(view, int(str(question["position"])))
                found = await asyncio.to_thread(_entries, view, question)
            case "resume":
                reached = True
                found = await asyncio.to_thread(self._resume, view, question)
            case "verified":
                reached = True
                found = self._verdicts.take(question)
            case "repair":
                reached = True
                found = await asyncio.to_thread(_repair, view, question)
            case _:
                raise BridgeError(f"question: not known (got {verb!r})")
        return {"node": self._node, "reached": reached, **found}

    def _resume(self, view: MapView, question: Answer) -> Answer:
        """Open the gate of a map that was halted."""
        name = str(question["map"])
        if view.gate is None or not view.gate.halted:
            raise BridgeError(f"map {name}: is not halted on node {self._node}")
        reason = view.gate.halted
        self._halts.resume(name)
        view.gate.resume(int(str(question["position"])))
        return {"reason": reason, "held": view.gate.held}

    def _view(self, name: str) -> MapView:
        view = self._views().get(name)
        if view is None:
            raise UnknownMapError(f"map {name}: not running on node {self._node}")
        return view


async def _reach(view: MapView, position: int) -> bool:
    """Wait until the map holds what the stream held at ``position``, for a while."""
    deadline = time.monotonic() + REACH_SECONDS_MAX
    while view.sequence() < position and not view.level():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(POLL_SECONDS)
    return True


def _digest(view: MapView, question: Answer) -> Answer:
    digest = Digest(int(str(question["seed"])), int(str(question["buckets"])))
    sequence = view.sequence()
    for keys, values in view.scan():
        digest.add(keys, values)
    return {
        "sequence": sequence,
        "entries": int(digest.counts.sum()),
        "form": view.form(),
        "layout": view.layout,
        "evicts": not view.lane.identity.missing_means_deleted,
        "sums": pack(digest.sums.view(np.uint8)),
        "counts": pack(digest.counts.view(np.uint8)),
    }


def _entries(view: MapView, question: Answer) -> Answer:
    """Entries of the wanted buckets, as far as they fit one answer."""
    wanted = question["wanted"]
    if not isinstance(wanted, list):
        raise ValueError("wanted: must be a list")
    buckets = int(str(question["buckets"]))
    if not 1 <= buckets <= BUCKETS_MAX:
        raise ValueError(f"buckets: need 1 to {BUCKETS_MAX} (got {buckets})")
    is_wanted = np.zeros(buckets, np.bool_)
    is_wanted[np.array(wanted, np.intp)] = True
    seed, room = int(str(question["seed"])), ENTRIES_BYTES_MAX
    found: list[tuple[U8, U8]] = []
    info = view.map.info
    truncated = False
    for keys, values in view.scan():
        rows = np.flatnonzero(is_wanted[buckets_of(keys, seed, len(is_wanted))])
        fitting = rows[: max(room, 0) // (info.key_size + info.value_size)]
        truncated |= len(fitting) < len(rows)
        room -= len(fitting) * (info.key_size + info.value_size)
        found.append((keys[fitting], values[fitting]))
    return {
        "key_size": info.key_size,
        "value_size": info.value_size,
        "truncated": truncated,
        "keys": pack(np.concatenate([np.zeros(0, np.uint8), *(k.ravel() for k, _ in found)])),
        "values": pack(np.concatenate([np.zeros(0, np.uint8), *(v.ravel() for _, v in found)])),
    }


def _repair(view: MapView, question: Answer) -> Answer:
    """Publish what the map holds for some keys as own changes, so that all nodes take it."""
    if not view.role.publishes:
        raise BridgeError(f"map {view.map.info.name}: is not published by this node")
    info = view.map.info
    keys = unpack(question["keys"], info.key_size)
    if len(keys) > REPAIRED_KEYS_MAX:
        raise BridgeError(f"repair: too many keys (got {len(keys)}, at most {REPAIRED_KEYS_MAX})")
    began = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    held = [view.map.lookup(key.tobytes()) for key in keys]
    ended = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    published = 0
    for op in (Op.DELETE, Op.UPDATE):
        rows = [n for n, value in enumerate(held) if (value is not None) == (op is Op.UPDATE)]
        if not rows:
            continue
        raw = b"".join(held[n] or bytes(info.value_size) for n in rows)
        values = np.frombuffer(raw, np.uint8).reshape(len(rows), info.value_size)
        batch = DeltaBatch.of_entries(
            op, keys[rows], values, ended, began=began, cause=Cause.REPAIR
        )
        if not view.lane.sink(batch):
            raise BridgeError("repair: the way out is full, the broker takes nothing")
        published += len(rows)
    return {"published": published}


def pack(rows: U8) -> str:
    """Bytes as they stand in an answer."""
    return base64.b64encode(np.ascontiguousarray(rows).tobytes()).decode()


def unpack(text: object, width: int) -> U8:
    """``u8[n, width]`` out of an answer; raises ``ValueError``."""
    return np.frombuffer(base64.b64decode(str(text), validate=True), np.uint8).reshape(-1, width)
