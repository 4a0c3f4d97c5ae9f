"""Snapshots of maps in a stream of their own, which keeps the newest message of each subject.

A map has two slots. Parts go into one, then its manifest, while the other slot keeps the snapshot
before. So a taker that dies leaves the older snapshot whole, and no subject ever needs a
purge. A part bears the number of its snapshot and a manifest the checksums of its parts, so that
parts of two snapshots are never mixed: a reader whose parts are overwritten under it gets a
``SnapshotBrokenError`` and starts again with the newer one.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

import orjson

from bridge.errors import BridgeError, UnavailableError
from bridge.model import DeltaBatch, Manifest, Part
from bridge.wire.codec import WireError, decode
from bridge.wire.manifest import decode_manifest, encode_manifest
from bridge.wire.subjects import (
    chunk_subject,
    chunks_filter,
    lease_subject,
    manifest_subject,
)

SLOTS = 2


class SnapshotStoreError(UnavailableError):
    """The stream of snapshots could not be read or written now."""


class SnapshotConflictError(BridgeError):
    """Somebody else wrote on the subject meanwhile."""


class SnapshotBrokenError(BridgeError):
    """A snapshot is not what its manifest says: overwritten meanwhile, or damaged."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A message of the stream of snapshots."""

    sequence: int
    subject: str
    data: bytes


class SnapshotStore(Protocol):
    """The stream. Methods make one attempt; they raise ``SnapshotStoreError``."""

    @property
    def max_payload(self) -> int: ...

    async def put(self, subject: str, data: bytes, expected: int | None = None) -> int:
        """Store a message; its sequence.

        ``expected``: only when the subject's last message is this one (0: when there is none);
        raises ``SnapshotConflictError`` otherwise.
        """

    async def last(self, subject: str) -> Stored | None:
        """The newest message of a subject."""

    def read(self, pattern: str, first: int) -> AsyncGenerator[Stored]:
        """Messages from sequence ``first`` on, in order, until there are no more."""


class Snapshots:
    """The snapshots of one cluster over a ``SnapshotStore``."""

    def __init__(self, store: SnapshotStore, cluster: str) -> None:
        self._store = store
        self._cluster = cluster

    @property
    def max_payload(self) -> int:
        return self._store.max_payload

    async def put_part(self, map_name: str, slot: int, number: int, data: bytes) -> int:
        """Store a part; its place in the stream."""
        return await self._store.put(chunk_subject(self._cluster, map_name, slot, number), data)

    async def seal(self, manifest: Manifest) -> None:
        """Publish the manifest: from now on the parts are a snapshot."""
        subject = manifest_subject(self._cluster, manifest.origin.map, manifest.slot)
        await self._store.put(subject, encode_manifest(manifest))

    async def manifests(self, map_name: str) -> list[Manifest]:
        """The manifests of a map in all slots; one that makes no sense counts as none."""
        found = []
        for slot in range(SLOTS):
            stored = await self._store.last(manifest_subject(self._cluster, map_name, slot))
            try:
                manifest = decode_manifest(stored.data) if stored is not None else None
            except WireError:
                continue
            if manifest is not None and (manifest.origin.map, manifest.slot) == (map_name, slot):
                found.append(manifest)
        return found

    async def parts(self, manifest: Manifest) -> AsyncGenerator[DeltaBatch]:
        """The rows of a snapshot, part by part. Raises ``SnapshotBrokenError``."""
        if not manifest.parts:
            return
        pattern = chunks_filter(self._cluster, manifest.origin.map, manifest.slot)
        messages = self._store.read(pattern, manifest.first_part)
        try:
            for number, part in enumerate(manifest.parts):
                yield _checked(manifest, number, part, await anext(messages, None))
        finally:
            await messages.aclose()

    async def lease(self, map_name: str) -> tuple[int, str]:
        """The last message of a map's lease: its sequence and who holds it (0 and empty: none)."""
        stored = await self._store.last(lease_subject(self._cluster, map_name))
        if stored is None:
            return 0, ""
        try:
            holder = orjson.loads(stored.data)["holder"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            holder = "?"
        return stored.sequence, str(holder)

    async def take_lease(self, map_name: str, holder: str, expected: int) -> int:
        """Store a lease behind the one at ``expected``; raises ``SnapshotConflictError``."""
        data = orjson.dumps({"holder": holder})
        return await self._store.put(lease_subject(self._cluster, map_name), data, expected)


def part_of(data: bytes, rows: int) -> Part:
    """What the manifest says of a part with these bytes."""
    return Part(rows, zlib.crc32(data))


def _checked(manifest: Manifest, number: int, part: Part, stored: Stored | None) -> DeltaBatch:
    subject = chunk_subject(manifest.origin.cluster, manifest.origin.map, manifest.slot, number)
    if stored is None:
        raise _broken(manifest, number, "is gone")
    if stored.subject != subject or zlib.crc32(stored.data) != part.crc:
        raise _broken(manifest, number, "is another one")
    try:
        delta = decode(stored.data)
    except WireError as error:
        raise _broken(manifest, number, str(error)) from error
    sizes = (delta.batch.key_size, delta.batch.value_size)
    wanted = (manifest.key_size, manifest.value_size)
    if delta.origin != manifest.origin or len(delta.batch) != part.rows or sizes != wanted:
        raise _broken(manifest, number, "is not what the manifest says")
    return delta.batch


def _broken(manifest: Manifest, number: int, reason: str) -> SnapshotBrokenError:
    return SnapshotBrokenError(
        f"snapshot of map {manifest.origin.map}: part {number} of {len(manifest.parts)} {reason}",
        hint="take a new one with `mapbridge snapshot`",
    )
