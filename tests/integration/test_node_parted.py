"""Whole nodes on servers that lose each other: connected all the time, and not synced meanwhile."""

from __future__ import annotations

import time

from bridge.kernel.features import Capability
from bridge.model import Role
from bridge.node.synced import LAG_SECONDS_MAX
from tests.chaos.servers import ServerCluster
from tests.integration.kernel_support import needs
from tests.log_kit import synced
from tests.node_kit import Rig, content, fill, map_name, until

pytestmark = needs(Capability.CAP_SYS_ADMIN)

PARTED_SECONDS = 17.0  # longer than it takes to believe that a log has lost its end


def test_what_is_written_while_servers_are_parted_is_kept_and_comes_later(
    rig: Rig, cluster: ServerCluster
) -> None:
    a, b, name = rig.map("a"), rig.map("b"), map_name()
    nodes = [
        rig.node(side, rig.entry(name, side, Role.REPLICATE), url=cluster.url, replicas=3)
        for side in "ab"
    ]
    fill(a, range(101), 1)
    until(lambda: len(content(b)) == 101, "the first entries")
    until(lambda: all(map(synced, nodes)), "the word that all is well")
    cluster.part(apart=True)
    began = time.monotonic()
    fill(a, range(50, 151), 2)
    fill(b, range(200, 251), 3)
    own = content(a), content(b)
    until(lambda: not any(map(synced, nodes)), "the word that nothing is known")
    assert time.monotonic() - began > LAG_SECONDS_MAX
    time.sleep(max(began + PARTED_SECONDS - time.monotonic(), 0.0))
    assert (content(a), content(b)) == own
    cluster.part(apart=False)
    until(lambda: content(a) == content(b) and len(content(a)) == 202, "all of it")
    until(lambda: all(map(synced, nodes)), "the word that all is well again")
    assert not any("joins anew" in node.log_path.read_text() for node in nodes)
