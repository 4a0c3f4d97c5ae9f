"""How many processors the kernel counts with."""

from __future__ import annotations

import functools
from pathlib import Path

POSSIBLE = Path("/sys/devices/system/cpu/possible")


def parse_ranges(text: str) -> list[range]:
    """Numbers as the kernel lists them: ``0-3,8``. Raises ``ValueError``."""
    found = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        found.append(range(int(first), int(last or first) + 1))
    return found


@functools.cache
def possible_cpus() -> int:
    """How many CPUs there may be: so many values has a key of a per-CPU map."""
    return sum(len(numbers) for numbers in parse_ranges(POSSIBLE.read_text()))


@functools.cache
def cpu_numbers() -> int:
    """One more than the highest number that a CPU can have."""
    return max(numbers.stop for numbers in parse_ranges(POSSIBLE.read_text()))
