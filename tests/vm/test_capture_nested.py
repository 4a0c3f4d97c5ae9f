"""Softirqs that interrupt what the probes watch: seen by fentry, and counted by kprobes, all of it.

Packets arrive at one end of a veth pair and are served on processor 1, where an XDP program writes
a watched map; a thread on that processor does what keeps probes from being served meanwhile.
"""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import pytest

from bridge.capture.loader import ProbeObject, ProgramType
from bridge.capture.probes import MISSES_SECONDS, ProbeCapture
from bridge.capture.source import Mode
from bridge.kernel.maps import KernelMap, MapType, create_map, map_info
from bridge.kernel.programs import KernelProgram, test_run
from tests.capture_kit import Watched, rows, wait_for
from tests.vm.features import FEATURE, require_feature

pytestmark = pytest.mark.vm

SECONDS_MIN = 1.0
UNSEEN_SECONDS = 180.0  # where a softirq falls is chance, and an emulated processor is slow
RING_BYTES = 64 << 20
PIN = Path("/sys/fs/bpf/capture_nested")
TEXT = """
BPF_HASH(flows, u32, u64, 65536);
BPF_HASH(busy, u32, u64, 65536);
BPF_ARRAY(counts, u64, 2);

int receive(void *packet)
{
    u32 zero = 0;
    u64 *count = counts.lookup(&zero);

    if (!count)
        return 1;
    for (int i = 0; i < 8; i++) {
        u64 n = *count;
        u32 key = n & 0x7fff;

        if (!flows.update(&key, &n))
            *count = n + 1;
    }
    return 1;
}

int work(void *packet)
{
    u32 one = 1;
    u64 *count = counts.lookup(&one);

    if (!count)
        return -1;
    u64 n = (*count)++;
    u32 key = n & 0x7fff;
    return busy.update(&key, &n);
}
"""


class Traffic:
    """Packets to an XDP program on processor 1, and the maps of that program."""

    def __init__(self) -> None:
        self.object = ProbeObject(TEXT, {})
        with KernelProgram(os.dup(self.object.load("receive", ProgramType.XDP))) as program:
            program.pin(PIN)
        for command in (
            "ip link add nest0 type veth peer name nest1",
            "ip link set nest0 up",
            f"ip link set nest1 up xdpgeneric pinned {PIN}",
        ):
            subprocess.run(command.split(), check=True)
            for end in Path("/proc/sys/net/ipv6/conf").glob("nest?"):
                (end / "disable_ipv6").write_text("1")  # packets of its own would be miscounted
        Path("/sys/class/net/nest1/queues/rx-0/rps_cpus").write_text("2")
        self.flows, self.busy, self.counts = (self.map(n) for n in ("flows", "busy", "counts"))

    def map(self, name: str) -> KernelMap:
        fd = self.object.map_fd(name)
        return KernelMap(os.dup(fd), map_info(fd, name))

    def count(self, which: int) -> int:
        """How many updates the program has really done (0: receive, 1: work)."""
        return int.from_bytes(self.counts.lookup(which.to_bytes(4, "little")) or b"", "little")

    def send_until(self, enough: Callable[[], bool]) -> None:
        packet = b"\\xff" * 12 + b"\\x08\\x00" + bytes(50)
        start = time.monotonic()
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
            out.bind(("nest0", 0))
            while time.monotonic() < start + SECONDS_MIN or not enough():
                assert time.monotonic() < start + UNSEEN_SECONDS, "nothing was ever unseen"
                for _ in range(64):
                    with suppress(OSError):  # the queue is full for a moment
                        out.send(packet)

    def close(self) -> None:
        subprocess.run(["ip", "link", "del", "nest0"], check=True)
        PIN.unlink()
        for one in (self.flows, self.busy, self.counts):
            one.close()
        self.object.close()


@pytest.fixture(scope="module", params=[Mode.FENTRY, Mode.KPROBE])
def capture(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ProbeCapture]:
    require_feature(FEATURE[request.param])
    probes = ProbeCapture.start(request.param, slots=8, cache=tmp_path_factory.mktemp("cache"))
    yield probes
    probes.close()


@pytest.fixture(scope="module")
def traffic() -> Iterator[Traffic]:
    made = Traffic()
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {0})
    yield made
    os.sched_setaffinity(0, before)
    made.close()


def settled(read: Callable[[], int]) -> int:
    """A number once it stays the same: packets on their way have arrived."""
    last = [-1, read()]

    def still() -> bool:
        last[:] = [last[1], read()]
        return last[0] == last[1]

    wait_for(still)
    return last[1]


def check(
    capture: ProbeCapture,
    traffic: Traffic,
    load: Callable[[], object],
    *,
    nests: bool,
    is_own: bool = False,
) -> None:
    """Send while ``load`` runs on processor 1; compare what was done with what was seen.

    ``nests``: go on until a softirq fell where a kprobe, or the first of two programs at a
    function's exit, is not served. ``is_own``: ``load`` is the bridge's own work.
    """
    with closing(capture.watch(traffic.flows, RING_BYTES)) as source:
        _compare(capture, traffic, Watched(traffic.flows, source), load, nests=nests, is_own=is_own)


def _compare(
    capture: ProbeCapture,
    traffic: Traffic,
    watched: Watched,
    load: Callable[[], object],
    *,
    nests: bool,
    is_own: bool,
) -> None:
    base = settled(lambda: traffic.count(0))
    steps = capture.nested()
    stop = threading.Event()

    def body() -> None:
        os.sched_setaffinity(0, {1})
        own = capture.own_thread() if is_own else None
        while not stop.is_set():
            load()
        if own is not None:
            capture.forget_thread(own)

    def enough() -> bool:
        watched.drain()  # the ring would not hold what comes in minutes
        if capture.mode is Mode.KPROBE:
            return not nests or watched.source.losses().unpaired > 0
        # Without second copies (5.10) the first is entered again, which nobody counts.
        return not nests or steps is None or capture.nested() != steps

    thread = threading.Thread(target=body)
    thread.start()
    try:
        traffic.send_until(enough)
    finally:
        stop.set()
        thread.join()
    done = settled(lambda: traffic.count(0)) - base
    fresh = time.monotonic() + MISSES_SECONDS
    wait_for(lambda: time.monotonic() > fresh)  # the kernel's miss counts are read once a second
    losses = watched.source.losses()
    seen = watched.count()
    echoed = sum(int((batch.keys[:, 1] >= 0x80).sum()) for batch in watched.batches)
    print(f"{capture.mode}: done {done}, lost {losses}, second copy {steps} to {capture.nested()}")
    assert losses.total == losses.unpaired
    assert done == seen + losses.unpaired
    assert echoed == 0
    if capture.mode is Mode.FENTRY:
        assert losses.total == 0


def test_a_program_that_is_probed_itself(capture: ProbeCapture, traffic: Traffic) -> None:
    program = traffic.object.load("work", ProgramType.SCHED_CLS)
    source = capture.watch(traffic.busy, RING_BYTES)
    busy = Watched(traffic.busy, source)
    before = traffic.count(1)
    # From 6.12 on, softirqs wait for the end of a test run: then there is nothing to miss.
    run = partial(test_run, program, bytes(64), repeat=10_007)
    check(capture, traffic, run, nests=False)
    assert busy.count() == traffic.count(1) - before  # what was interrupted is seen all the same
    source.close()


def test_update_batches(capture: ProbeCapture, traffic: Traffic) -> None:
    with create_map(MapType.HASH, 4, 8, 16_384) as other:
        keys, values = rows(0, 8191, 4), rows(0, 8191, 8)
        check(capture, traffic, lambda: other.update_batch(keys, values), nests=True)


def test_the_applier_is_interrupted(capture: ProbeCapture, traffic: Traffic) -> None:
    """Of one map, all that a program writes is reported, and nothing that the bridge writes."""
    # The program's keys are all below these.
    keys, values = rows(0x8000, 8191, 4), rows(0, 8191, 8)
    run = partial(traffic.flows.update_batch, keys, values)
    check(capture, traffic, run, nests=True, is_own=True)


def test_sweeps(capture: ProbeCapture, traffic: Traffic) -> None:
    before = capture.blind()
    assert (before is None) == (capture.mode is Mode.FENTRY)
    with create_map(MapType.HASH, 4, 8, 16_384) as other:
        other.update_batch(rows(0, 8191, 4), rows(0, 8191, 8))
        check(capture, traffic, other.count, nests=capture.mode is Mode.KPROBE)
    assert before is None or capture.blind() != before
