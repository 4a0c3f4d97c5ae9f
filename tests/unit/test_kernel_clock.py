"""The node's clocks."""

from __future__ import annotations

import re
import time

from bridge.kernel.clock import boot_id, clock_offset_ns, ktime_ns


def test_ktime_is_the_monotonic_clock() -> None:
    before = time.monotonic_ns()
    now = ktime_ns()
    assert before <= now <= time.monotonic_ns()


def test_offset_turns_ktime_into_wall_time() -> None:
    offset = clock_offset_ns()
    before = time.time_ns()
    wall = ktime_ns() + offset
    after = time.time_ns()
    assert before - 1_000_000 <= wall <= after + 1_000_000


def test_boot_id() -> None:
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", boot_id())
    assert boot_id() == boot_id()
