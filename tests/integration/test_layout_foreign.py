"""Layouts of maps that the programs of others made: Debian's libbpf-tools, run on this kernel."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import pytest

from bridge.errors import BridgeError
from bridge.kernel.features import Capability
from bridge.kernel.maps import KernelMap, open_map_id
from tests.integration.bpftool_kit import ROWS, fields_agree, fill, map_ids, values_agree
from tests.integration.kernel_support import needs, no_descriptor_leaks

START_SECONDS_MAX = 30.0
LOOK_SECONDS = 0.02

pytestmark = needs(Capability.CAP_BPF, Capability.CAP_PERFMON, Capability.CAP_SYS_ADMIN)


@contextmanager
def map_of(name: str, command: str) -> Iterator[KernelMap]:
    """A map that a tool made. The tool is ended, so nobody writes there any more but the test."""
    tool, *arguments = command.split()
    path = shutil.which(tool) or shutil.which(tool, path="/usr/sbin")
    if path is None:
        pytest.fail(f"{tool}: not found, install Debian's libbpf-tools (scripts/setup.sh does)")
    process = subprocess.Popen(
        [path, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        opened = awaited(process, name)
    finally:
        process.kill()
        process.communicate()
    with opened:
        yield opened


def awaited(process: subprocess.Popen[str], name: str) -> KernelMap:
    deadline = time.monotonic() + START_SECONDS_MAX
    while process.poll() is None and time.monotonic() < deadline:
        for map_id in map_ids(process.pid):
            with suppress(BridgeError):
                opened = open_map_id(map_id)
                if opened.info.name == name:
                    return opened
                opened.close()
        time.sleep(LOOK_SECONDS)
    process.kill()
    _, said = process.communicate()
    pytest.fail(f"{process.args!r}: made no map {name} here (it said {said.strip()!r})")


@pytest.mark.parametrize(
    ("command", "name", "key_fields", "value_fields"),
    [
        ("biopattern", "counters", 1, 4),
        ("biolatency -D", "hists", 2, 1),
        ("execsnoop", "execs", 1, 8),
        ("hardirqs", "infos", 1, 2),
        ("mountsnoop", "args", 1, 7),
        ("opensnoop", "start", 1, 2),
        ("sigsnoop", "values", 1, 5),
    ],
)
def test_maps_of_other_programs(
    command: str, name: str, key_fields: int, value_fields: int
) -> None:
    """What the tool wrote, and random bytes, so that every field holds something."""
    with no_descriptor_leaks(), map_of(name, command) as opened:
        fields_agree(opened, key_fields, value_fields)
        fill(opened, np.random.default_rng(1013))
        assert values_agree(opened) >= ROWS


@pytest.mark.parametrize(
    ("command", "name", "variables"),
    [
        ("biolatency", "biolaten.rodata", 7),
        ("execsnoop", "execsnoo.rodata", 12),
        ("softirqs", "softirqs.bss", 2),
    ],
)
def test_variables_of_other_programs(command: str, name: str, variables: int) -> None:
    with no_descriptor_leaks(), map_of(name, command) as opened:
        fields_agree(opened, 1, variables)
