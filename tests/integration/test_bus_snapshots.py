"""What the stream of snapshots promises, in memory and on a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from bridge.bus.connection import BusSettings
from bridge.bus.embedded import EmbeddedServer
from bridge.bus.memory_snapshots import MemorySnapshotStore
from bridge.bus.nats_bus import open_bus
from bridge.bus.nats_snapshots import NatsSnapshotStore
from bridge.bus.snapshots import (
    SnapshotBrokenError,
    SnapshotConflictError,
    Snapshots,
    SnapshotStore,
    SnapshotStoreError,
    part_of,
)
from bridge.bus.streams import LogSettings
from bridge.model import Delta, Manifest, Origin
from bridge.wire.codec import encode
from bridge.wire.subjects import chunk_subject, lease_subject
from tests.bus_kit import CLUSTER, numbered_batch

MAP = "flows.a_b"


@pytest.fixture(params=["memory", "nats"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SnapshotStore]:
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            yield MemorySnapshotStore()
            return
        server = await stack.enter_async_context(EmbeddedServer(tmp_path / "nats"))
        bus = await open_bus(BusSettings("n1", (server.url,)))
        stack.push_async_callback(bus.close)
        yield NatsSnapshotStore(bus, CLUSTER, LogSettings(), "n1")


async def put(
    snapshots: Snapshots, slot: int, number: int, rows: tuple[int, ...], taken_at: float = 1.0
) -> Manifest:
    """Store the parts of a snapshot; its manifest is not published yet."""
    origin = Origin(CLUSTER, MAP, "n1", number)
    parts, first, row = [], 0, 1
    for index, count in enumerate(rows):
        data = encode(Delta(origin, row, numbered_batch(row, count)))
        at = await snapshots.put_part(MAP, slot, index, data)
        first, row = first or at, row + count
        parts.append(part_of(data, count))
    return Manifest(origin, "log", 7, None, slot, taken_at, 0, 16, 24, 0, tuple(parts), first, 0)


async def rows_of(snapshots: Snapshots, manifest: Manifest) -> list[int]:
    return [len(batch) async for batch in snapshots.parts(manifest)]


async def test_what_was_sealed_is_read_part_by_part(store: SnapshotStore) -> None:
    snapshots = Snapshots(store, CLUSTER)
    assert await snapshots.manifests(MAP) == []
    manifest = await put(snapshots, 0, 11, (503, 7, 101))
    assert await snapshots.manifests(MAP) == [], "parts without a manifest are no snapshot"
    await snapshots.seal(manifest)
    assert await snapshots.manifests(MAP) == [manifest]
    assert await rows_of(snapshots, manifest) == [503, 7, 101]
    assert await snapshots.manifests("other") == []


async def test_an_empty_map_has_a_snapshot_too(store: SnapshotStore) -> None:
    snapshots = Snapshots(store, CLUSTER)
    manifest = await put(snapshots, 1, 11, ())
    await snapshots.seal(manifest)
    assert await snapshots.manifests(MAP) == [manifest]
    assert await rows_of(snapshots, manifest) == []


async def test_the_older_slot_survives_a_taker_that_dies_halfway(store: SnapshotStore) -> None:
    snapshots = Snapshots(store, CLUSTER)
    older = await put(snapshots, 0, 11, (101, 103))
    await snapshots.seal(older)
    await put(snapshots, 1, 12, (107,))  # and no more
    assert await snapshots.manifests(MAP) == [older]
    assert await rows_of(snapshots, older) == [101, 103]


async def test_parts_of_two_snapshots_are_never_mixed(store: SnapshotStore) -> None:
    snapshots = Snapshots(store, CLUSTER)
    older = await put(snapshots, 0, 11, (101, 103, 107))
    await snapshots.seal(older)
    await put(snapshots, 0, 13, (101, 103))  # over the same slot: its first two parts
    with pytest.raises(SnapshotBrokenError):
        await rows_of(snapshots, older)


async def test_a_snapshot_that_shrank_leaves_nothing_of_the_one_before(
    store: SnapshotStore,
) -> None:
    snapshots = Snapshots(store, CLUSTER)
    await snapshots.seal(await put(snapshots, 0, 11, (101, 103, 107)))
    newer = await put(snapshots, 0, 13, (11,), taken_at=2.0)
    await snapshots.seal(newer)
    assert await snapshots.manifests(MAP) == [newer]
    assert await rows_of(snapshots, newer) == [11]


async def test_damage_is_noticed(store: SnapshotStore) -> None:
    snapshots = Snapshots(store, CLUSTER)
    manifest = await put(snapshots, 0, 11, (101,))
    part = manifest.parts[0]
    for wrong in (replace(part, crc=part.crc ^ 1), replace(part, rows=99)):
        with pytest.raises(SnapshotBrokenError):
            await rows_of(snapshots, replace(manifest, parts=(wrong,)))
    with pytest.raises(SnapshotBrokenError):
        await rows_of(snapshots, replace(manifest, parts=(part, part)))
    await store.put(chunk_subject(CLUSTER, MAP, 0, 0), b"nonsense")
    with pytest.raises(SnapshotBrokenError):
        await rows_of(snapshots, manifest)


async def test_one_of_two_takes_the_lease(store: SnapshotStore) -> None:
    snapshots = Snapshots(store, CLUSTER)
    assert await snapshots.lease(MAP) == (0, "")
    first = await snapshots.take_lease(MAP, "a", 0)
    with pytest.raises(SnapshotConflictError):
        await snapshots.take_lease(MAP, "b", 0)
    assert await snapshots.lease(MAP) == (first, "a")
    second = await snapshots.take_lease(MAP, "a", first)
    assert await snapshots.lease(MAP) == (second, "a")
    with pytest.raises(SnapshotConflictError):
        await snapshots.take_lease(MAP, "b", first)
    await store.put(lease_subject(CLUSTER, MAP), b"nonsense")
    assert (await snapshots.lease(MAP))[1] == "?"


async def test_without_a_broker_every_attempt_fails_at_once(tmp_path: Path) -> None:
    async with EmbeddedServer(tmp_path / "nats") as server:
        bus = await open_bus(BusSettings("n1", (server.url,)))
        snapshots = Snapshots(NatsSnapshotStore(bus, CLUSTER, LogSettings(), "n1"), CLUSTER)
        manifest = await put(snapshots, 0, 11, (101,))
        await bus.close()
    memory = MemorySnapshotStore()
    memory.connected = False
    for cut_off in (snapshots, Snapshots(memory, CLUSTER)):
        for attempt in (cut_off.manifests(MAP), cut_off.lease(MAP), cut_off.seal(manifest)):
            with pytest.raises(SnapshotStoreError):
                await attempt
        with pytest.raises(SnapshotStoreError):
            await rows_of(cut_off, manifest)
