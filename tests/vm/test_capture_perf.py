"""What probes report through perf buffers: the same tests, and every change on every processor."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from bridge.capture.canary import prove
from bridge.capture.perf_source import PerfSource
from bridge.capture.probes import ProbeCapture
from bridge.capture.source import Mode
from bridge.capture.transport import PERF_PAGES_MIN, Transport
from bridge.kernel.perf import online_cpus
from tests.capture_kit import Watched, rows
from tests.vm.features import FEATURE, require_feature
from tests.vm.test_capture_programs import (
    PRIME,
    SLOTS,
    Watch,
    Workload,
    loaded,
    number,
    running,
    test_odd_and_large_sizes,
    test_own_thread_runs_programs,
    test_programs_and_system_calls_on_one_map,
    test_unwatched_maps_are_silent,
    test_updates_and_deletes,
    test_values_and_times,
    watch,
    workload,
)

pytestmark = pytest.mark.vm
__all__ = [
    "loaded",
    "test_odd_and_large_sizes",
    "test_own_thread_runs_programs",
    "test_programs_and_system_calls_on_one_map",
    "test_unwatched_maps_are_silent",
    "test_updates_and_deletes",
    "test_values_and_times",
    "watch",
    "workload",
]
PERF_PAGES = 1024  # of each CPU


@pytest.fixture(scope="module", params=[Mode.FENTRY, Mode.KPROBE])
def capture(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ProbeCapture]:
    require_feature(FEATURE[request.param])
    probes = ProbeCapture.start(
        request.param,
        slots=SLOTS,
        cache=tmp_path_factory.mktemp("cache"),
        transport=Transport.PERF,
        perf_pages=PERF_PAGES,
    )
    assert probes.transport is Transport.PERF
    yield probes
    probes.close()


def test_the_canary_is_seen(capture: ProbeCapture) -> None:
    coverage = prove(capture)
    assert coverage.proven, coverage.table()


def test_two_processors(workload: Workload, watch: Watch) -> None:
    """Two programs at one time on one map, while a third thread looks through it by bpf(2).

    Where the kernel may preempt a task inside bpf(2), programs on kprobes are skipped meanwhile: a
    change can then go unseen, but not unnoticed. More can be counted than went unseen.
    """
    flows = watch("flows")
    high = threading.Thread(target=lambda: workload.run("write_high", 4099))
    with running(flows.map.count):
        high.start()
        workload.run("write_flows", PRIME)
        high.join()
    flows.assert_accounted(PRIME + 4099)


def on_cpu(cpu: int, work: Callable[[], object]) -> threading.Thread:
    def body() -> None:
        os.sched_setaffinity(0, {cpu})
        work()

    return threading.Thread(target=body)


def test_programs_and_system_calls_on_all_processors(workload: Workload, watch: Watch) -> None:
    """Every processor writes keys of its own; each key's last report is what the map holds."""
    flows = watch("flows")
    cpus = online_cpus()
    assert len(cpus) > 1
    programs = ("write_flows", "write_high")

    def work(turn: int) -> None:
        workload.run(programs[turn], 2003)
        start = 100_000 + 10_000 * turn
        flows.map.update_batch(rows(start, 1009, 4), rows(start, 1009, 8))
        for key in range(start, start + 101):
            flows.map.delete(number(key))

    threads = [on_cpu(cpus[turn], partial(work, turn)) for turn in range(2)]
    with running(flows.drain):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    flows.assert_whole(2 * (2003 + 1009 + 101))
    source = flows.source
    assert isinstance(source, PerfSource)
    assert source.ring_statistics().lost == source.ring_statistics().corrupt == 0


def test_a_full_buffer_is_counted(workload: Workload, capture: ProbeCapture) -> None:
    with workload.map("flows") as target:
        source = capture.watch(target, 0, perf_pages=PERF_PAGES_MIN)
        one = Watched(target, source)
        workload.run("write_flows", PRIME)
        lost = source.losses()
        assert lost.ring_full > 0
        assert lost.total == lost.ring_full
        assert one.count() + lost.ring_full == PRIME
        source.close()
