"""Snapshots, holes and late nodes while programs on all nodes write the same keys."""

from __future__ import annotations

import pytest

from bridge.kernel.features import Capability
from bridge.model import Role
from tests.integration.kernel_support import needs
from tests.integration.test_node_trouble import Writer, rounds, swept
from tests.log_kit import Line, connected, forget, joined, position, snapshot, stream
from tests.node_kit import Rig, content, map_name, until

pytestmark = [needs(Capability.CAP_SYS_ADMIN), pytest.mark.own_server]


def test_a_late_node_whose_programs_write_too_ends_equal(rig: Rig) -> None:
    maps, name = [rig.map(side) for side in "abc"], map_name()
    nodes = [rig.node(side, rig.entry(name, side, Role.REPLICATE)) for side in "ab"]
    writers = [Writer(maps[0], 1), Writer(maps[1], 2)]
    rounds(writers, 101)
    forget(rig.server.url, position(snapshot(nodes[0], name)))
    writers.append(Writer(maps[2], 3))
    late = rig.node("c", rig.entry(name, "c", Role.REPLICATE))
    assert joined(late) == "load"
    rounds(writers, max(writer.rounds for writer in writers) + 101)
    for writer in writers:
        writer.stop()
    swept(*nodes, late)
    until(lambda: content(maps[0]) == content(maps[1]) == content(maps[2]), "the same")
    d = rig.map("d")
    rig.node("d", rig.entry(name, "d", Role.REPLICATE))
    until(lambda: content(d) == content(maps[0]), "what snapshot and log say")


def test_a_hole_under_load_ends_with_equal_maps(rig: Rig) -> None:
    a, b, name = rig.map("a"), rig.map("b"), map_name()
    line = Line(rig.server.url)
    node = rig.node("a", rig.entry(name, "a", Role.REPLICATE))
    reader = rig.node("b", rig.entry(name, "b", Role.REPLICATE), url=line.url)
    writers = [Writer(a, 4), Writer(b, 5)]
    rounds(writers, 53)
    for number in range(1, 3):
        line.cut()
        until(lambda: not connected(reader), "the cut")
        rounds(writers, max(writer.rounds for writer in writers) + 53)
        forget(rig.server.url, position(snapshot(node, name)))
        line.mend()
        until(lambda: stream(reader, "loads") == number, "the snapshot")  # noqa: B023
        rounds(writers, max(writer.rounds for writer in writers) + 53)
    for writer in writers:
        writer.stop()
    swept(node, reader)
    until(lambda: content(a) == content(b), "the same")
    c = rig.map("c")
    rig.node("c", rig.entry(name, "c", Role.APPLY))
    until(lambda: content(c) == content(a), "what snapshot and log say")
    assert stream(reader, "unmended") == 0
    line.close()
