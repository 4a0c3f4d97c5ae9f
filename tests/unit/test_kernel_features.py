"""Findings over file trees like those of other machines: no and unknown are told apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.kernel.features import Answer, Capability, Probes, kernel_version

YES, NO, UNKNOWN = Answer.YES, Answer.NO, Answer.UNKNOWN


def tree(root: Path, *paths: str, **files: str) -> Probes:
    for folder in paths:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Probes(root, "6.1.0-56-amd64")


@pytest.mark.parametrize(
    ("paths", "answer"),
    [
        (("sys/bus/event_source/devices/kprobe",), YES),
        (("sys/kernel/debug/tracing/kprobe_events",), YES),
        (("sys/bus/event_source/devices/cpu",), NO),
        ((), UNKNOWN),
    ],
)
def test_kprobes(tmp_path: Path, paths: tuple[str, ...], answer: Answer) -> None:
    finding = tree(tmp_path, *paths).kprobes()
    assert finding.answer is answer
    assert bool(finding.mend) == (answer is not YES)


def test_tracefs_and_its_tracepoints(tmp_path: Path) -> None:
    probes = tree(tmp_path)
    assert probes.tracefs().answer is UNKNOWN
    tree(tmp_path, proc__filesystems="nodev\tsysfs\n")
    assert probes.tracefs().answer is NO
    assert "CONFIG_FTRACE" in probes.tracefs().mend
    tree(tmp_path, proc__filesystems="nodev\tsysfs\nnodev\ttracefs\n")
    assert probes.tracefs().answer is NO
    assert probes.tracefs().mend == "mount -t tracefs tracefs /sys/kernel/tracing"
    assert probes.syscall_tracepoints().answer is UNKNOWN
    tree(tmp_path, "sys/kernel/tracing/events/sched")
    assert probes.tracefs().answer is YES
    assert probes.syscall_tracepoints().answer is NO
    tree(tmp_path, "sys/kernel/tracing/events/syscalls/sys_enter_bpf")
    assert probes.syscall_tracepoints().answer is YES


@pytest.mark.parametrize(
    ("mask", "cap", "answer"),
    [
        (1 << 39, Capability.CAP_BPF, YES),
        (1 << 38, Capability.CAP_BPF, NO),
        (1 << 21, Capability.CAP_BPF, YES),
        (1 << 21, Capability.CAP_PERFMON, YES),
        (1 << 21, Capability.CAP_NET_ADMIN, NO),
        (1 << 12, Capability.CAP_NET_ADMIN, YES),
        (0, Capability.CAP_SYS_ADMIN, NO),
    ],
)
def test_capabilities(tmp_path: Path, mask: int, cap: Capability, answer: Answer) -> None:
    status = f"Name:\tx\nCapPrm:\tffffffffffffffff\nCapEff:\t{mask:016x}\nCapBnd:\t0\n"
    finding = tree(tmp_path, proc__self__status=status).capability(cap)
    assert finding.answer is answer
    assert (cap.name in finding.mend) == (answer is NO)


def test_capabilities_without_proc(tmp_path: Path) -> None:
    assert tree(tmp_path).capability(Capability.CAP_BPF).answer is UNKNOWN


@pytest.mark.parametrize(
    ("state", "answer"),
    [
        ("[none] integrity confidentiality\n", YES),
        ("none [integrity] confidentiality\n", YES),
        ("none integrity [confidentiality]\n", NO),
    ],
)
def test_lockdown(tmp_path: Path, state: str, answer: Answer) -> None:
    probes = tree(tmp_path, "sys/kernel/security")
    assert probes.lockdown().answer is UNKNOWN, "an empty folder: securityfs is not mounted"
    tree(tmp_path, "sys/kernel/security/integrity")
    assert probes.lockdown().answer is YES, "securityfs without the file: not built in"
    tree(tmp_path, sys__kernel__security__lockdown=state)
    assert probes.lockdown().answer is answer


def test_btf(tmp_path: Path) -> None:
    assert tree(tmp_path).btf().answer is UNKNOWN
    assert tree(tmp_path, "sys/kernel").btf().answer is NO
    assert tree(tmp_path, sys__kernel__btf__vmlinux="no BTF").btf().answer is NO
    (tmp_path / "sys/kernel/btf/vmlinux").write_bytes(b"\x9f\xeb\x01\x00")
    assert tree(tmp_path).btf().answer is YES


def test_bpf_file_system(tmp_path: Path) -> None:
    assert tree(tmp_path).bpffs().answer is UNKNOWN
    mounts = "proc /proc proc rw 0 0\n"
    assert tree(tmp_path, proc__self__mounts=mounts).bpffs().answer is NO
    mounts += "none /run/bpf bpf rw 0 0\n"
    finding = tree(tmp_path, proc__self__mounts=mounts).bpffs()
    assert (finding.answer, finding.reason) == (YES, "mounted at /run/bpf")


def test_symbols(tmp_path: Path) -> None:
    assert tree(tmp_path).symbols().answer is NO
    assert tree(tmp_path, proc__kallsyms="0000000000000000 T a\n").symbols().answer is UNKNOWN
    assert tree(tmp_path, proc__kallsyms="ffffffff81000000 T a\n").symbols().answer is YES


def test_versions(tmp_path: Path) -> None:
    assert kernel_version("6.1.0-56-amd64") == (6, 1)
    assert kernel_version("5.10-rc3") == (5, 10)
    assert kernel_version("custom") == (0, 0)
    assert Probes(tmp_path, "5.10.0").version().answer is YES
    assert Probes(tmp_path, "5.9.16").version().answer is NO
    assert Probes(tmp_path, "5.11.0").memlock().answer is YES


def test_headers(tmp_path: Path) -> None:
    probes = tree(tmp_path)
    assert probes.headers().answer is NO
    tree(tmp_path, "lib/modules/6.1.0-56-amd64/build/include")
    assert probes.headers().answer is YES
