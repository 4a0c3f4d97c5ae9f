"""Times of this node: the clock of BPF programs, its distance from wall time, and the boot."""

from __future__ import annotations

import time
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_OFFSET_TRIES = 8


def ktime_ns() -> int:
    """Now, on the clock of ``bpf_ktime_get_ns`` (CLOCK_MONOTONIC)."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def clock_offset_ns() -> int:
    """CLOCK_REALTIME less CLOCK_MONOTONIC, now.

    The two cannot be read at once: the reading that took the least time of several is used, and is
    wrong by at most half of that time.
    """
    best_span = best_offset = 0
    for attempt in range(_OFFSET_TRIES):
        before = ktime_ns()
        wall = time.clock_gettime_ns(time.CLOCK_REALTIME)
        after = ktime_ns()
        if attempt == 0 or after - before < best_span:
            best_span = after - before
            best_offset = wall - (before + after) // 2
    return best_offset


def boot_id() -> str:
    """The kernel's random name of this boot: map ids and ktime mean nothing in another one."""
    return BOOT_ID.read_text(encoding="ascii").strip()
