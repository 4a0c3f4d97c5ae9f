"""Real TCP connections through a veth, tracked by the example program in a real map."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bridge.demo.sessions import VALUE_DTYPE, State, count_states
from bridge.demo.topology import Topology, command_inside
from bridge.demo.tracker import Tracker
from bridge.demo.traffic import FIRST_PORT, Progress, Traffic, TrafficError
from bridge.demo.traffic_worker import enter_namespace
from bridge.errors import PrivilegeError
from bridge.kernel.maps import KernelMap, open_pin
from bridge.rig import tools
from bridge.rig.claim import Claim
from bridge.rig.compare import read_entries

# Twin of struct ct_key in bpf/examples/conntrack.bpf.c.
KEY_DTYPE = np.dtype(
    [
        ("address", np.uint8, (2, 16)),
        ("port", ">u2", (2,)),
        ("family", np.uint8),
        ("protocol", np.uint8),
        ("zero", np.uint8, (2,)),
    ]
)
SECONDS_MAX = 60.0
SESSIONS = 1009


@pytest.fixture(scope="module")
def claim() -> Iterator[Claim]:
    try:
        with Claim.take() as claim:
            yield claim
    except PrivilegeError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def topology(claim: Claim) -> Iterator[Topology]:
    with Topology(claim) as topology:
        yield topology


@pytest.fixture(scope="module")
def ct(claim: Claim, topology: Topology) -> Iterator[KernelMap]:
    """The map, filled by the attached programs."""
    with Tracker(claim, SESSIONS, ("a",)) as tracker:
        topology.attach(tracker.active.ingress, tracker.active.egress)
        with open_pin(tracker.active.map) as kernel_map:
            yield kernel_map


@pytest.fixture
def traffic(topology: Topology, ct: KernelMap) -> Iterator[Traffic]:
    await_true(lambda: ct.count() == 0, "entries of the last test to go")
    with Traffic(topology, SESSIONS) as traffic:
        yield traffic


def await_true(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)


def socket_in(namespace: str) -> socket.socket:
    """A TCP socket of another namespace: it stays there, the thread that made it ends."""

    def make() -> socket.socket:
        enter_namespace(namespace)
        made = socket.socket()
        made.settimeout(SECONDS_MAX)
        return made

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(make).result()


def states(ct: KernelMap) -> list[State]:
    return [State(state) for state in read_entries(ct)[1].view(VALUE_DTYPE).ravel()["state"]]


def keys_of(ct: KernelMap) -> set[bytes]:
    return {key.tobytes() for key in read_entries(ct)[0]}


def test_every_session_is_one_established_entry(traffic: Traffic, ct: KernelMap) -> None:
    seen: list[int] = []
    traffic.open()
    progress = traffic.wait(SECONDS_MAX, lambda step: seen.append(step.open))

    assert progress == Progress(SESSIONS, 0, SESSIONS, 0, 0, 0)
    assert seen[-1] == SESSIONS
    assert seen == sorted(seen)
    keys, values = read_entries(ct)
    assert count_states(values) == {State.ESTABLISHED: SESSIONS}
    # two lanes of 505 and 504 sessions, of each the 10th, 20th, ... uses IPv6
    families = keys.view(KEY_DTYPE).ravel()["family"].tolist()
    assert (families.count(4), families.count(6)) == (909, 100)


def test_entries_hold_what_the_wire_showed(traffic: Traffic, ct: KernelMap) -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    traffic.open(23)
    traffic.wait(SECONDS_MAX)
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC)

    keys, values = read_entries(ct)
    key = keys.view(KEY_DTYPE).ravel()
    value = values.view(VALUE_DTYPE).ravel()
    assert (value["changes"] == 3).all()  # SYN, SYN+ACK, ACK
    assert (value["changed_ns"] > before).all()
    assert (value["changed_ns"] < after).all()
    assert (value["isn"] != 0).all()
    assert not value["bytes"].any()
    assert not value["flags"].any()
    assert not key["zero"].any()
    assert not value["zero"].any()
    # 198.18.0.1 < 198.19.0.x and fd6d:6270::1 < fd6d:6270:1::x, so the server is end 0
    assert set(key["port"][:, 0]) <= {FIRST_PORT, FIRST_PORT + 1}
    assert (value["initiator"] == 1).all()
    assert not key["address"][key["family"] == 4][:, :, 4:].any()
    servers = [bytes(row["address"][0]) for row in key]
    assert servers.count(socket.inet_aton("198.18.0.1") + bytes(12)) == 21
    assert servers.count(socket.inet_pton(socket.AF_INET6, "fd6d:6270::1")) == 2
    assert (value["state"] == State.ESTABLISHED).all()


def test_closed_sessions_leave_and_only_those(traffic: Traffic, ct: KernelMap) -> None:
    traffic.open()
    traffic.wait(SECONDS_MAX)
    before, values_before = read_entries(ct)
    content = {k.tobytes(): v.tobytes() for k, v in zip(before, values_before, strict=True)}

    traffic.close(503)
    progress = traffic.wait(SECONDS_MAX)

    assert (progress.open, progress.closed) == (506, 503)
    await_true(lambda: ct.count() == 506, "503 entries to go")
    after, values_after = read_entries(ct)
    # those that stay are untouched
    for key, value in zip(after, values_after, strict=True):
        assert content[key.tobytes()] == value.tobytes()


def test_a_reset_deletes(traffic: Traffic, ct: KernelMap) -> None:
    traffic.open(307)
    traffic.wait(SECONDS_MAX)
    before = keys_of(ct)
    assert len(before) == 307

    traffic.close(101, reset=True)
    progress = traffic.wait(SECONDS_MAX)

    assert (progress.open, progress.closed) == (206, 101)
    await_true(lambda: ct.count() == 206, "101 entries to go")
    assert keys_of(ct) < before


def test_room_of_closed_sessions_is_used_again(traffic: Traffic, ct: KernelMap) -> None:
    for _ in range(3):
        traffic.open()
        traffic.close(701)
        progress = traffic.wait(SECONDS_MAX)
        assert progress.open == SESSIONS - 701
        await_true(lambda: ct.count() == SESSIONS - 701, "701 entries to go")
    with pytest.raises(ValueError, match="at most 701 more"):
        traffic.open(702)


def test_sessions_go_when_the_processes_end(topology: Topology, ct: KernelMap) -> None:
    with Traffic(topology, 211) as traffic:
        traffic.open()
        traffic.wait(SECONDS_MAX)
        assert ct.count() == 211
    await_true(lambda: ct.count() == 0, "211 entries to go")


def test_states_between_open_and_closed(topology: Topology, ct: KernelMap) -> None:
    """One connection by hand, with payload: each step's state, and bytes from sequence numbers."""
    listener = socket_in(topology.server_namespace)
    listener.bind((topology.server_ipv4, 7001))
    listener.listen(1)
    client = socket_in(topology.client_namespace)
    client.bind((topology.client_ipv4[2], 7002))
    client.connect((topology.server_ipv4, 7001))
    server, _ = listener.accept()

    client.sendall(b"x" * 100_003)
    received = 0
    while received < 100_003:
        received += len(server.recv(65536))
    server.sendall(b"y" * 17)
    assert states(ct) == [State.ESTABLISHED]

    client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""
    assert states(ct) == [State.FIN_WAIT]
    value = read_entries(ct)[1].view(VALUE_DTYPE).ravel()[0]
    assert list(value["bytes"]) == [0, 100_003]

    server.close()
    assert client.recv(100) == b"y" * 17
    assert client.recv(1) == b""
    await_true(lambda: ct.count() == 0, "the entry to go")
    client.close()
    listener.close()


def test_a_refused_connection_leaves_nothing(topology: Topology, ct: KernelMap) -> None:
    client = socket_in(topology.client_namespace)
    with pytest.raises(ConnectionRefusedError):
        client.connect((topology.server_ipv4, 7003))
    client.close()
    assert ct.count() == 0


def test_a_silent_server_leaves_syn_sent(topology: Topology, ct: KernelMap) -> None:
    """A SYN that nobody answers: the server has no way back to the client's address."""
    route = command_inside(topology.server_namespace, "ip", "route")
    tools.run([*route, "add", "blackhole", "198.19.0.9/32"])
    client = socket_in(topology.client_namespace)
    client.setblocking(False)
    client.bind((topology.client_ipv4[8], 0))
    client.connect_ex((topology.server_ipv4, 7004))
    assert states(ct) == [State.SYN_SENT]
    client.close()
    tools.run([*route, "del", "blackhole", "198.19.0.9"])
    (key,) = keys_of(ct)
    assert ct.delete(key)


def test_failures_say_why(topology: Topology, ct: KernelMap) -> None:
    """A port that is taken already, in the server's namespace."""
    listener = socket_in(topology.server_namespace)
    listener.bind((topology.server_ipv4, FIRST_PORT))
    listener.listen(1)
    with Traffic(topology, 10) as traffic:
        traffic.open()
        with pytest.raises(TrafficError, match="Address already in use"):
            traffic.wait(SECONDS_MAX)
    listener.close()


def test_failed_sessions_are_counted(topology: Topology, ct: KernelMap) -> None:
    """An unreachable server: every connect fails at once, with its reason."""
    ip = command_inside(topology.client_namespace, "ip", "route")
    tools.run([*ip, "add", "unreachable", f"{topology.server_ipv4}/32"])
    try:
        with Traffic(topology, 10, ipv6_every=0) as traffic:
            traffic.open()
            with pytest.raises(TrafficError, match="connect: No route to host"):
                traffic.wait(SECONDS_MAX)
            await_true(lambda: traffic.progress().failed == 10, "10 failures")
            assert traffic.progress().problem == "connect: No route to host (10 times)"
    finally:
        tools.run([*ip, "del", "unreachable", f"{topology.server_ipv4}/32"])


@pytest.mark.slow
def test_fifty_thousand_sessions(ct: KernelMap) -> None:
    """The default of the demonstration, in a second topology beside the other tests' one."""
    others = ct.count()
    with (
        Claim.take() as claim,
        Topology(claim) as topology,
        Tracker(claim, 50_000) as tracker,
        open_pin(tracker.active.map) as big,
        Traffic(topology, 50_000) as traffic,
    ):
        topology.attach(tracker.active.ingress, tracker.active.egress)
        traffic.open()
        assert traffic.wait(2 * SECONDS_MAX).open == 50_000
        assert count_states(read_entries(big)[1]) == {State.ESTABLISHED: 50_000}
        traffic.close(25_003)
        traffic.wait(2 * SECONDS_MAX)
        await_true(lambda: big.count() == 24_997, "25,003 entries to go")
        traffic.close()
        traffic.wait(2 * SECONDS_MAX)
        await_true(lambda: big.count() == 0, "all entries to go")
        topology.detach()
        traffic.open(3)
        traffic.wait(SECONDS_MAX)
        assert big.count() == 0
    assert ct.count() == others
