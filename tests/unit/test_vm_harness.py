"""The parts of tests/vm that need no guest: apt's sources, the initramfs, the verdict on a run."""

from __future__ import annotations

import lzma
import subprocess
from pathlib import Path

import pytest

from bridge.errors import UnavailableError
from tests.vm.initramfs import Archive, order_modules, read_module
from tests.vm.kernels import Kernel
from tests.vm.machine import (
    EXIT_KERNEL_COMPLAINT,
    EXIT_NO_RESULT,
    EXIT_TIME_LIMIT,
    find_complaints,
    judge,
)
from tests.vm.mirror import MIRROR_VARIABLE, find_mirror, parse_one_line

ONE_LINE = """
# deb http://commented.example/debian bookworm main
deb-src http://source.example/debian bookworm main
deb [arch=amd64 signed-by=/keys/a.gpg] http://mirror.example/debian/ bookworm main contrib # best
deb http://security.example/debian-security bookworm-security main
deb http://other.example/packages stable other
"""
PARAGRAPHS = """
Types: deb deb-src
# the mirror next door
URIs: http://mirror.example/debian
Suites: bookworm
 bookworm-updates
Components: main
Signed-By: /keys/a.gpg

Enabled: no
Types: deb
URIs: http://off.example/debian-security
Suites: bookworm-security
Components: main

Types: deb
URIs: http://security.example/debian-security
Suites: bookworm-security
Components: main
"""


@pytest.fixture(autouse=True)
def _no_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    """A modules folder in which overlayfs is built in."""
    dep = (
        "kernel/net/9p/9pnet.ko.xz:\n"
        "kernel/fs/netfs/netfs.ko.xz:\n"
        "kernel/fs/fscache/fscache.ko.xz: kernel/fs/netfs/netfs.ko.xz\n"
        "kernel/fs/9p/9p.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/fs/fscache/fscache.ko.xz "
        "kernel/fs/netfs/netfs.ko.xz\n"
        "kernel/drivers/virtio/virtio_pci.ko.xz: kernel/drivers/virtio/virtio.ko.xz\n"
        "kernel/net/9p/9pnet_virtio.ko.xz: kernel/net/9p/9pnet.ko.xz "
        "kernel/drivers/virtio/virtio.ko.xz\n"
    )
    (tmp_path / "modules.dep").write_text(dep)
    (tmp_path / "modules.builtin").write_text("kernel/fs/overlayfs/overlay.ko\n")
    return Kernel("6.1", "6.1.0-0-test", tmp_path / "vmlinuz", tmp_path)


@pytest.mark.parametrize(("name", "text"), [("a.list", ONE_LINE), ("a.sources", PARAGRAPHS)])
def test_mirror_is_read_from_either_form(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d" / name).write_text(text)
    mirror = find_mirror("bookworm", tmp_path)
    assert mirror.main.uri == "http://mirror.example/debian"
    assert mirror.main.signed_by == "/keys/a.gpg"
    assert mirror.security is not None
    assert mirror.security.uri == "http://security.example/debian-security"


def test_sources_list_names_the_suite_asked_for(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text(ONE_LINE)
    mirror = find_mirror("bookworm", tmp_path)
    both = mirror.sources_list("trixie", with_security=True)
    assert "Suites: trixie\n" in both
    assert "Suites: trixie-security\n" in both
    assert "Signed-By: /keys/a.gpg\n" in both
    assert "bookworm" not in both
    assert "security" not in mirror.sources_list("forky", with_security=False)


def test_mirror_missing_is_told_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text("deb http://other.example/packages stable other\n")
    with pytest.raises(UnavailableError, match="suite bookworm") as caught:
        find_mirror("bookworm", tmp_path)
    assert MIRROR_VARIABLE in caught.value.hint


def test_mirror_can_be_given_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MIRROR_VARIABLE, "http://hand.example/debian/")
    assert find_mirror("bookworm", tmp_path).main.uri == "http://hand.example/debian"


def test_broken_line_is_passed_over() -> None:
    assert list(parse_one_line("deb\ndeb [x=y\ndeb http://short.example\n")) == []


def test_modules_come_after_what_they_need(kernel: Kernel) -> None:
    names = [path.name.split(".")[0] for path in order_modules(kernel)]
    assert sorted(names) == sorted(set(names))
    for earlier, later in (
        ("virtio", "virtio_pci"),
        ("9pnet", "9pnet_virtio"),
        ("netfs", "fscache"),
        ("fscache", "9p"),
        ("9pnet", "9p"),
    ):
        assert names.index(earlier) < names.index(later)
    assert "overlay" not in names


def test_missing_module_is_told(kernel: Kernel) -> None:
    (kernel.modules / "modules.builtin").write_text("")
    with pytest.raises(UnavailableError, match="overlay"):
        order_modules(kernel)


def test_packed_module_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "a.ko.xz"
    path.write_bytes(lzma.compress(b"\x7fELF module"))
    assert read_module(path) == b"\x7fELF module"


def test_archive_is_one_that_cpio_reads(tmp_path: Path) -> None:
    archive = Archive()
    archive.add_folder("bin")
    archive.add_file("bin/tool", b"#!/bin/sh\n", mode=0o755)
    archive.add_file("odd", b"12345")
    done = subprocess.run(
        ["busybox", "cpio", "-id"],
        input=archive.finish(),
        cwd=tmp_path,
        check=False,
        capture_output=True,
        timeout=20,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "odd").read_bytes() == b"12345"
    assert (tmp_path / "bin" / "tool").stat().st_mode & 0o777 == 0o755


COMPLAINTS = [
    "[   12.3] WARNING: CPU: 0 PID: 1 at kernel/bpf/core.c:1 f+0x1/0x2",
    "[   12.3] BUG: kernel NULL pointer dereference, address: 0000000000000000",
    "[   12.3] watchdog: BUG: soft lockup - CPU#0 stuck for 123s! [python3:1]",
    "[   12.3] rcu: INFO: rcu_preempt self-detected stall on CPU",
    "[   12.3] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
    "[   12.3] rcu: rcu_preempt kthread starved for 5250 jiffies!",
    "[   12.3] Kernel panic - not syncing: sysrq triggered crash",
    "[   12.3] Out of memory: Killed process 77 (python3)",
]
HARMLESS = (
    "[    0.1] Command line: oops=panic rcupdate.rcu_cpu_stall_timeout=120\n"
    "[    0.2] \tRCU CPU stall warnings timeout set to 120 (rcu_cpu_stall_timeout).\n"
    "[    0.3] rcu: Hierarchical SRCU implementation.\n"
)


@pytest.mark.parametrize("line", COMPLAINTS)
def test_complaint_is_found_among_harmless_lines(line: str) -> None:
    assert find_complaints(f"{HARMLESS}{line}\n{line}\n{HARMLESS}") == [line]


@pytest.mark.parametrize(
    ("files", "timed_out", "expected"),
    [
        ({"exit": "0\n", "dmesg": HARMLESS}, False, 0),
        ({"exit": "3\n", "dmesg": HARMLESS}, False, 3),
        ({"exit": "0\n", "dmesg": COMPLAINTS[0]}, False, EXIT_KERNEL_COMPLAINT),
        ({"exit": "3\n", "dmesg": COMPLAINTS[0]}, False, 3),
        ({"dmesg": HARMLESS}, False, EXIT_NO_RESULT),
        ({"console.log": COMPLAINTS[6]}, False, EXIT_NO_RESULT),
        ({"exit": "0\n"}, True, EXIT_TIME_LIMIT),
    ],
)
def test_verdict(tmp_path: Path, files: dict[str, str], timed_out: bool, expected: int) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    outcome = judge(tmp_path, timed_out, 7.0, 9.0)
    assert outcome.exit_code == expected
    assert str(tmp_path) in outcome.explain()
