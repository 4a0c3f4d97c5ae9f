"""Skips that cannot hide a fault: what a kernel should have and has not is a failure, not a skip.

``require_feature("kprobes")`` at the start of a test, or ``require_feature("...", present=False)``
where the test has found out by itself. A skip by any other way fails the test in the guest
(``conftest.py`` sees to it).
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Never

import pytest

from bridge.capture.source import Mode

IN_GUEST: Final = os.environ.get("MAPBRIDGE_VM") == "1"
SKIP_PREFIX: Final = "kernel feature missing: "
_TRACING = Path("/sys/kernel/tracing")


@dataclass(frozen=True, slots=True)
class Feature:
    """A part of the kernel; ``since`` is the version from which Debian's kernels all have it."""

    since: tuple[int, int]
    probe: Callable[[], bool]


def kernel_version(release: str = "") -> tuple[int, int]:
    """Major and minor of the running kernel, or of the given ``uname -r``."""
    match = re.match(r"(\d+)\.(\d+)", release or os.uname().release)
    assert match is not None
    return int(match.group(1)), int(match.group(2))


def has_symbol(name: str) -> bool:
    """Whether the kernel has a function of that name; the compiler may have put a suffix on it."""
    pattern = re.compile(rf" [tTwW] {re.escape(name)}(?:\.[a-z0-9.]+)?$", re.MULTILINE)
    return pattern.search(_read_symbols()) is not None


@functools.cache
def _read_symbols() -> str:
    return Path("/proc/kallsyms").read_text()


FEATURES: Final[dict[str, Feature]] = {
    "kprobes": Feature((4, 1), (_TRACING / "kprobe_events").exists),
    "btf": Feature((5, 4), Path("/sys/kernel/btf/vmlinux").exists),
    "fentry": Feature((5, 5), lambda: has_symbol("bpf_trampoline_link_prog")),
    "map batches": Feature((5, 6), lambda: has_symbol("generic_map_lookup_batch")),
    "ring buffers": Feature((5, 8), lambda: has_symbol("ringbuf_map_alloc")),
    "hash lookup-and-delete": Feature(
        (5, 14), lambda: has_symbol("htab_map_lookup_and_delete_elem")
    ),
}


# What the modes of capture need; without the ring buffers of 5.8 there is none.
FEATURE: Final = {Mode.FENTRY: "fentry", Mode.KPROBE: "kprobes"}


def require_feature(name: str, *, present: bool | None = None) -> None:
    """Returns where the kernel has the feature (a key of FEATURES); otherwise fails or skips.

    ``present`` replaces the probe by what the test itself has seen.
    """
    feature = FEATURES[name]
    if feature.probe() if present is None else present:
        return
    miss(name, feature.since)


def miss(name: str, since: tuple[int, int]) -> Never:
    """Skips on kernels older than ``since`` and fails on all others."""
    text = f"{name} (Linux {since[0]}.{since[1]})"
    if kernel_version() >= since:
        pytest.fail(f"{text}: missing on {os.uname().release}, which should have it")
    pytest.skip(SKIP_PREFIX + text)
