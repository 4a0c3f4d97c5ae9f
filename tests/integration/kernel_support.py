"""Shared by the tests that use real kernel maps."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from bridge.kernel.features import Capability, Probes
from bridge.model import U8

BPFFS = Path("/sys/fs/bpf")


def needs(*capabilities: Capability) -> pytest.MarkDecorator:
    """Skip, naming the capabilities that this process lacks."""
    probes = Probes()
    missing = [cap.name for cap in capabilities if probes.capability(cap).answer.value != "yes"]
    return pytest.mark.skipif(bool(missing), reason=f"missing {', '.join(missing)}")


def rows_of(numbers: Iterator[int] | range, width: int) -> U8:
    """One row of ``width`` bytes per number, little endian."""
    columns = np.fromiter(numbers, np.uint64)
    rows = np.zeros((len(columns), max(width, 8)), np.uint8)
    rows[:, :8] = columns.view(np.uint8).reshape(-1, 8)
    return np.ascontiguousarray(rows[:, :width])


def unique_name(prefix: str) -> str:
    """A map name that no other run uses, at most 15 characters."""
    return f"{prefix}_{uuid.uuid4().hex}"[:15]


@contextmanager
def pin_folder() -> Iterator[Path]:
    """A folder of its own in the bpf file system, removed with all pins."""
    folder = BPFFS / f"kernel_test_{uuid.uuid4().hex[:12]}"
    folder.mkdir()
    try:
        yield folder
    finally:
        for pin in folder.iterdir():
            pin.unlink()
        folder.rmdir()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counts the listing's own one always


@contextmanager
def no_descriptor_leaks() -> Iterator[None]:
    before = open_descriptors()
    yield
    assert open_descriptors() == before, "descriptors leaked"
