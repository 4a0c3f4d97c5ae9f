"""One folded batch into one map: a delete batch, then an update batch.

Within a folded batch each key occurs once, so the two system calls commute; deletes go first to
make room in a map that is nearly full. The kernel stops a batch at its first failure and says how
many were done: an absent key is stepped over, a busy bucket is tried again, a full map refuses the
key, and everything behind it still goes on. Any other failure ends the batch. What was not written
is in the answer, row by row.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from bridge.errors import BridgeError
from bridge.kernel.errors import BUSY
from bridge.model import U8, DeltaBatch, MapInfo, Op

# A bucket that another context holds, and memory that a map without preallocation did not get.
PASSING = BUSY | {errno.ENOMEM}
BUSY_TRIES_MAX = 1_000
BUSY_PAUSE_SECONDS = 0.0005
# As numpy knows them: comparing a column with an enumeration is dearer than the comparison.
_UPDATE, _DELETE = np.uint8(Op.UPDATE), np.uint8(Op.DELETE)


class BatchOutcome(Protocol):
    """What one batch command answered. Twin: ``bridge.kernel.maps.BatchOutcome``."""

    @property
    def done(self) -> int: ...
    @property
    def errno(self) -> int: ...


class BatchTarget(Protocol):
    """The part of a kernel map that the writer needs."""

    @property
    def info(self) -> MapInfo: ...
    def lookup(self, key: bytes) -> bytes | None: ...
    def update_batch(self, keys: U8, values: U8, flags: int = 0) -> BatchOutcome: ...
    def delete_batch(self, keys: U8) -> BatchOutcome: ...


class SizesDifferError(BridgeError):
    """The sender's map and ours have other sizes: nothing of it is written."""


class ApplyError(BridgeError):
    """The kernel refused a write for a reason that soon passes, or never does."""


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a batch."""

    updated: int = 0
    deleted: int = 0
    absent: int = 0  # deletes of keys that were not there
    retries: int = 0  # calls repeated because a bucket was busy
    full: DeltaBatch | None = None  # updates that found the map full
    blocked: DeltaBatch | None = None  # not written, for the reason that ``error`` tells
    error: ApplyError | None = None


@dataclass(slots=True)
class _Tally:
    done: int = 0
    skipped: list[int] = field(default_factory=list)  # rows
    retries: int = 0
    error: ApplyError | None = None
    end: int = 0  # rows from here on were not tried


class MapWriter:
    """Writes batches into one map, in the calling thread."""

    __slots__ = ("_map",)

    def __init__(self, target: BatchTarget) -> None:
        self._map = target

    @property
    def entries_max(self) -> int:
        """``max_entries`` of the map."""
        return self._map.info.max_entries

    def check_sizes(self, sender: str, key_size: int, value_size: int) -> None:
        """Refuse a sender whose sizes differ, naming both sides."""
        info = self._map.info
        if (key_size, value_size) != (info.key_size, info.value_size):
            raise SizesDifferError(
                f"map {info.name} (id {info.id}): sizes differ (here key {info.key_size} and value "
                f"{info.value_size} bytes, from {sender} key {key_size} and value {value_size})",
                hint="load the same version of the program on both nodes",
            )

    def current(self, keys: U8) -> U8:
        """What the map holds of these keys, zero where it has none. A system call per key."""
        size = self._map.info.value_size
        held = (self._map.lookup(key.tobytes()) or bytes(size) for key in keys)
        return np.frombuffer(b"".join(held), np.uint8).reshape(len(keys), size)

    def write(self, batch: DeltaBatch) -> Written:
        """Apply a folded batch (each key once)."""
        updates = batch.ops == _UPDATE
        updated, deleted = _Tally(), _Tally()
        new = batch
        if not updates.all():
            old = batch.take(batch.ops == _DELETE)
            new = batch.take(updates)
            deleted = self._run(len(old), errno.ENOENT, lambda at: self._delete(old, at))
            if deleted.error is not None:
                behind = DeltaBatch.concatenate([old.take(slice(deleted.end, None)), new])
                return _written(deleted, updated, None, behind)
        if len(new):
            updated = self._run(len(new), errno.E2BIG, lambda at: self._update(new, at))
        full = new.take(np.array(updated.skipped)) if updated.skipped else None
        blocked = new.take(slice(updated.end, None)) if updated.error is not None else None
        return _written(deleted, updated, full, blocked)

    def _delete(self, batch: DeltaBatch, at: int) -> BatchOutcome:
        return self._map.delete_batch(batch.keys[at:])

    def _update(self, batch: DeltaBatch, at: int) -> BatchOutcome:
        return self._map.update_batch(batch.keys[at:], batch.values[at:])

    def _run(self, n: int, skip: int, call: Callable[[int], BatchOutcome]) -> _Tally:
        """Call until all ``n`` rows are done, stepping over rows that fail with ``skip``."""
        tally = _Tally()
        at = busy = 0
        while at < n:
            outcome = call(at)
            at += outcome.done
            tally.done += outcome.done
            busy = 0 if outcome.done else busy
            if outcome.errno == 0:
                continue
            if outcome.errno == skip:
                tally.skipped.append(at)
                at += 1
            elif outcome.errno in PASSING and busy < BUSY_TRIES_MAX:
                busy += 1
                tally.retries += 1
                time.sleep(BUSY_PAUSE_SECONDS if busy > 10 else 0)
            else:
                tally.error, tally.end = self._refused(outcome.errno), at
                break
        return tally

    def _refused(self, code: int) -> ApplyError:
        info = self._map.info
        return ApplyError(
            f"map {info.name} (id {info.id}): write refused ({errno.errorcode.get(code, code)})",
            hint="see whether the map is frozen or was created read-only",
        )


def _written(
    deleted: _Tally, updated: _Tally, full: DeltaBatch | None, blocked: DeltaBatch | None
) -> Written:
    return Written(
        updated.done,
        deleted.done,
        len(deleted.skipped),
        deleted.retries + updated.retries,
        full,
        blocked,
        deleted.error or updated.error,
    )
