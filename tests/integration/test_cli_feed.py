"""Feeds on a real server: what they carry, and that a restart neither loses nor repeats."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from bridge.bus.connection import BusSettings
from bridge.bus.embedded import EmbeddedServer
from bridge.bus.nats_bus import NatsBus, open_bus
from bridge.bus.schemas import SchemaStore
from bridge.bus.streams import LogSettings
from bridge.feed.reading import message_classes
from bridge.feed.schema import MapSchema, encode_schema
from bridge.layout.fingerprint import fingerprint
from bridge.model import Delta, DeltaBatch, Op, Origin
from tests.bus_kit import eventually
from tests.integration.test_cli_schema import SECONDS_MAX
from tests.integration.test_cli_watch import LAYOUT

STREAM = "MAPBRIDGE_c_FEED"


@dataclass(frozen=True, slots=True)
class Stored:
    subject: str
    headers: dict[str, str]
    data: bytes


async def stored(bus: NatsBus, subject: str) -> list[Stored]:
    """All messages of a feed."""
    link = await bus.link()
    found: list[Stored] = []
    sequence = 1
    while True:
        body = {"seq": sequence, "next_by_subj": subject}
        reply = await link.call(f"$JS.API.STREAM.MSG.GET.{STREAM}", body)
        if reply.error_code:
            return found
        sequence = reply.number("message", "seq") + 1
        text = base64.b64decode(reply.text("message", "hdrs")).decode()
        pairs = (line.split(":", 1) for line in text.split("\r\n") if ":" in line)
        headers = {name.strip(): value.strip() for name, value in pairs}
        data = base64.b64decode(reply.text("message", "data"))
        found.append(Stored(reply.text("message", "subject"), headers, data))


class Publisher:
    """Publishes batches of rising numbers as node ``a``."""

    def __init__(self, bus: NatsBus) -> None:
        self.bus = bus
        self.changes = 0

    async def publish(self, messages: int, rows: int, *, layout: int | None = None) -> None:
        publisher = await self.bus.publisher(Origin("c", "flows", "a", 7))
        for _ in range(messages):
            numbers = np.arange(self.changes, self.changes + rows, dtype=np.uint64)
            keys = np.zeros((rows, LAYOUT.key.size), np.uint8)
            keys[:, 0] = 10
            values = np.zeros((rows, LAYOUT.value.size), np.uint8)
            values[:, :8] = numbers.view(np.uint8).reshape(-1, 8)
            batch = DeltaBatch.of_entries(Op.UPDATE, keys, values, 1_000_000_000)
            number = fingerprint(LAYOUT) if layout is None else layout
            origin = Origin("c", "flows", "a", 7)
            await publisher.publish(Delta(origin, self.changes + 1, batch, layout=number))
            self.changes += rows


async def grown(bus: NatsBus, subject: str, before: int) -> bool:
    return len(await stored(bus, subject)) > before


def configure(directory: Path, url: str) -> str:
    path = directory / "node.toml"
    path.write_text(
        f'[node]\nname = "r"\ncluster = "c"\nstate_dir = "{directory}/state"\n'
        f'[broker]\nurl = "{url}"\n[[maps]]\nname = "flows"\npin = "/sys/fs/bpf/is_not_here"\n'
    )
    return str(path)


def feed(config: str, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bridge.cli.main", "feed", "flows", "-c", config, "--json"]
    return subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


async def finished(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    out, errors = await asyncio.to_thread(process.communicate, timeout=SECONDS_MAX)
    assert process.returncode == code, errors
    return out, errors


async def store_layout(bus: NatsBus) -> None:
    await bus.ensure_log("c", LogSettings())
    schema = MapSchema.of("c", "flows", LAYOUT)
    await SchemaStore(bus, "c").put("flows", schema.fingerprint, encode_schema(schema))


def numbers_of(kind: str, messages: list[Stored]) -> list[int]:
    """The values of all changes of a feed, in its order."""
    if kind == "json":
        lines = [line for message in messages for line in message.data.splitlines()]
        return [json.loads(line)["value"]["packets"] for line in lines]
    changes = message_classes("flows", LAYOUT)["Changes"]
    return [
        change.value.packets
        for message in messages
        for change in changes.FromString(message.data).change  # type: ignore[attr-defined]
    ]


@pytest.mark.parametrize("kind", ["json", "typed"])
async def test_a_feed_killed_again_and_again_has_each_change_once(
    kind: str, tmp_path: Path
) -> None:
    async with EmbeddedServer(tmp_path / "server") as server:
        bus = await open_bus(BusSettings("b", (server.url,)))
        try:
            await store_layout(bus)
            config = configure(tmp_path, server.url)
            source = Publisher(bus)
            subject = f"mapbridge.c.feed.{kind}.flows"
            for _ in range(3):
                process = feed(config, "--kind", kind)
                before = len(await stored(bus, subject))
                await source.publish(7, 1009)
                await source.publish(101, 1)
                await eventually(partial(grown, bus, subject, before))
                process.send_signal(signal.SIGKILL)
                await finished(process, -signal.SIGKILL)
            (tmp_path / "state" / "feeds.json").unlink(missing_ok=True)
            out, errors = await finished(feed(config, "--kind", kind, "--once"))
            assert errors == ""
            messages = await stored(bus, subject)
            assert numbers_of(kind, messages) == list(range(source.changes))
            ids = [message.headers["Nats-Msg-Id"] for message in messages]
            assert len(set(ids)) == len(ids)
            named = {message.headers["Mapbridge-Layout"] for message in messages}
            assert named == {f"{fingerprint(LAYOUT):016x}"}
            (counted,) = json.loads(out)["feeds"].values()
            assert counted["position"] == (await bus.log_state("c")).last
            assert counted["undescribed"] == counted["gaps"] == 0
        finally:
            await bus.close()


async def test_what_the_two_kinds_carry(tmp_path: Path) -> None:
    async with EmbeddedServer(tmp_path / "server") as server:
        bus = await open_bus(BusSettings("b", (server.url,)))
        try:
            await store_layout(bus)
            source = Publisher(bus)
            await source.publish(1, 2)
            await source.publish(1, 3, layout=7)  # nobody stored that one
            _, errors = await finished(feed(configure(tmp_path, server.url), "--once"))
            assert "layout 0000000000000007 is not stored" in errors
            assert "changes without a known layout are left out" in errors
            first, second = await stored(bus, "mapbridge.c.feed.json.flows")
            lines = [json.loads(line) for line in (first.data + second.data).splitlines()]
            assert lines[1] == {
                "time": "1970-01-01T00:00:01.000000+00:00",
                "map": "flows",
                "node": "a",
                "cause": "change",
                "op": "update",
                "key": {"saddr": "10.0.0.0", "port": 0, "pad": [0, 0]},
                "value": {"packets": 1, "state": 0},
                "writer": 0,
                "sequence": 2,
                "stream_sequence": 1,
            }
            assert lines[4]["value_hex"].startswith("04")
            assert len(lines) == 5
            typed = await stored(bus, "mapbridge.c.feed.typed.flows")
            assert numbers_of("typed", typed) == [0, 1]
        finally:
            await bus.close()


async def test_a_position_outlives_the_feeds_messages(tmp_path: Path) -> None:
    async with EmbeddedServer(tmp_path / "server") as server:
        bus = await open_bus(BusSettings("b", (server.url,)))
        try:
            await store_layout(bus)
            source, config = Publisher(bus), configure(tmp_path, server.url)
            await source.publish(1, 5)
            await finished(feed(config, "--once", "--kind", "json"))
            link = await bus.link()
            await link.call(f"$JS.API.STREAM.PURGE.{STREAM}", {})
            await source.publish(1, 2)
            await finished(feed(config, "--once", "--kind", "json"))
            assert numbers_of("json", await stored(bus, "mapbridge.c.feed.json.flows")) == [5, 6]
        finally:
            await bus.close()


async def test_of_two_that_publish_one_feed_one_is_refused(tmp_path: Path) -> None:
    async with EmbeddedServer(tmp_path / "server") as server:
        bus = await open_bus(BusSettings("b", (server.url,)))
        try:
            await store_layout(bus)
            source, config = Publisher(bus), configure(tmp_path, server.url)
            await source.publish(1, 1)
            both = [feed(config, "--kind", "json") for _ in range(2)]
            async with asyncio.timeout(SECONDS_MAX):
                while all(process.poll() is None for process in both):
                    await source.publish(1, 1)
                    await asyncio.sleep(0.05)
            (loser,) = (process for process in both if process.poll() is not None)
            (winner,) = (process for process in both if process is not loser)
            _, errors = await finished(loser, 1)
            assert "somebody else publishes it" in errors
            winner.send_signal(signal.SIGTERM)
            await finished(winner)
            numbers = numbers_of("json", await stored(bus, "mapbridge.c.feed.json.flows"))
            assert numbers == list(range(len(numbers)))
        finally:
            await bus.close()


async def test_a_feed_goes_on_with_a_log_made_anew(tmp_path: Path) -> None:
    """Somebody deletes the streams, the feeds' own included, under a feed that runs."""
    async with EmbeddedServer(tmp_path / "server") as server:
        bus = await open_bus(BusSettings("b", (server.url,)))
        try:
            await store_layout(bus)
            source, subject = Publisher(bus), "mapbridge.c.feed.json.flows"
            process = feed(configure(tmp_path, server.url), "--kind", "json")
            await source.publish(1, 3)
            await eventually(partial(grown, bus, subject, 0))
            link = await bus.link()
            for name in ("MAPBRIDGE_c", STREAM):
                await link.call(f"$JS.API.STREAM.DELETE.{name}", {})
            await store_layout(bus)
            source = Publisher(bus)
            source.changes = 100
            await source.publish(1, 2)
            await eventually(partial(grown, bus, subject, 0))
            process.send_signal(signal.SIGTERM)
            _, errors = await finished(process)
            assert numbers_of("json", await stored(bus, subject)) == [100, 101]
            assert "it begins with the new log" in errors
        finally:
            await bus.close()
