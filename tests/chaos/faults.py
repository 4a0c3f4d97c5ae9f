"""What is done to a running cluster, one fault at a time, and undone again."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bridge.bench.churn import LOSSES, MAP, RING
from bridge.model import Role
from bridge.node.positions import FILE as POSITIONS
from bridge.rig.compare import read_entries
from bridge.rig.nodes import CLUSTER, MapEntry, NodeProcess
from bridge.wire.subjects import stream_name
from tests.chaos.load import Load
from tests.chaos.servers import Server, ServerCluster

SETTLE_SECONDS_MAX = 120.0
SPARE = "spare"


@dataclass(slots=True)
class Stage:
    """Everything that faults act on.

    mortal  nodes whose bridges may be killed
    spares  the writers of a second map of each node, where there is one
    """

    directory: Path
    cluster: ServerCluster
    loads: list[Load]
    mortal: Sequence[int]
    spares: list[Load] = field(default_factory=list)
    nodes: list[NodeProcess] = field(default_factory=list)
    until_equal: Callable[[], bool] = lambda: True

    def start_node(self, number: int) -> NodeProcess:
        return NodeProcess(
            f"n{number + 1}",
            self.directory,
            broker_url=self.cluster.url,
            replicas=3,
            maps=self.maps(number),
        )

    def maps(self, number: int, *, spare: bool = True) -> list[MapEntry]:
        """The maps of a node's configuration."""
        entries = [_entry(MAP, self.loads[number])]
        if spare and self.spares:
            entries.append(_entry(SPARE, self.spares[number]))
        return entries

    def writers(self, number: int) -> list[Load]:
        """Of one node."""
        return [loads[number] for loads in (self.loads, self.spares) if loads]

    @property
    def all_writers(self) -> list[Load]:
        return [*self.loads, *self.spares]

    def restart_node(self, number: int) -> None:
        self.nodes[number] = self.start_node(number)
        self.nodes[number].await_running()


def _entry(name: str, load: Load) -> MapEntry:
    loaded = load.churn.loaded
    emit = (loaded.map_pin(RING), loaded.map_pin(LOSSES))
    return MapEntry(name, loaded.map_pin(MAP), Role.REPLICATE, emit)


Fault = Callable[[Stage, random.Random, float], contextlib.AbstractContextManager[str]]


@contextlib.contextmanager
def bridge_killed(stage: Stage, chance: random.Random, seconds: float) -> Iterator[str]:
    """SIGKILL; its programs go on writing, and it starts again."""
    number = chance.choice(stage.mortal)
    _kill(stage.nodes[number])
    yield stage.nodes[number].name
    stage.restart_node(number)


@contextlib.contextmanager
def node_wiped(stage: Stage, chance: random.Random, seconds: float) -> Iterator[str]:
    """Another machine takes the node's place: neither map nor state directory has survived.

    What only it knew is gone with it, so its programs rest until everything is on the stream.
    """
    number = chance.choice(stage.mortal)
    for load in stage.all_writers:
        load.stop()
    assert stage.until_equal(), "the cluster was not at rest before its node was wiped"
    _kill(stage.nodes[number])
    for load in stage.writers(number):
        wiped = load.churn.loaded.map(MAP)
        keys, _ = read_entries(wiped)
        for key in np.ascontiguousarray(keys):
            wiped.delete(key.tobytes())
    (stage.nodes[number].state_directory / POSITIONS).unlink(missing_ok=True)
    for other in set(range(len(stage.nodes))) - {number}:
        for load in stage.writers(other):
            load.start()
    yield stage.nodes[number].name
    stage.restart_node(number)


@contextlib.contextmanager
def bridge_paused(stage: Stage, chance: random.Random, seconds: float) -> Iterator[str]:
    """SIGSTOP: alive, connected, silent."""
    node = chance.choice(stage.nodes)
    node.process.send_signal(signal.SIGSTOP)
    yield node.name
    node.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def server_killed(stage: Stage, chance: random.Random, seconds: float) -> Iterator[str]:
    with _killed(stage, chance.choice(stage.cluster.servers)) as name:
        yield name


@contextlib.contextmanager
def leader_killed(stage: Stage, chance: random.Random, seconds: float) -> Iterator[str]:
    """The server that leads the stream."""
    leader = stage.cluster.leader(stream_name(CLUSTER))
    with _killed(stage, leader or chance.choice(stage.cluster.servers)) as name:
        yield name


@contextlib.contextmanager
def server_paused(stage: Stage, chance: random.Random, seconds: float) -> Iterator[str]:
    server = chance.choice(stage.cluster.servers)
    server.send(signal.SIGSTOP)
    yield server.name
    server.send(signal.SIGCONT)


@contextlib.contextmanager
def server_cut(stage: Stage, chance: random.Random, seconds: float) -> Iterator[str]:
    """A server loses clients and peers alike."""
    server = chance.choice(stage.cluster.servers)
    server.link(up=False)
    yield server.name
    server.link(up=True)


@contextlib.contextmanager
def quorum_cut(stage: Stage, chance: random.Random, seconds: float) -> Iterator[str]:
    """Two of three: nothing can be stored until they are back."""
    servers = chance.sample(stage.cluster.servers, 2)
    for server in servers:
        server.link(up=False)
    yield " ".join(server.name for server in servers)
    for server in servers:
        server.link(up=True)


@contextlib.contextmanager
def servers_parted(stage: Stage, chance: random.Random, seconds: float) -> Iterator[str]:
    """No server sees another one; bridges stay connected, to servers that can store nothing."""
    stage.cluster.part(apart=True)
    yield "all"
    stage.cluster.part(apart=False)


@contextlib.contextmanager
def disk_filled(stage: Stage, chance: random.Random, seconds: float) -> Iterator[str]:
    """A server that cannot store gives JetStream up until it is started again."""
    server = chance.choice(stage.cluster.servers)
    server.fill()
    yield server.name
    server.free()
    server.send(signal.SIGKILL)
    server.start()


@contextlib.contextmanager
def server_replaced(stage: Stage, chance: random.Random, seconds: float) -> Iterator[str]:
    """A server's machine is replaced, and a bridge starts anew while the new one catches up.

    It lacks what the bridge had applied already, and has nothing pending for whoever asks it.
    """
    server, number = chance.choice(stage.cluster.servers), chance.choice(stage.mortal)
    server.send(signal.SIGKILL)
    server.wipe()
    yield f"{server.name} {stage.nodes[number].name}"
    _kill(stage.nodes[number])
    server.start()
    stage.restart_node(number)


FAULTS: dict[str, Fault] = {
    "bridge killed": bridge_killed,
    "node wiped": node_wiped,
    "bridge paused": bridge_paused,
    "server killed": server_killed,
    "stream leader killed": leader_killed,
    "server paused": server_paused,
    "server cut off": server_cut,
    "quorum cut off": quorum_cut,
    "servers parted": servers_parted,
    "disk full": disk_filled,
    "server replaced": server_replaced,
}


@contextlib.contextmanager
def _killed(stage: Stage, server: Server) -> Iterator[str]:
    server.send(signal.SIGKILL)
    yield server.name
    server.start()


def _kill(node: NodeProcess) -> None:
    node.process.kill()
    node.process.wait()
    time.sleep(0.1)  # until the kernel has let go of what the process held
