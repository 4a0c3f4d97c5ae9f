"""Values that a program changes in place: a sweep finds them, and the program can tell of them."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bridge.kernel.features import Capability
from bridge.kernel.maps import KernelMap, create_map
from bridge.kernel.objects import LoadedObject, compile_object, default_cache, load_object
from bridge.model import Role
from bridge.resources import bpf_directory, bpf_source
from bridge.rig.broker import ServerThread
from bridge.rig.nodes import MapEntry, NodeProcess
from tests.integration.kernel_support import needs, pin_folder
from tests.node_kit import content, map_name, published, until

pytestmark = needs(Capability.CAP_BPF, Capability.CAP_NET_ADMIN)
FLOWS = 101
SWEEP = 'sweep = "100ms"'


@dataclass(slots=True)
class Scene:
    """The program's map on node a, a replica on node b."""

    loaded: LoadedObject
    node: NodeProcess
    replica: KernelMap

    @property
    def flows(self) -> KernelMap:
        return self.loaded.map("flows")

    def packet(self, flow: int, *, counted: bool = True, times: int = 1) -> None:
        frame = struct.pack("=II", flow, 0 if counted else 1).ljust(64, b"\0")
        self.loaded.program("flows_run").test_run(frame, repeat=times)

    def equal(self) -> bool:
        return content(self.flows) == content(self.replica)

    def found(self, counter: str) -> int:
        capture = self.node.map_status()["capture"]
        assert isinstance(capture, dict)
        return int(capture["sweeps"][counter])


@contextlib.contextmanager
def scene(directory: Path, defines: list[str], *more: str) -> Iterator[Scene]:
    compiled = compile_object(
        bpf_source("examples/flows.bpf.c"),
        include=[bpf_directory()],
        defines=defines,
        cache=default_cache(),
    )
    with (
        pin_folder() as pins,
        ServerThread(directory / "nats") as server,
        load_object(compiled, pins / "a") as loaded,
    ):
        info = loaded.map("flows").info
        replica = create_map(info.type, info.key_size, info.value_size, info.max_entries)
        replica.pin(pins / "b")
        emit = (loaded.map_pin("flows_ring"), loaded.map_pin("flows_lost"))
        name = map_name()
        entry = MapEntry(name, loaded.map_pin("flows"), Role.REPLICATE, emit, more=more)
        other = MapEntry(name, pins / "b", Role.APPLY)
        with (
            replica,
            NodeProcess("a", directory, broker_url=server.url, maps=[entry]) as a,
            NodeProcess("b", directory, broker_url=server.url, maps=[other]) as b,
        ):
            a.await_running()
            b.await_running()
            made = Scene(loaded, a, replica)
            for flow in range(FLOWS):
                made.packet(flow)
            until(made.equal, "what was inserted")
            yield made


def test_a_sweep_finds_what_no_record_tells(tmp_path: Path) -> None:
    with scene(tmp_path, ["EMIT"], SWEEP) as made:
        for flow in range(0, FLOWS, 2):
            made.packet(flow, times=7)
        until(made.equal, "counts that were changed in place")
        until(lambda: made.found("found") > FLOWS // 2, "the count")
        until(lambda: published(made.node) == FLOWS + made.found("found"), "the status")
        sweeps, before = made.found("finished"), published(made.node)
        until(lambda: made.found("finished") > sweeps + 5, "sweeps of a map at rest")
        assert published(made.node) == before, "nothing changed, and something was published"


def test_without_a_sweep_nobody_sees_them(tmp_path: Path) -> None:
    with scene(tmp_path, ["EMIT"]) as made:
        old = content(made.replica)
        made.packet(1, times=7)
        made.packet(FLOWS)  # inserted: told by a record that comes after
        until(lambda: len(content(made.replica)) == FLOWS + 1, "the record")
        assert content(made.replica).items() >= old.items()
        assert not made.equal()


def test_the_program_can_tell_of_them_itself(tmp_path: Path) -> None:
    with scene(tmp_path, ["EMIT", "EMIT_IN_PLACE"]) as made:
        for flow in range(0, FLOWS, 2):
            made.packet(flow, times=7)
        until(made.equal, "counts that were emitted")
        assert made.found("finished") == 0


def test_fields_to_be_ignored_are_no_change_and_come_with_the_next_one(tmp_path: Path) -> None:
    with scene(tmp_path, ["EMIT"], SWEEP, 'ignore = ["seen"]') as made:
        until(lambda: published(made.node) == FLOWS, "the status")
        for flow in range(FLOWS):
            made.packet(flow, counted=False, times=3)
        sweeps = made.found("finished")
        until(lambda: made.found("finished") > sweeps + 5, "sweeps")
        assert published(made.node) == FLOWS
        assert not made.equal(), "the times differ, so it was not the program that did nothing"
        for flow in range(FLOWS):
            made.packet(flow)
        until(made.equal, "counts, and the times with them")
        until(lambda: published(made.node) >= 2 * FLOWS, "the status")
        assert published(made.node) == 2 * FLOWS
