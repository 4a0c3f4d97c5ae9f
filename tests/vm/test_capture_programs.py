"""The function part: what BPF programs write, seen by probes on the map's own functions."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bridge.capture.loader import ProbeObject, ProgramType, kprobe_counts
from bridge.capture.probes import ProbeCapture
from bridge.capture.source import Mode
from bridge.kernel.maps import KernelMap, UpdateFlag, map_info
from bridge.kernel.programs import test_run
from bridge.model import Op
from tests.capture_kit import RING_BYTES, Watched, in_thread, rows
from tests.vm.features import FEATURE, kernel_version, require_feature

pytestmark = pytest.mark.vm

SLOTS = 16
PRIME = 8191
PACKET = bytes(64)
FACTOR = 2_654_435_761
PREEMPTING_SINCE = (7, 0)  # of Debian's kernels; 6.12 does not, those between were not tried

MAPS = """
struct key5 { u8 b[5]; };
struct val3 { u8 b[3]; };
struct wide { u8 b[65536]; };
BPF_HASH(flows, u32, u64, 16384);
BPF_HASH(others, u32, u64, 16384);
BPF_HASH(full, u32, u64, 101);
BPF_TABLE("hash", struct key5, struct val3, odd, 16384);
BPF_TABLE("hash", u32, struct wide, large, 16);
BPF_ARRAY(blocks, struct wide, 1);
BPF_ARRAY(counts, u64, 16);
"""
# Each program counts its own runs, by its place in the list, and writes the key of that number.
PROGRAM = """
int NAME(void *packet)
{
    u32 which = WHICH, zero = 0;
    u64 *count = counts.lookup(&which);
    if (!count)
        return -1;
    u64 n = (*count)++, value = n * 2654435761ULL;
    u32 key = n;
    BODY
}
"""
BODIES = {
    "write_flows": "return flows.update(&key, &value);",
    "delete_flows": "return flows.delete(&key);",
    "insert_flows": "return flows.insert(&key, &value);",
    "write_others": "return others.update(&key, &value);",
    "write_both": "flows.update(&key, &value); return others.update(&key, &value);",
    "write_high": "key += 8192; return flows.update(&key, &value);",
    "write_full": "return full.update(&key, &value);",
    "write_odd": """
        struct key5 five = {}; struct val3 three = {};
        __builtin_memcpy(&five, &n, 5); __builtin_memcpy(&three, &value, 3);
        return odd.update(&five, &three);""",
    "write_large": """
        struct wide *block = blocks.lookup(&zero);
        return block ? large.update(&key, block) : -1;""",
}


class Workload:
    """Programs that write maps, and the maps."""

    def __init__(self) -> None:
        programs = [
            PROGRAM.replace("NAME", name).replace("WHICH", str(place)).replace("BODY", body)
            for place, (name, body) in enumerate(BODIES.items())
        ]
        self.object = ProbeObject(MAPS + "".join(programs), {})

    def map(self, name: str) -> KernelMap:
        fd = self.object.map_fd(name)
        return KernelMap(os.dup(fd), map_info(fd, name))

    def run(self, name: str, repeat: int = 1) -> int:
        """Run a program. Answers what its last run returned."""
        return test_run(self.object.load(name, ProgramType.SCHED_CLS), PACKET, repeat=repeat).retval

    def clear(self) -> None:
        with self.map("counts") as counts:
            counts.update_batch(rows(0, 16, 4), rows(0, 16, 8, 0))
        for name in ("flows", "others", "full", "odd", "large"):
            with self.map(name) as target:
                while len(target.lookup_and_delete_batch(8192)[0]):
                    pass


@pytest.fixture(scope="module", params=[Mode.FENTRY, Mode.KPROBE])
def capture(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ProbeCapture]:
    require_feature(FEATURE[request.param])
    probes = ProbeCapture.start(request.param, slots=SLOTS, cache=tmp_path_factory.mktemp("cache"))
    yield probes
    probes.close()


@pytest.fixture(scope="module")
def loaded() -> Iterator[Workload]:
    work = Workload()
    yield work
    work.object.close()


@pytest.fixture
def workload(loaded: Workload) -> Workload:
    loaded.clear()
    return loaded


Watch = Callable[[str], Watched]


@pytest.fixture
def watch(capture: ProbeCapture, workload: Workload) -> Iterator[Watch]:
    opened: list[Watched] = []

    def start(name: str, ring_bytes: int = RING_BYTES) -> Watched:
        target = workload.map(name)
        opened.append(Watched(target, capture.watch(target, ring_bytes)))
        return opened[-1]

    yield start
    for one in opened:
        one.source.close()
        one.map.close()


def number(value: int, width: int = 4) -> bytes:
    return value.to_bytes(width, "little")


def test_updates_and_deletes(workload: Workload, watch: Watch) -> None:
    flows = watch("flows")
    workload.run("write_flows", PRIME)
    flows.assert_whole(PRIME)
    assert len(flows.contents()) == PRIME
    workload.run("delete_flows", 4099)
    flows.assert_whole(PRIME + 4099)
    assert [op for batch in flows.batches for op in batch.ops[-1:]][-1] == Op.DELETE


def test_values_and_times(workload: Workload, watch: Watch) -> None:
    flows = watch("flows")
    before = time.monotonic_ns()
    workload.run("write_flows", 11)
    after = time.monotonic_ns()
    assert flows.changes() == [(Op.UPDATE, number(i), number(i * FACTOR, 8)) for i in range(11)]
    batch = flows.batches[0].concatenate(flows.batches)
    assert (batch.entered >= before).all()
    assert (batch.entered < batch.left).all()
    assert (batch.left <= after).all()
    assert (batch.left[:-1] < batch.entered[1:]).all()


@pytest.mark.parametrize(("program", "name"), [("write_odd", "odd"), ("write_large", "large")])
def test_odd_and_large_sizes(workload: Workload, watch: Watch, program: str, name: str) -> None:
    count = 13 if name == "large" else 4099
    with workload.map("blocks") as blocks:
        blocks.update(bytes(4), os.urandom(65_536))
    one = watch(name)
    workload.run(program, count)
    one.assert_whole(count)


def test_a_full_map(workload: Workload, watch: Watch) -> None:
    full = watch("full")
    workload.run("write_full", 211)
    full.assert_whole(101)


def test_refused_inserts_and_deletes(workload: Workload, watch: Watch) -> None:
    flows = watch("flows")
    workload.run("write_flows", 101)
    flows.drain()
    assert workload.run("insert_flows", 101) != 0  # all keys are there
    assert workload.run("delete_flows", 101) == 0
    workload.clear()
    flows.drain()
    done = flows.count()
    assert workload.run("delete_flows", 101) != 0  # none is there
    assert flows.count() == done
    assert flows.source.losses().total == 0
    assert done == 101 + 101


def test_unwatched_maps_are_silent(workload: Workload, watch: Watch) -> None:
    flows = watch("flows")
    workload.run("write_others", PRIME)
    assert flows.changes() == []
    workload.run("write_both", 1009)
    flows.assert_whole(1009)


def test_programs_and_system_calls_on_one_map(workload: Workload, watch: Watch) -> None:
    """What both write is in one ring, in order, and once."""
    flows = watch("flows")
    for start in range(0, 16_000, 4000):
        workload.run("write_flows", 1009)
        flows.map.update_batch(rows(start, 509, 4), rows(start, 509, 8))
        flows.map.update(number(start), bytes(8), UpdateFlag.EXIST)
        flows.map.delete(number(start + 1))
    flows.assert_whole(4 * (1009 + 509 + 2))


def test_own_thread_runs_programs(capture: ProbeCapture, workload: Workload, watch: Watch) -> None:
    """The filter is for bpf(2) only: a program's write is captured on whatever thread it runs."""
    flows = watch("flows")

    def own_work() -> None:
        own = capture.own_thread()
        flows.map.update(number(9000), bytes(8))
        workload.run("write_flows", 101)
        capture.forget_thread(own)

    in_thread(own_work)
    assert flows.count() == 101
    assert number(9000) not in flows.fold()


@contextmanager
def running(work: Callable[[], object]) -> Iterator[None]:
    """Do it again and again in another thread, at least once."""
    stop = threading.Event()

    def body() -> None:
        while True:
            work()
            if stop.is_set():
                return

    thread = threading.Thread(target=body)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_two_processors(capture: ProbeCapture, workload: Workload, watch: Watch) -> None:
    """Two programs at one time on one map, while a third thread looks through it by bpf(2).

    Where the kernel preempts that thread in the midst of its call, programs on kprobes are skipped
    meanwhile: a change can go unseen, but not uncounted.
    """
    flows = watch("flows")
    high = threading.Thread(target=lambda: workload.run("write_high", 4099))
    with running(flows.map.count):
        high.start()
        workload.run("write_flows", PRIME)
        high.join()
    if capture.mode is Mode.KPROBE and kernel_version() >= PREEMPTING_SINCE:
        flows.assert_accounted(PRIME + 4099)
    else:
        flows.assert_whole(PRIME + 4099)


def test_full_ring_is_counted(workload: Workload, capture: ProbeCapture) -> None:
    with workload.map("flows") as target:
        source = capture.watch(target, 1 << 16)
        one = Watched(target, source)
        workload.run("write_flows", PRIME)
        lost = source.losses()
        assert lost.ring_full > 0
        assert lost.total == lost.ring_full
        assert one.count() + lost.ring_full == PRIME
        source.close()


def test_traced_functions_are_left_with_close(tmp_path_factory: pytest.TempPathFactory) -> None:
    require_feature("fentry")

    def objects() -> list[str]:
        links = [str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
        return sorted(link for link in links if "bpf" in link)

    before = objects()
    probes = ProbeCapture.start(Mode.FENTRY, slots=2, cache=tmp_path_factory.mktemp("cache"))
    attached = {(one.target, one.function) for one in probes.attachments()}
    probes.close()
    assert ("fexit htab_map_update_elem", "leave_htab_map_update_elem") in attached
    assert ("fentry htab_map_delete_elem", "enter_htab_map_delete_elem") in attached
    assert (("fexit htab_map_delete_elem", "again_htab_map_delete_elem") in attached) == (
        kernel_version() >= (5, 12)
    )
    assert objects() == before


def test_attachments_go_with_close(tmp_path_factory: pytest.TempPathFactory) -> None:
    before = set(kprobe_counts())
    probes = ProbeCapture.start(Mode.KPROBE, slots=2, cache=tmp_path_factory.mktemp("cache"))
    during = set(kprobe_counts()) - before
    attached = {(one.target, one.function): one.hits for one in probes.attachments()}
    probes.close()
    assert len(during) == 6
    assert set(kprobe_counts()) == before
    assert attached["htab_map_update_elem", "on_update_return"] is not None
    assert attached["htab_map_delete_elem", "on_delete_entry"] is not None
    assert attached["__x64_sys_bpf", "on_bpf_entry"] is not None
    assert ("softirq_entry", "on_softirq_entry") in attached
    assert ("softirq_exit", "on_softirq_exit") in attached
