"""``at`` and ``replay`` on the log of a real server, and into a real map."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bridge.bus.connection import BusSettings
from bridge.bus.nats_bus import open_bus
from bridge.kernel.features import Capability
from bridge.kernel.maps import create_map, open_pin
from bridge.kernel.maptypes import MapType
from bridge.wire.subjects import HEADER_SOURCE
from tests.integration.kernel_support import needs, pin_folder, unique_name
from tests.integration.test_cli_schema import SECONDS_MAX
from tests.integration.test_cli_watch import LAYOUT, MESSAGES, ROWS, log
from tests.node_kit import content


async def call(
    url: str, directory: Path, *arguments: str, code: int = 0, pin: str = "/sys/fs/bpf/is_not_here"
) -> tuple[list[str], str]:
    path = directory / "node.toml"
    path.write_text(
        f'[node]\nname = "r"\ncluster = "c"\nstate_dir = "{directory}/state"\n'
        f'[broker]\nurl = "{url}"\n[[maps]]\nname = "flows"\npin = "{pin}"\n'
    )
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "bridge.cli.main", *arguments, "-c", str(path)],
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout.splitlines(), done.stderr


async def test_a_map_as_it_was(tmp_path: Path) -> None:
    """Each message adds ten keys, and deletes one that was never there."""
    async with log(tmp_path) as (url, between):
        for messages in (0, 1, 5, MESSAGES):
            at = datetime.fromtimestamp(between[messages] / 1e9, UTC).isoformat()
            lines, errors = await call(url, tmp_path, "at", at, "flows", "--json")
            assert len(lines) == messages * (ROWS - 1)
            if messages:
                told = [json.loads(line) for line in lines]
                assert told[0]["fields"]["value"] == {"packets": 0, "state": "CT_ESTABLISHED"}
                assert {each["stream_sequence"] for each in told} == set(range(1, messages + 1))
        lines, errors = await call(url, tmp_path, "at", "2", "flows")
        assert len(lines) == 2 * (ROWS - 1)
        assert lines[0].startswith(
            "saddr=10.0.0.0 port=80  ->  packets=0 state=CT_ESTABLISHED  (a, "
        )
        assert "20 entries, up to message 2" in errors
        lines, _ = await call(url, tmp_path, "at", "3", "flows", "--since", "2")
        same, _ = await call(url, tmp_path, "diff", "flows", "--from", "2", "--to", "3")
        assert same == lines
        _, errors = await call(url, tmp_path, "diff", "flows", "one", code=2)
        assert "name two nodes, or two times" in errors
        assert len(lines) == ROWS - 1
        assert all(line.startswith("+ saddr=10.0.0.") for line in lines)
        _, errors = await call(url, tmp_path, "at", "2", "flows", "--since", "3", code=2)
        assert "the first time is later" in errors


async def test_replay_to_lines_and_files(tmp_path: Path) -> None:
    async with log(tmp_path) as (url, between):
        lines, errors = await call(url, tmp_path, "replay", "flows")
        numbers = [json.loads(line)["key"]["saddr"] for line in lines]
        assert numbers == [f"10.0.0.{number}" for number in range(MESSAGES * ROWS)]
        assert f"{MESSAGES * ROWS} changes in {MESSAGES} messages" in errors
        file = tmp_path / "some.jsonl"
        start = datetime.fromtimestamp(between[2] / 1e9, UTC).isoformat()
        options = ("--from", start, "--to", "5", "-o", str(file))
        assert (await call(url, tmp_path, "replay", "flows", *options))[0] == []
        told = [json.loads(line) for line in file.read_text().splitlines()]
        assert sorted({each["stream_sequence"] for each in told}) == [3, 4, 5]


async def test_the_pace_of_history(tmp_path: Path) -> None:
    async with log(tmp_path) as (url, between):
        took = (between[-1] - between[0]) / 1e9
        began = time.monotonic()
        await call(url, tmp_path, "replay", "flows", "--speed", "0.02", "--to", "4")
        assert time.monotonic() - began > took / MESSAGES * 3 * 10


async def test_replay_to_a_subject(tmp_path: Path) -> None:
    async with log(tmp_path) as (url, _):
        bus = await open_bus(BusSettings("reader", (url,)))
        try:
            link = await bus.link()
            seen: list[tuple[str, int]] = []

            def take(message: object) -> None:
                headers = getattr(message, "headers", None) or {}
                lines = getattr(message, "data", b"").splitlines()
                seen.append((headers[HEADER_SOURCE], len(lines)))

            await link.subscribe("test.flows", take)
            await link.pulse(5.0)
            await call(url, tmp_path, "replay", "flows", "--subject", "test.flows")
            await link.pulse(5.0)
            assert seen == [(str(number + 1), ROWS) for number in range(MESSAGES)]
        finally:
            await bus.close()
        for wrong in ("mapbridge.c.delta.flows.a", "$JS.API.x", "a.*", "a..b"):
            _, errors = await call(url, tmp_path, "replay", "flows", "--subject", wrong, code=2)
            assert "must be one of your own" in errors


@needs(Capability.CAP_BPF, Capability.CAP_NET_ADMIN, Capability.CAP_SYS_ADMIN)
async def test_replay_into_a_scratch_map_and_never_into_a_bridged_one(tmp_path: Path) -> None:
    sizes = LAYOUT.key.size, LAYOUT.value.size
    name = unique_name("hist")
    with pin_folder() as pins, create_map(MapType.HASH, *sizes, 97, name=name) as live:
        live.pin(pins / "live")
        async with log(tmp_path) as (url, _):
            pin = str(pins / "live")
            options = ("--into", str(pins / "then"), "--entries", "97", "--to", "3")
            await call(url, tmp_path, "replay", "flows", *options, pin=pin)
            with open_pin(pins / "then") as scratch:
                assert len(content(scratch)) == 3 * (ROWS - 1)
            assert content(live) == {}
            arguments = ("replay", "flows", "--into", pin)
            _, errors = await call(url, tmp_path, *arguments, pin=pin, code=2)
            assert "is map flows, which is bridged" in errors


@pytest.mark.parametrize(
    "arguments", [("--into", "/sys/fs/bpf/none_here"), ("-o", "x", "--into", "y")]
)
async def test_what_is_asked_wrongly(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    async with log(tmp_path) as (url, _):
        code = 2 if "-o" in arguments else 69
        arguments = tuple(str(tmp_path / "x") if each == "x" else each for each in arguments)
        await call(url, tmp_path, "replay", "flows", *arguments, code=code)
