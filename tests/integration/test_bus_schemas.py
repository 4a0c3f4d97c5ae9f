"""The stream of layouts on a real server: stored once, found by fingerprint."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from bridge.bus.connection import BusSettings
from bridge.bus.embedded import EmbeddedServer
from bridge.bus.nats_bus import NatsBus, open_bus
from bridge.bus.schemas import SchemaStore
from bridge.feed.schema import MapSchema, decode_schema, encode_schema
from bridge.layout.types import Layout
from tests.unit.test_layout import LAYOUT, S32_T, U32_T

OTHER = Layout(U32_T, S32_T)


@pytest_asyncio.fixture
async def bus(tmp_path: Path) -> AsyncIterator[NatsBus]:
    async with EmbeddedServer(tmp_path / "server") as server:
        opened = await open_bus(BusSettings("n1", (server.url,)))
        try:
            yield opened
        finally:
            await opened.close()


async def test_a_layout_is_stored_once_and_found(bus: NatsBus) -> None:
    store = SchemaStore(bus, "c")
    assert await store.get("a.map", 7) is None
    assert await store.all("a.map") == []
    first, second = (MapSchema.of("c", "a.map", layout) for layout in (LAYOUT, OTHER))
    for schema in (first, second):
        assert await store.put("a.map", schema.fingerprint, encode_schema(schema))
    assert not await store.put("a.map", first.fingerprint, b"something else")
    assert not await SchemaStore(bus, "c").put("a.map", first.fingerprint, b"")
    stored = await store.get("a.map", first.fingerprint)
    assert stored is not None
    assert decode_schema(stored.data) == first
    assert [decode_schema(one.data) for one in await store.all("a.map")] == [first, second]
    assert await store.all("another") == []
