"""The guest is what the other tests take it for: the right kernel, complete, with kprobes."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bridge.kernel.programs import FRAME_BYTES_MIN, test_run as run_program
from tests.vm.features import FEATURES, kernel_version, require_feature

if TYPE_CHECKING:
    from bcc import BPF

pytestmark = pytest.mark.vm

RUNS = 1009
KEYS = 31
EVENT = b"htab_map_update_elem"
PROGRAMS = b"""
BPF_HASH(flows, u32, u32, 64);
BPF_ARRAY(seen, u64, 1);

int write_flow(struct __sk_buff *skb)
{
    u32 key = bpf_get_prandom_u32() & 31, value = 1;
    flows.update(&key, &value);
    return 0;
}

int count_update(struct pt_regs *ctx)
{
    seen.atomic_increment(0);
    return 0;
}
"""


@pytest.fixture(scope="module")
def programs() -> Iterator[BPF]:
    from bcc import BPF

    require_feature("kprobes")
    with BPF(text=PROGRAMS) as bpf:
        bpf.attach_kprobe(event=EVENT, fn_name=b"count_update")
        yield bpf


def seen(programs: BPF) -> int:
    """Calls of the map's update function that the kprobe has counted."""
    return int(programs[b"seen"][0].value)


def test_kernel_is_the_one_asked_for() -> None:
    wanted = os.environ["MAPBRIDGE_VM_KERNEL"]
    assert ".".join(str(number) for number in kernel_version()) == wanted


@pytest.mark.parametrize("name", FEATURES)
def test_feature_is_there(name: str) -> None:
    require_feature(name)


@pytest.mark.parametrize(
    ("path", "file_system"),
    [("/sys/fs/bpf", "bpf"), ("/sys/kernel/tracing", "tracefs"), ("/sys/fs/cgroup", "cgroup2")],
)
def test_file_system_is_mounted(path: str, file_system: str) -> None:
    lines = Path("/proc/mounts").read_text().splitlines()
    mounts = {line.split()[1]: line.split()[2] for line in lines}
    assert mounts[path] == file_system


def test_modules_and_headers_are_found() -> None:
    folder = Path("/lib/modules") / os.uname().release
    assert (folder / "modules.dep").stat().st_size > 0
    assert (folder / "build" / "include").is_dir()


def test_kprobe_counts_every_update_of_a_tc_program(programs: BPF) -> None:
    writer = programs.load_func(b"write_flow", programs.SCHED_CLS)
    before = seen(programs)
    assert run_program(writer.fd, bytes(FRAME_BYTES_MIN), repeat=RUNS).interrupted == 0
    assert seen(programs) - before == RUNS


def test_kprobe_misses_updates_by_system_call(programs: BPF) -> None:
    # What the other ways of capture exist for: the kernel skips probe programs inside bpf(2).
    before = seen(programs)
    flows = programs[b"flows"]
    for key in range(KEYS):
        flows[ctypes.c_uint32(key)] = ctypes.c_uint32(2)
    assert len(flows) >= KEYS
    assert seen(programs) == before
