"""``watch`` with filters, places and tables, on changes in the log of a real server."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from bridge.bus.connection import BusSettings
from bridge.bus.embedded import EmbeddedServer
from bridge.bus.nats_bus import open_bus
from bridge.bus.places import sequence_at
from bridge.bus.schemas import SchemaStore
from bridge.bus.streams import LogSettings
from bridge.feed.schema import MapSchema, encode_schema
from bridge.layout.declared import read_declared
from bridge.layout.fingerprint import fingerprint
from bridge.model import Delta, DeltaBatch, Op, Origin
from tests.integration.test_cli_schema import SECONDS_MAX

TYPES = """
enum ct_state { CT_NEW = 1, CT_ESTABLISHED = 3 } __attribute__((packed));
struct k { __be32 saddr; __be16 port; __u8 pad[2]; };
struct v { __u64 packets; enum ct_state state; };
"""
LAYOUT = read_declared(TYPES, "struct k", "struct v")
MESSAGES, ROWS = 7, 11


def batch(first: int) -> DeltaBatch:
    """Updates of rising addresses; every third is established, the last of all is a delete."""
    numbers = np.arange(first, first + ROWS)
    keys = np.zeros((ROWS, LAYOUT.key.size), np.uint8)
    keys[:, 0], keys[:, 3], keys[:, 5] = 10, numbers, 80
    values = np.zeros((ROWS, LAYOUT.value.size), np.uint8)
    values[:, 0], values[:, 8] = numbers, np.where(numbers % 3 == 0, 3, 1)
    made = DeltaBatch.of_entries(Op.UPDATE, keys, values, 1_000_000_000 + first)
    made.ops[-1] = Op.DELETE
    made.values[-1] = 0
    return made


@asynccontextmanager
async def log(directory: Path) -> AsyncIterator[tuple[str, list[int]]]:
    """A server with messages of two nodes and their layout; its address, and times between."""
    async with EmbeddedServer(directory / "server") as server:
        bus = await open_bus(BusSettings("b", (server.url,)))
        try:
            await bus.ensure_log("c", LogSettings())
            schema = MapSchema.of("c", "flows", LAYOUT)
            await SchemaStore(bus, "c").put("flows", schema.fingerprint, encode_schema(schema))
            publishers = {
                node: await bus.publisher(Origin("c", "flows", node, 7)) for node in ("a", "b")
            }
            between = [time.time_ns()]
            for number in range(MESSAGES):
                node = "ab"[number % 2]
                delta = Delta(
                    Origin("c", "flows", node, 7),
                    1 + ROWS * (number // 2),
                    batch(number * ROWS),
                    layout=fingerprint(LAYOUT),
                )
                await publishers[node].publish(delta)
                await asyncio.sleep(0.002)  # so that the instants between messages differ
                between.append(time.time_ns())
            assert await sequence_at(bus, "c", between[3]) == 4
            assert await sequence_at(bus, "c", 0) == 1
            assert await sequence_at(bus, "c", time.time_ns()) == MESSAGES + 1
            yield server.url, between
        finally:
            await bus.close()


async def watch(
    url: str, directory: Path, count: int, *options: str, code: int = 0
) -> tuple[list[str], str]:
    path = directory / "node.toml"
    path.write_text(
        f'[node]\nname = "r"\ncluster = "c"\nstate_dir = "{directory}/state"\n'
        f'[broker]\nurl = "{url}"\n[[maps]]\nname = "flows"\npin = "/sys/fs/bpf/is_not_here"\n'
    )
    command = [sys.executable, "-m", "bridge.cli.main", "watch", "flows", "-c", str(path)]
    done = await asyncio.to_thread(
        subprocess.run,
        [*command, "--count", str(count), *options],
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout.splitlines(), done.stderr


async def test_filters_and_places_without_the_map(tmp_path: Path) -> None:
    """The map is not on this machine: its fields come from beside the log."""
    async with log(tmp_path) as (url, between):
        established = 'value.state == "ESTABLISHED"'
        lines, _ = await watch(url, tmp_path, 5, "--from-start", "--where", established)
        assert [line.split("saddr=")[1].split()[0] for line in lines] == [
            f"10.0.0.{number}" for number in (0, 3, 6, 9, 12)
        ]
        lines, _ = await watch(
            url, tmp_path, 3, "--from", "1", "--op", "delete", "--node", "b", "--json"
        )
        told = [json.loads(line) for line in lines]
        assert [each["stream_sequence"] for each in told] == [2, 4, 6]
        assert all(each["op"] == "delete" and "value" not in each for each in told)
        assert told[0]["fields"] == {"key": {"saddr": "10.0.0.21", "port": 80, "pad": [0, 0]}}
        at = datetime.fromtimestamp(between[4] / 1e9, UTC).isoformat()
        for start in ("5", at, at.replace("+00:00", "Z")):
            lines, _ = await watch(url, tmp_path, 2, "--from", start, "--json")
            assert json.loads(lines[0])["stream_sequence"] == 5
        lines, _ = await watch(url, tmp_path, 2, "--from", "10m", "--json")
        assert json.loads(lines[0])["stream_sequence"] == 1


async def test_a_table(tmp_path: Path) -> None:
    async with log(tmp_path) as (url, _):
        lines, _ = await watch(url, tmp_path, 11, "--from", "start", "--table")
    assert lines[0].split() == ["TIME", "NODE", "OP", "SADDR", "PORT", "PACKETS", "STATE"]
    assert lines[1].split()[1:] == ["a", "update", "10.0.0.0", "80", "0", "CT_ESTABLISHED"]
    assert lines[-1].split()[1:] == ["a", "delete", "10.0.0.10", "80"]
    assert len(lines) == 12


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--where", "value.stat == 1"), "value.stat == 1\n  ^^^^^^^^^^"),
        (("--where", "value.state = 1"), "a single ="),
        (("--from", "yesterday"), "needs a sequence, a time"),
        (("--from", "0"), "sequences begin at 1"),
        (("--table", "--json"), "choose one"),
    ],
)
async def test_what_is_asked_wrongly(tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    async with log(tmp_path) as (url, _):
        start = () if "--from" in options else ("--from", "start")
        _, errors = await watch(url, tmp_path, 1, *start, *options, code=2)
    assert said in errors
    assert "Traceback" not in errors
