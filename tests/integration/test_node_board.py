"""Which maps of which node are synced, as the others see it."""

from __future__ import annotations

import signal

import orjson
import pytest

from bridge.bus.board import SyncBoard
from bridge.kernel.features import Capability
from bridge.model import Role
from bridge.rig.nodes import CLUSTER, NodeProcess
from tests.integration.kernel_support import needs
from tests.log_kit import keeper
from tests.node_kit import Rig, content, fill, map_name, mapbridge, until

pytestmark = [needs(Capability.CAP_SYS_ADMIN), pytest.mark.own_server]


def nodes(asking: NodeProcess) -> dict[tuple[str, str], dict[str, object]]:
    ended = mapbridge("status", "--nodes", "-c", str(asking.config_path), "--json")
    assert ended.returncode == 0, ended.stderr
    return {(one["map"], one["node"]): one for one in orjson.loads(ended.stdout)["nodes"]}


def test_nodes_see_which_maps_of_others_are_synced(rig: Rig) -> None:
    a, b, name = rig.map("a"), rig.map("b"), map_name()
    node_a = rig.node("a", rig.entry(name, "a", Role.REPLICATE))
    node_b = rig.node("b", rig.entry(name, "b", Role.REPLICATE))
    fill(a, range(53), 1)
    until(lambda: content(a) == content(b), "the entries")
    waiting = ["status", "-c", str(node_a.config_path), "--wait-synced", name, "--node", "b"]
    assert mapbridge(*waiting).returncode == 0
    until(lambda: len(nodes(node_a)) == 2, "both")
    assert all(one["synced"] for one in nodes(node_a).values())
    node_b.stop()
    found = nodes(node_a)[name, "b"]
    assert (found["synced"], found["state"]) == (False, "stopped")
    refused = mapbridge(*waiting, "--timeout", "0")
    assert refused.returncode == 75
    assert f"map {name}: not synced on node b" in refused.stderr
    assert mapbridge("status", "--node", "b", "-c", str(node_a.config_path)).returncode == 2


def test_who_says_nothing_for_a_while_is_not_taken_for_ready(rig: Rig) -> None:
    rig.map("a")
    name = map_name()
    node = rig.node("a", rig.entry(name, "a", Role.REPLICATE))
    until(lambda: nodes(node).get((name, "a"), {}).get("synced") is True, "it is synced")
    node.process.send_signal(signal.SIGKILL)
    node.process.wait()
    until(lambda: not keeper(rig.server.url, lambda bus: SyncBoard(bus, CLUSTER).all()), "silence")


def test_the_limit_is_the_maps_own(rig: Rig) -> None:
    rig.map("a")
    entry = rig.entry(map_name(), "a", Role.REPLICATE)
    node = rig.node("a", entry, more="")
    text = node.config_path.read_text() + 'lag = "250ms"\n'
    node.stop()
    node.config_path.write_text(text)
    shown = mapbridge("config", "show", "-c", str(node.config_path), "--json")
    assert orjson.loads(shown.stdout)["maps"][0]["lag_seconds"] == 0.25
