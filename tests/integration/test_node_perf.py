"""Two whole nodes, one of which captures through perf buffers."""

from __future__ import annotations

import os

import pytest

from bridge.capture.loader import import_bcc
from bridge.errors import UnavailableError
from bridge.kernel.features import Capability
from bridge.kernel.perf import online_cpus
from bridge.model import Role
from bridge.rig.nodes import NodeProcess
from tests.integration.kernel_support import needs, rows_of
from tests.node_kit import KEY, Rig, content, fill, map_name, published, until

pytestmark = [needs(Capability.CAP_SYS_ADMIN, Capability.CAP_PERFMON), pytest.mark.own_server]


@pytest.fixture(autouse=True)
def compiler() -> None:
    try:
        import_bcc()
    except UnavailableError as error:
        pytest.skip(f"capture programs cannot be built: {error}")


def test_changes_of_all_processors_arrive_in_order(rig: Rig) -> None:
    a, b, name = rig.map("a"), rig.map("b"), map_name()
    fill(a, range(1009), 1)  # before the bridge starts
    node = NodeProcess(
        "a",
        rig.directory,
        broker_url=rig.server.url,
        maps=[rig.entry(name, "a", Role.REPLICATE)],
        capture="syscall",
        transport="perf",
    )
    rig.nodes.append(node)
    node.await_running()
    rig.node("b", rig.entry(name, "b", Role.APPLY))
    until(lambda: content(a) == content(b), "what was there")
    capture = node.status()["capture"]
    assert isinstance(capture, dict)
    assert (capture["mode"], capture["transport"]) == ("syscall", "perf")
    before, cpus = published(node), sorted(os.sched_getaffinity(0))
    assert set(cpus) <= set(online_cpus())
    try:
        for turn in range(31):
            os.sched_setaffinity(0, {cpus[turn % len(cpus)]})
            fill(a, range(500, 2003), turn)
        a.delete_batch(rows_of(range(97), KEY))
    finally:
        os.sched_setaffinity(0, cpus)
    until(lambda: content(a) == content(b), "changes")
    assert len(content(b)) == 2003 - 97
    assert {value[0] for value in content(b).values()} == {1, 30}
    until(lambda: published(node) == before + 31 * 1503 + 97, "each change once")
    fill(a, range(3000, 3499), 7)
    node.stop()  # what was captured goes out before it ends
    until(lambda: content(a) == content(b), "the last ones")
