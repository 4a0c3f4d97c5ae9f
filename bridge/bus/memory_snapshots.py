"""The stream of snapshots in memory: the newest message of each subject, one order for all."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from bridge.bus.memory import MAX_PAYLOAD
from bridge.bus.snapshots import SnapshotConflictError, SnapshotStoreError, Stored


class MemorySnapshotStore:
    """Implements ``SnapshotStore``. While ``connected`` is false every attempt fails."""

    def __init__(self, *, max_payload: int = MAX_PAYLOAD) -> None:
        self.connected = True
        self._max_payload = max_payload
        self._last = 0
        self._newest: dict[str, Stored] = {}

    @property
    def max_payload(self) -> int:
        return self._max_payload

    async def put(self, subject: str, data: bytes, expected: int | None = None) -> int:
        self._need_connection()
        before = self._newest.get(subject)
        if expected is not None and expected != (before.sequence if before is not None else 0):
            raise SnapshotConflictError(f"subject {subject}: has another last message")
        self._last += 1
        self._newest[subject] = Stored(self._last, subject, data)
        return self._last

    async def last(self, subject: str) -> Stored | None:
        self._need_connection()
        return self._newest.get(subject)

    async def read(self, pattern: str, first: int) -> AsyncGenerator[Stored]:
        wanted = pattern.split(".")
        while True:
            self._need_connection()
            behind = [
                m
                for m in self._newest.values()
                if m.sequence >= first and _matches(wanted, m.subject.split("."))
            ]
            if not behind:
                return
            found = min(behind, key=lambda m: m.sequence)
            first = found.sequence + 1
            yield found

    def _need_connection(self) -> None:
        if not self.connected:
            raise SnapshotStoreError("snapshots: not connected")


def _matches(pattern: list[str], subject: list[str]) -> bool:
    return len(pattern) == len(subject) and all(
        want in ("*", have) for want, have in zip(pattern, subject, strict=True)
    )
