"""Whole nodes on a broker that enforces what `mapbridge nats-permissions` prints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from bridge.bus.nats_bus import open_bus
from bridge.bus.nats_snapshots import NatsSnapshotStore
from bridge.bus.permissions import Kind, permissions
from bridge.bus.streams import LogSettings
from bridge.kernel.maps import KernelMap
from bridge.model import Role
from bridge.node.access import inbox_prefix
from bridge.rig.nodes import CLUSTER
from tests.bus_kit import eventually
from tests.node_kit import DEADLINE_SECONDS, content, fill, mapbridge, until
from tests.permissions_kit import Guarded, expect_forbidden, guarded

LOG, SNAPSHOTS = f"MAPBRIDGE_{CLUSTER}", f"MAPBRIDGE-SNAPSHOTS_{CLUSTER}"
USERS = {"a": [], "b": [], "eye": ["--for", "observer"], "op": ["--for", "operator"]}


@dataclass(frozen=True, slots=True)
class Cluster:
    """Two nodes with a map each, and configurations for those who only ask."""

    on: Guarded
    maps: tuple[KernelMap, KernelMap]

    def config_of(self, name: str) -> str:
        return str(self.on.config(name, f'[[maps]]\nname = "m"\npin = "{self.on.rig.pins}/a"\n'))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with guarded(tmp_path_factory.mktemp("permissions"), USERS) as on:
        maps = on.rig.map("a"), on.rig.map("b")
        for name in ("a", "b"):
            on.rig.node(name, on.rig.entry("m", name, Role.REPLICATE), url=on.url(name))
        yield Cluster(on, maps)


def test_whole_nodes_work_with_what_is_printed(cluster: Cluster) -> None:
    a, b = cluster.maps
    fill(a, range(101), 7)
    until(lambda: len(content(b)) == 101, "b has what a wrote")
    fill(b, range(200, 303), 9)
    until(lambda: content(a) == content(b) and len(content(a)) == 204, "both are equal")
    own = str(cluster.on.rig.nodes[0].config_path)
    taken = mapbridge("snapshot", "m", "-c", own)
    assert taken.returncode == 0, taken.stderr
    operator, observer = cluster.config_of("op"), cluster.config_of("eye")
    equal = mapbridge("verify", "m", "-c", operator, "--json")
    assert equal.returncode == 0, equal.stderr
    standing = mapbridge("status", "--nodes", "-c", observer, "--json")
    assert standing.returncode == 0, standing.stderr
    assert {one["node"] for one in json.loads(standing.stdout)["nodes"]} == {"a", "b"}
    past = mapbridge("at", "0s", "m", "-c", observer, "--json")
    assert past.returncode == 0, past.stderr
    for node in cluster.on.rig.nodes:
        assert "ermissions" not in node.log_path.read_text(), "nothing that it needs is refused"


FORBIDDEN = {
    "another's changes": f"mapbridge.{CLUSTER}.delta.m.a",
    "another's standing": f"$KV.MAPBRIDGE-SYNC_{CLUSTER}.m.a",
    "a purge": f"$JS.API.STREAM.PURGE.{LOG}",
    "a delete of the log": f"$JS.API.STREAM.DELETE.{LOG}",
    "a delete of the snapshots": f"$JS.API.STREAM.DELETE.{SNAPSHOTS}",
    "a change of the log": f"$JS.API.STREAM.UPDATE.{LOG}",
    "a message's delete": f"$JS.API.STREAM.MSG.DELETE.{LOG}",
    "a list of consumers": f"$JS.API.CONSUMER.NAMES.{LOG}",
    "a consumer elsewhere": "$JS.API.CONSUMER.CREATE.OTHER.c",
    "an order to a node": f"mapbridge.{CLUSTER}.ctl.a.repair",
    "another's feed": f"mapbridge.{CLUSTER}.feed.json.m",
    "an answer to another": f"{inbox_prefix('a')}.x",
}


@pytest.mark.parametrize("subject", FORBIDDEN.values(), ids=FORBIDDEN.keys())
async def test_what_a_node_may_not(cluster: Cluster, subject: str) -> None:
    await expect_forbidden(cluster.on, "b", subject)


async def test_a_node_cannot_listen_to_others_or_roll_up(cluster: Cluster) -> None:
    bus = await open_bus(cluster.on.settings("b"))
    try:
        link = await bus.link()
        before = (await bus.log_state(CLUSTER)).messages
        for subject in (f"mapbridge.{CLUSTER}.delta.m.b", f"$KV.MAPBRIDGE-SYNC_{CLUSTER}.m.b"):
            reply = json.loads((await link.request(subject, b"x", {"Nats-Rollup": "all"})).data)
            assert "rollup" in reply["error"]["description"]
        assert (await bus.log_state(CLUSTER)).messages >= before
        await link.subscribe(f"{inbox_prefix('a')}.>", lambda message: None)
        await link.pulse(DEADLINE_SECONDS)
        refused = 'violation for subscription to "_inbox_a.>"'
        await eventually(lambda: refused in link.trouble)  # told by a task of the client's
    finally:
        await bus.close()


async def test_what_remains_possible(cluster: Cluster) -> None:
    """A stored message can be delivered by the server to any subject: see the page on security."""
    bus = await open_bus(cluster.on.settings("b"))
    try:
        link = await bus.link()
        store = NatsSnapshotStore(bus, CLUSTER, LogSettings(), "b")
        await store.put(f"mapbridge.{CLUSTER}.snap.m.0.999", b"another's part")
        config = {
            "name": "hole",
            "deliver_subject": f"mapbridge.{CLUSTER}.delta.m.a",
            "ack_policy": "none",
            "filter_subject": f"mapbridge.{CLUSTER}.snap.m.>",
        }
        made = await link.call(
            f"$JS.API.CONSUMER.CREATE.{SNAPSHOTS}.hole.mapbridge.{CLUSTER}.snap.m.>",
            {"stream_name": SNAPSHOTS, "config": config},
        )
        assert not made.error_code, "the broker refuses it now: correct the page"
        await link.call(f"$JS.API.CONSUMER.DELETE.{SNAPSHOTS}.hole")
    finally:
        await bus.close()


def test_maps_can_be_named_and_creation_left_out() -> None:
    found = permissions(Kind.NODE, "c", "n", "_INBOX_n", maps=["ct", "a.b"], creates=False)
    assert "mapbridge.c.delta.ct.n" in found.publish
    assert "mapbridge.c.delta.a_2eb.n" in found.publish
    assert not any("*.n" in subject or "CREATE.M" in subject for subject in found.publish[:8])
    assert not any(".STREAM.CREATE." in subject for subject in found.publish)


@pytest.mark.parametrize(
    "wrong",
    [[], ["--node", "a.b"], ["--node", "a", "--map", ""], ["--node", "a", "--cluster", "*"]],
)
def test_names_that_are_none(wrong: list[str]) -> None:
    ended = mapbridge("nats-permissions", *wrong)
    assert ended.returncode == 2
    assert "Try:" in ended.stderr
