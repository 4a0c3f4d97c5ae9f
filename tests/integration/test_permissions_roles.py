"""What each kind of user may and may not do, on a broker that enforces what is printed for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from bridge.bus.board import board_stream, board_subject
from bridge.bus.nats_bus import open_bus
from bridge.bus.schemas import SchemaStore
from bridge.errors import Exit
from bridge.kernel.maps import KernelMap
from bridge.model import Role
from bridge.rig.nodes import CLUSTER
from bridge.wire.subjects import (
    feed_stream_name,
    schema_stream_name,
    snapshot_stream_name,
    stream_name,
)
from tests.bus_kit import eventually
from tests.integration.kernel_support import rows_of
from tests.node_kit import KEY, content, fill, mapbridge, until
from tests.permissions_kit import REFUSED, Guarded, expect_forbidden, guarded

TYPES = "struct flow { __u32 n[4]; }; struct count { __u64 n[3]; };"
LAYOUT = f'[maps.layout]\ntypes = "{TYPES}"\nkey = "struct flow"\nvalue = "struct count"\n'
GUARD = 'guard = { deletes = "50%", window = "10s" }\n'
USERS = {
    "a": [],
    "b": ["--map", "m", "--map", "guarded"],
    "eye": ["--for", "observer"],
    "op": ["--for", "operator"],
    "feeder": ["--for", "feed", "--map", "m"],
}
LOG, SNAPSHOTS = stream_name(CLUSTER), snapshot_stream_name(CLUSTER)
SCHEMAS, FEEDS = schema_stream_name(CLUSTER), feed_stream_name(CLUSTER)
BOARD = board_stream(CLUSTER)
ROOT = f"mapbridge.{CLUSTER}"
READERS = ("eye", "feeder")


@dataclass(frozen=True, slots=True)
class Cluster:
    """Two nodes with map ``m``, and ``guarded``, which b only applies, and guards."""

    on: Guarded
    m: tuple[KernelMap, KernelMap]
    guarded: tuple[KernelMap, KernelMap]

    def run(self, name: str, *command: str) -> str:
        """What a command prints for a user for whom it works."""
        ended = mapbridge(*command, "-c", str(self.on.rig.directory / f"{name}.toml"))
        assert ended.returncode == 0, (command, ended.stderr)
        assert REFUSED not in ended.stderr.lower()
        return ended.stdout

    def refused(self, name: str, *command: str) -> None:
        """A command that the user's permissions do not allow says so, and what helps."""
        ended = mapbridge(*command, "-c", str(self.on.rig.directory / f"{name}.toml"))
        assert ended.returncode == Exit.CONFIG, (command, ended.stdout, ended.stderr)
        assert f"{REFUSED} for publish to" in ended.stderr
        assert "mapbridge nats-permissions" in ended.stderr


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with guarded(tmp_path_factory.mktemp("roles"), USERS) as on:
        rig = on.rig
        made = Cluster(on, (rig.map("a"), rig.map("b")), (rig.map("ag"), rig.map("bg")))
        for name, role, more in (("a", Role.PUBLISH, ""), ("b", Role.APPLY, GUARD)):
            rig.node(
                name,
                rig.entry("m", name, Role.REPLICATE, LAYOUT),
                rig.entry("guarded", f"{name}g", role, more),
                url=on.url(name),
            )
        for name in ("eye", "op", "feeder"):
            tables = f'[[maps]]\nname = "m"\npin = "{rig.pins}/a"\n{LAYOUT}'
            on.config(name, f'{tables}[[maps]]\nname = "guarded"\npin = "{rig.pins}/ag"\n')
        fill(made.m[0], range(101), 7)
        fill(made.guarded[0], range(1009), 1)
        until(lambda: content(made.m[0]) == content(made.m[1]), "b has what a wrote")
        until(lambda: len(content(made.guarded[1])) == 1009, "and of the other map")
        yield made


def test_an_observer_reads(cluster: Cluster) -> None:
    assert len(cluster.run("eye", "at", "0s", "m", "--json").splitlines()) == 101
    lines = cluster.run("eye", "watch", "m", "--from-start", "--count", "101", "--json")
    assert len(lines.splitlines()) == 101
    assert len(cluster.run("eye", "replay", "m").splitlines()) == 101
    assert "same" in cluster.run("eye", "schema", "check", "m")
    nodes = json.loads(cluster.run("eye", "status", "--nodes", "--json"))["nodes"]
    assert {one["node"] for one in nodes if one["answers"]} == {"a", "b"}
    cluster.run("eye", "status", "--wait-synced", "m", "--node", "b")
    looked = json.loads(cluster.run("eye", "top", "--once", "--json"))
    assert [node["node"] for node in looked["nodes"]] == ["a", "b"]


def test_a_feed_is_published_and_goes_on(cluster: Cluster) -> None:
    first = json.loads(cluster.run("feeder", "feed", "m", "--once", "--json"))["feeds"]
    assert {one["changes"] for one in first.values()} == {101}, first
    again = json.loads(cluster.run("feeder", "feed", "m", "--once", "--json"))["feeds"]
    assert {one["changes"] for one in again.values()} == {0}, again
    for name in READERS:  # the feeder's are printed for map m alone
        cluster.refused(name, "feed", "guarded", "--once")


def test_what_readers_may_not_ask_is_told_at_once(cluster: Cluster) -> None:
    for name in READERS:
        cluster.refused(name, "verify", "m")
        cluster.refused(name, "diff", "m", "a", "b")
        cluster.refused(name, "replay", "m", "--subject", "test.elsewhere")


def test_an_operator_compares_and_lets_a_map_go_on(cluster: Cluster) -> None:
    a, b = cluster.guarded
    assert json.loads(cluster.run("op", "diff", "m", "a", "b", "--json"))["differ"] == 0
    cluster.run("op", "verify", "m")
    cluster.run("op", "top", "--once")
    cluster.run("op", "status", "--nodes")
    a.delete_batch(rows_of(range(997), KEY))
    node = cluster.on.rig.nodes[1]
    until(lambda: bool(node.map_status("guarded").get("halted")), "the halt")
    for name in READERS:
        cluster.refused(name, "resume", "guarded", "--node", "b")
    assert len(content(b)) == 1009
    cluster.run("op", "resume", "guarded", "--node", "b")
    until(lambda: len(content(b)) == 12, "it goes on")


async def test_layouts_are_for_all_to_read_and_for_nobody_to_change(cluster: Cluster) -> None:
    for name in USERS:
        bus = await open_bus(cluster.on.settings(name))
        try:
            (stored,) = await SchemaStore(bus, CLUSTER).all("m")
            assert b"flow" in stored.data, name
        finally:
            await bus.close()
    bus = await open_bus(cluster.on.settings("a"))
    try:
        store = SchemaStore(bus, CLUSTER)
        assert await store.put("m", 77, b"first")
        assert not await store.put("m", 77, b"second")
        kept = await store.get("m", 77)
        assert kept is not None
        assert kept.data == b"first"
        reply = await (await bus.link()).request(f"{ROOT}.schema.m.{77:016x}", b"third")
        assert "maximum messages per subject" in json.loads(reply.data)["error"]["description"]
    finally:
        await bus.close()


FORBIDDEN = [
    *(
        (name, subject)
        for name in (*READERS, "op")
        for subject in (
            f"{ROOT}.delta.m.a",
            f"{ROOT}.delta.m.{name}",
            f"{ROOT}.schema.m.{99:016x}",
            f"{ROOT}.snap.m.0.manifest",
            board_subject(CLUSTER, "m", "a"),
        )
    ),
    *(
        (name, subject)
        for name in READERS
        for subject in (
            f"{ROOT}.ctl",
            *(f"{ROOT}.ctl.a.{verb}" for verb in ("digest", "entries", "repair", "resume")),
            *(
                f"$JS.API.STREAM.{verb}.{stream}"
                for verb in ("DELETE", "PURGE", "UPDATE", "MSG.DELETE", "SNAPSHOT", "RESTORE")
                for stream in (LOG, FEEDS)
            ),
            *(f"$JS.API.STREAM.CREATE.{stream}" for stream in (LOG, SNAPSHOTS, SCHEMAS, BOARD)),
            "$JS.API.STREAM.LIST",
            "$JS.API.STREAM.CREATE.MINE",
            f"$JS.API.CONSUMER.NAMES.{LOG}",
            f"$JS.API.CONSUMER.DURABLE.CREATE.{LOG}.c",
        )
    ),
    ("eye", f"{ROOT}.feed.json.m"),
    ("eye", f"$JS.API.STREAM.CREATE.{FEEDS}"),
    ("op", f"{ROOT}.feed.json.m"),
    ("feeder", f"{ROOT}.feed.json.guarded"),
    ("b", f"{ROOT}.delta.other.b"),
    ("b", f"{ROOT}.schema.other.{99:016x}"),
    ("b", f"{ROOT}.snap.other.0.manifest"),
    ("b", board_subject(CLUSTER, "other", "b")),
    ("a", f"$JS.API.STREAM.CREATE.{FEEDS}"),
]


@pytest.mark.parametrize(("name", "subject"), FORBIDDEN)
async def test_what_is_refused(cluster: Cluster, name: str, subject: str) -> None:
    await expect_forbidden(cluster.on, name, subject)


@pytest.mark.parametrize("name", ["eye", "feeder", "op", "b"])
async def test_nobody_listens_to_others(cluster: Cluster, name: str) -> None:
    bus = await open_bus(cluster.on.settings(name))
    try:
        link = await bus.link()
        for subject in (f"{ROOT}.>", f"{ROOT}.ctl.a.*", "_INBOX_a.>", "$KV.>", ">"):
            link.trouble = ""
            await link.subscribe(subject, lambda message: None)
            await link.pulse(10.0)
            await eventually(lambda: REFUSED in link.trouble)
            assert link.trouble.endswith(f'for subscription to "{subject.lower()}"')
    finally:
        await bus.close()
