"""``at``, ``replay`` and ``watch`` where the log has forgotten its beginning: from a snapshot."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np

from bridge.bus.connection import BusSettings
from bridge.bus.nats_bus import NatsBus, open_bus
from bridge.bus.nats_snapshots import NatsSnapshotStore
from bridge.bus.snapshots import Snapshots, part_of
from bridge.bus.streams import LogSettings
from bridge.kernel.features import Capability
from bridge.kernel.maps import create_map, open_pin
from bridge.kernel.maptypes import MapType
from bridge.layout.fingerprint import fingerprint
from bridge.model import Anchor, Delta, Manifest, Op, Origin
from bridge.wire.codec import encode
from bridge.wire.subjects import stream_name
from tests.integration.kernel_support import needs, pin_folder, unique_name
from tests.integration.test_cli_history import call
from tests.integration.test_cli_watch import LAYOUT, MESSAGES, ROWS, batch, log, watch
from tests.node_kit import content

POSITION, FIRST_KEPT = 3, 3
EARLY = 4 * ROWS + 5  # of a later message, and seen by the scan already


async def store(bus: NatsBus, numbers: list[int]) -> None:
    """A snapshot at ``POSITION`` with the entries of these numbers."""
    snapshots = Snapshots(NatsSnapshotStore(bus, "c", LogSettings(), "b"), "c")
    origin, layout = Origin("c", "flows", "b", 11), fingerprint(LAYOUT)
    parts, first = [], 0
    for index, some in enumerate((numbers[:17], numbers[17:])):
        rows = batch(0).take(np.zeros(len(some), np.intp))
        rows.keys[:, 3], rows.values[:, 0] = some, some
        rows.values[:, 8] = np.where(np.array(some) % 3 == 0, 3, 1)
        assert (rows.ops == Op.UPDATE).all()
        data = encode(Delta(origin, 1 + 17 * index, rows, layout=layout))
        at = await snapshots.put_part("flows", 0, index, data)
        first = first or at
        parts.append(part_of(data, len(some)))
    stored_at = await bus.stored_at("c", POSITION)
    assert stored_at is not None
    sizes = LAYOUT.key.size, LAYOUT.value.size
    log_id = (await bus.log_state("c")).id
    anchor = Anchor(POSITION, stored_at)
    manifest = Manifest(
        *(origin, log_id, POSITION, anchor, 0, time.time(), 0, *sizes, layout, tuple(parts)),
        *(first, 0),
    )
    await snapshots.seal(manifest)


@asynccontextmanager
async def forgetful_log(directory: Path) -> AsyncIterator[str]:
    """The log of the other tests without its first messages, and a snapshot that holds them."""
    async with log(directory) as (url, _):
        bus = await open_bus(BusSettings("t", (url,)))
        try:
            numbers = [n for n in range(POSITION * ROWS) if n % ROWS != ROWS - 1]
            await store(bus, [*numbers, EARLY])
            link = await bus.link()
            purge = f"{bus.api_prefix}.STREAM.PURGE.{stream_name('c')}"
            assert not (await link.call(purge, {"seq": FIRST_KEPT})).error_code
            assert (await bus.log_state("c")).first == FIRST_KEPT
            yield url
        finally:
            await bus.close()


async def test_a_map_as_it_was_from_a_snapshot(tmp_path: Path) -> None:
    async with forgetful_log(tmp_path) as url:
        lines, errors = await call(url, tmp_path, "at", str(MESSAGES), "flows", "--json")
        told = [json.loads(line) for line in lines]
        assert len(told) == MESSAGES * (ROWS - 1)
        assert {each["fields"]["key"]["saddr"] for each in told} == {
            f"10.0.0.{n}" for n in range(MESSAGES * ROWS) if n % ROWS != ROWS - 1
        }
        assert f"begins with the snapshot at message {POSITION}" in errors
        assert "may be as they were later" not in errors
        old = [each for each in told if each["stream_sequence"] == POSITION]
        assert len(old) == POSITION * (ROWS - 1), "the early entry has its own message now"
        lines, errors = await call(url, tmp_path, "at", "3", "flows")
        assert len(lines) == POSITION * (ROWS - 1) + 1
        doubted = 1 + MESSAGES - POSITION  # and the deletes of keys that were never there
        assert f"up to {doubted} keys may be as they were later" in errors
        lines, errors = await call(url, tmp_path, "at", "6", "flows", "--since", "4")
        assert len(lines) == 2 * (ROWS - 1) - 1
        lines, errors = await call(url, tmp_path, "at", "2", "flows")
        assert lines == []
        assert "begins with the snapshot" not in errors


async def test_replay_from_a_snapshot(tmp_path: Path) -> None:
    entries = POSITION * (ROWS - 1) + 1
    async with forgetful_log(tmp_path) as url:
        for options in ((), ("--from", "snapshot")):
            lines, errors = await call(url, tmp_path, "replay", "flows", *options)
            numbers = [json.loads(line)["stream_sequence"] for line in lines]
            assert numbers[:entries] == [POSITION] * entries
            assert sorted(set(numbers[entries:])) == list(range(POSITION + 1, MESSAGES + 1))
            assert f"begins with the entries of the snapshot at message {POSITION}" in errors
        lines, _ = await call(url, tmp_path, "replay", "flows", "--from", "start")
        numbers = [json.loads(line)["stream_sequence"] for line in lines]
        assert numbers[0] == FIRST_KEPT
        assert len(numbers) == (MESSAGES - FIRST_KEPT + 1) * ROWS
        arguments = ("replay", "flows", "--from", "snapshot", "--to", "2")
        _, errors = await call(url, tmp_path, *arguments, code=69)
        assert "has no snapshot from which the log goes on" in errors


@needs(Capability.CAP_BPF, Capability.CAP_NET_ADMIN, Capability.CAP_SYS_ADMIN)
async def test_a_scratch_map_is_whole_where_the_log_is_not(tmp_path: Path) -> None:
    sizes, name = (LAYOUT.key.size, LAYOUT.value.size), unique_name("past")
    with pin_folder() as pins, create_map(MapType.HASH, *sizes, 97, name=name) as live:
        live.pin(pins / "live")
        async with forgetful_log(tmp_path) as url:
            options = ("--into", str(pins / "then"), "--entries", "97")
            await call(url, tmp_path, "replay", "flows", *options, pin=str(pins / "live"))
        with open_pin(pins / "then") as scratch:
            assert len(content(scratch)) == MESSAGES * (ROWS - 1)


async def test_watch_from_a_snapshot(tmp_path: Path) -> None:
    entries = POSITION * (ROWS - 1) + 1
    async with forgetful_log(tmp_path) as url:
        count = entries + (MESSAGES - POSITION) * ROWS
        lines, _ = await watch(url, tmp_path, count, "--from", "snapshot", "--json")
        told = [json.loads(line) for line in lines]
        assert [each["stream_sequence"] for each in told[:entries]] == [POSITION] * entries
        assert all(each["op"] == "update" and each["node"] == "b" for each in told[:entries])
        assert told[0]["fields"]["value"] == {"packets": 0, "state": "CT_ESTABLISHED"}
        assert told[entries]["stream_sequence"] == POSITION + 1
    async with log(tmp_path / "other") as (url, _):
        _, errors = await watch(url, tmp_path, 1, "--from", "snapshot", code=69)
        assert "has no snapshot" in errors
