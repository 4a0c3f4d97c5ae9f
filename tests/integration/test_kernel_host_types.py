"""The kernel's own BTF and symbols, read by the bridge and by others."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.kernel.btf import VMLINUX, BtfError, KernelBtf
from bridge.kernel.btf_types import Kind
from bridge.kernel.features import Answer, Capability, Probes
from bridge.kernel.headers import native_headers, split_headers
from bridge.kernel.symbols import KALLSYMS, SymbolTable
from tests.integration.kernel_support import needs

pytestmark = pytest.mark.skipif(
    Probes().btf().answer is not Answer.YES, reason="kernel without CONFIG_DEBUG_INFO_BTF"
)

BPFTOOL = shutil.which("bpftool") or shutil.which("bpftool", path="/usr/sbin:/sbin")
CLANG = shutil.which("clang")
needs_bpftool = pytest.mark.skipif(BPFTOOL is None, reason="bpftool is not installed")

_TYPE = re.compile(r"\[(\d+)\] (\w+) '(.*?)'(?: size=(\d+) vlen=(\d+))?")
_MEMBER = re.compile(r"\t'(.*)' type_id=(\d+) bits_offset=(\d+)(?: bitfield_size=(\d+))?")


@pytest.fixture(scope="module")
def btf() -> KernelBtf:
    return KernelBtf.load()


def dump(form: str) -> str:
    assert BPFTOOL is not None
    command = [BPFTOOL, "btf", "dump", "file", str(VMLINUX), "format", form]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_loads_fast() -> None:
    best = min(_load_seconds() for _ in range(3))
    assert best < 1.0


def _load_seconds() -> float:
    before = time.perf_counter()
    KernelBtf.load()
    return time.perf_counter() - before


@needs_bpftool
def test_every_struct_is_as_bpftool_reads_it(btf: KernelBtf) -> None:
    structs = members = last = 0
    pending: Iterator[tuple[str, int, int, int]] = iter(())
    for line in dump("raw").splitlines():
        if (found := _TYPE.match(line)) is not None:
            assert next(pending, None) is None, f"more members than bpftool's before [{found[1]}]"
            last = int(found[1])
            record = btf.record(last)
            assert record.kind.name == found[2]
            assert (record.name or "(anon)") == found[3]
            if record.kind in (Kind.STRUCT, Kind.UNION):
                structs += 1
                assert (record.extent, record.elements) == (int(found[4]), int(found[5]))
                pending = (
                    (m.name or "(anon)", m.type_id, m.bit_offset, m.bits) for m in btf.members(last)
                )
        elif (member := _MEMBER.match(line)) is not None:
            members += 1
            expected = (member[1], int(member[2]), int(member[3]), int(member[4] or 0))
            assert next(pending) == expected
    assert last == len(btf) - 1
    assert structs > 5_000
    assert members > structs


@needs_bpftool
@pytest.mark.skipif(CLANG is None, reason="clang is not installed")
def test_offsets_and_sizes_are_those_of_the_compiler(btf: KernelBtf, tmp_path: Path) -> None:
    """Nested, anonymous and array members, against what clang makes of the kernel's types."""
    wanted = [
        ("bpf_map", "id"),
        ("bpf_map", "name"),
        ("bpf_map", "map_type"),
        ("bpf_map", "key_size"),
        ("bpf_map", "max_entries"),
        ("bpf_prog", "aux"),
        ("bpf_prog", "active"),
        ("bpf_htab", "n_buckets"),
        ("bpf_htab", "map.value_size"),
        ("htab_elem", "lru_node"),  # both in anonymous unions and structs
        ("htab_elem", "hash_node.next"),
        ("htab_elem", "hash"),
        ("task_struct", "tgid"),
        ("task_struct", "files"),
        ("task_struct", "comm"),
        ("files_struct", "fdt"),
        ("fdtable", "fd"),
        ("file", "private_data"),
        ("sk_buff", "data"),
        ("sk_buff", "hash"),
    ]
    lines = ['#include "vmlinux.h"']
    for struct, path in wanted:
        place = btf.place(struct, path)
        lines.append(
            f"_Static_assert(__builtin_offsetof(struct {struct}, {path}) == {place.offset}, "
            f'"offset of {struct}.{path}");'
            f"_Static_assert(sizeof(((struct {struct} *)0)->{path}) == {place.size}, "
            f'"size of {struct}.{path}");'
        )
    lines.extend(
        f'_Static_assert(sizeof(struct {struct}) == {btf.size(struct)}, "size of {struct}");'
        for struct in {struct for struct, _ in wanted}
    )
    (tmp_path / "vmlinux.h").write_text(dump("c"))
    source = tmp_path / "check.c"
    source.write_text("\n".join(lines) + "\n")
    assert CLANG is not None
    command = [CLANG, "-target", "bpf", "-w", "-fsyntax-only", str(source)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert ran.returncode == 0, ran.stderr[:3000]


def test_functions(btf: KernelBtf) -> None:
    assert btf.has_function("htab_map_update_elem")
    assert not btf.has_function("htab_map_update_ele")
    assert not btf.has_function("bpf_map")  # a struct


def test_what_is_not_there(btf: KernelBtf) -> None:
    with pytest.raises(BtfError, match="no type bpf_mapp"):
        btf.offset("bpf_mapp", "id")
    with pytest.raises(BtfError, match=r"bpf_map has no member idd \(got stuck at idd\)"):
        btf.offset("bpf_map", "idd")
    with pytest.raises(BtfError, match="stuck at x"):
        btf.offset("bpf_map", "id.x")
    assert not btf.has_member("bpf_map", "idd")
    assert btf.has_member("bpf_map", "id")


def test_missing_file() -> None:
    with pytest.raises(BtfError, match="No such file") as caught:
        KernelBtf.load("/sys/kernel/btf/not_there")
    assert "CONFIG_DEBUG_INFO_BTF" in caught.value.hint


def test_symbols_of_this_kernel() -> None:
    lines = [line.split() for line in KALLSYMS.read_text().splitlines()]
    listed = {name: int(address, 16) for address, _, name, *_ in lines}
    found = SymbolTable.load().resolve(
        ["htab_map_update_elem", "htab_map_delete_elem", "no_such_function"]
    )
    assert found["no_such_function"] is None
    for name in ("htab_map_update_elem", "htab_map_delete_elem"):
        symbol = found[name]
        assert symbol is not None
        assert symbol.name == name
        assert symbol.address == listed[name]


@needs(Capability.CAP_BPF, Capability.CAP_NET_ADMIN)
def test_findings_of_this_machine_are_complete() -> None:
    findings = Probes().all()
    assert len({finding.name for finding in findings}) == len(findings)
    by_name = {finding.name: finding for finding in findings}
    assert all(finding.mend for finding in findings if not finding.present)
    assert all(finding.reason and finding.why_it_matters for finding in findings)
    # A kernel that the bridge supports has these for certain.
    for name in ("kernel version", "batch commands", "ring buffer", "CAP_BPF"):
        assert by_name[name].present, by_name[name]
    assert by_name["kernel headers"].present == bool(native_headers() or split_headers())
