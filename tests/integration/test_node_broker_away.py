"""Whole nodes whose broker is away, full, or does not let them: nothing is lost but history."""

from __future__ import annotations

import contextlib
import subprocess
import time
from pathlib import Path

import orjson
import pytest

from bridge.kernel.features import Capability
from bridge.model import Role
from bridge.rig.broker import ServerThread
from bridge.rig.nodes import CLUSTER, NodeProcess
from bridge.wire.subjects import stream_name
from tests.integration.kernel_support import needs, rows_of
from tests.log_kit import keeper
from tests.node_kit import KEY, Rig, content, fill, map_name, mapbridge, published, until

pytestmark = [needs(Capability.CAP_SYS_ADMIN), pytest.mark.own_server]


def section(node: NodeProcess, name: str) -> dict[str, object]:
    found = node.map_status().get(name)
    return found if isinstance(found, dict) else {}


def trouble(node: NodeProcess) -> str:
    return str(node.map_status().get("trouble") or "")


def merged(node: NodeProcess) -> int:
    return int(str(section(node, "outbox").get("rows_merged") or 0))


def flushed(node: NodeProcess) -> bool:
    status = node.map_status()
    captured, stored, waiting = (status[name] for name in ("capture", "published", "outbox"))
    assert isinstance(captured, dict)
    assert isinstance(stored, dict)
    assert isinstance(waiting, dict)
    merged_away = captured["changes"] - stored["changes"]
    return waiting["rows"] == 0 and bool(merged_away == waiting["rows_merged"])


def test_while_the_broker_is_away_only_history_shortens(rig: Rig, tmp_path: Path) -> None:
    a, b, name = rig.map("a"), rig.map("b"), map_name()
    small = '[limits]\noutbox = "1MiB"\n'
    with ServerThread(tmp_path / "first") as first:
        port, url = int(first.url.rpartition(":")[2]), first.url
        node = rig.node("a", rig.entry(name, "a", Role.REPLICATE), url=url, more=small)
        other = rig.node("b", rig.entry(name, "b", Role.REPLICATE), url=url)
        fill(a, range(4001), 1)
        until(lambda: content(a) == content(b), "the first entries")
    deadline, rounds = time.monotonic() + 60.0, 1
    while merged(node) < 10_007:  # many times what the outbox holds
        assert time.monotonic() < deadline, section(node, "outbox")
        rounds += 1
        fill(a, range(4001), rounds % 251)
        time.sleep(0.3)
    a.delete_batch(rows_of(range(503), KEY))
    fill(b, range(5000, 5101), 7)
    outbox = section(node, "outbox")
    assert int(str(outbox["bytes_peak"])) <= 1 << 20
    assert "cannot connect" in str(node.status()["broker"])
    with ServerThread(tmp_path / "first", port=port):
        until(lambda: len(content(a)) == 3599 and content(a) == content(b), "the same")
        until(lambda: flushed(node), "everything that was not merged is stored")
        other.stop()
        node.stop()


def edit_log(url: str, **changes: object) -> None:
    async def edit(bus: object) -> None:
        link = await bus.link()  # type: ignore[attr-defined]
        name = stream_name(CLUSTER)
        now = await link.call(f"$JS.API.STREAM.INFO.{name}", {})
        reply = await link.call(f"$JS.API.STREAM.UPDATE.{name}", now.section("config") | changes)
        assert not reply.error, reply.error

    keeper(url, edit)


def test_a_log_that_takes_no_more_is_told_and_waited_for(rig: Rig) -> None:
    a, b, name = rig.map("a"), rig.map("b"), map_name()
    node = rig.node("a", rig.entry(name, "a", Role.REPLICATE))
    rig.node("b", rig.entry(name, "b", Role.REPLICATE))
    fill(a, range(211), 1)
    until(lambda: content(a) == content(b), "the first entries")
    edit_log(rig.server.url, discard="new", max_bytes=20_000)
    fill(a, range(1000, 2009), 2)
    until(lambda: "maximum bytes exceeded" in trouble(node), "the word")
    said = mapbridge("status", "-c", str(node.config_path))
    assert f"map {name}: maximum bytes exceeded" in said.stdout
    edit_log(rig.server.url, discard="old", max_bytes=-1)
    until(lambda: content(a) == content(b), "the rest")
    until(lambda: trouble(node) == "", "the all-clear")
    assert len(content(b)) == 1220


def test_a_full_disk_is_told_and_waited_for(rig: Rig, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)],
        check=False,
        capture_output=True,
        text=True,
    )
    if made.returncode:
        pytest.skip(f"no small file system to be had here: {made.stderr.strip()}")
    try:
        _fill_the_disk(rig, disk)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def _fill_the_disk(rig: Rig, disk: Path) -> None:
    a, b, name = rig.map("a"), rig.map("b"), map_name()
    with ServerThread(disk / "nats") as server:
        port, url = int(server.url.rpartition(":")[2]), server.url
        node = rig.node("a", rig.entry(name, "a", Role.REPLICATE), url=url)
        other = rig.node("b", rig.entry(name, "b", Role.REPLICATE), url=url)
        fill(a, range(211), 1)
        until(lambda: content(a) == content(b), "the first entries")
        ballast = disk / "ballast"
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(1 << 12)):
                pass
        fill(a, range(1000, 9001), 2)
        until(lambda: trouble(node) != "", "the word")
        assert node.process.poll() is None
        ballast.unlink()
    # The server gives up its storage when a write fails; the operator starts it again.
    with ServerThread(disk / "nats", port=port):
        until(lambda: content(a) == content(b), "the rest")
        until(lambda: trouble(node) == "", "the all-clear")
        assert len(content(b)) == 8212
        other.stop()
        node.stop()


def rights(publish: str) -> str:
    return (
        "authorization { users = [\n"
        f'  {{user: "bridge", password: "secret", permissions: {{publish: {publish}}}}}\n'
        "] }\n"
    )


def test_a_permission_that_was_taken_away_is_told_and_waited_for(rig: Rig, tmp_path: Path) -> None:
    a, b, name = rig.map("a"), rig.map("b"), map_name()
    directory = tmp_path / "guarded"
    with ServerThread(directory, extra_config=rights('">"')) as server:
        port = int(server.url.rpartition(":")[2])
        url = f"nats://bridge:secret@127.0.0.1:{port}"
        node = rig.node("a", rig.entry(name, "a", Role.REPLICATE), url=url)
        other = rig.node("b", rig.entry(name, "b", Role.REPLICATE), url=url)
        fill(a, range(211), 1)
        until(lambda: content(a) == content(b), "the first entries")
    with ServerThread(
        directory, port=port, extra_config=rights('{allow: ">", deny: "mapbridge.>"}')
    ):
        fill(a, range(1000, 1103), 2)
        until(lambda: "permissions violation" in trouble(node).lower(), "the word")
    with ServerThread(directory, port=port, extra_config=rights('">"').replace("secret", "no")):
        until(lambda: "authorization" in broker_trouble(node).lower(), "the refusal")
        assert node.process.poll() is None
    with ServerThread(directory, port=port, extra_config=rights('">"')):
        until(lambda: content(a) == content(b), "the rest")
        until(lambda: trouble(node) == broker_trouble(node) == "", "the all-clear")
        assert published(node) == 314
        other.stop()
        node.stop()


def broker_trouble(node: NodeProcess) -> str:
    broker = node.status().get("broker")
    return str(broker.get("trouble") or "") if isinstance(broker, dict) else "?"


def test_status_is_json_with_the_trouble_in_it(rig: Rig) -> None:
    rig.map("a")
    node = rig.node("a", rig.entry(map_name(), "a", Role.REPLICATE))
    said = mapbridge("status", "-c", str(node.config_path), "--json")
    assert orjson.loads(said.stdout)["broker"]["trouble"] == ""
