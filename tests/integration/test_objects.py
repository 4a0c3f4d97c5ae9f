"""Programs in C: the cache of their objects, loading, and what is said when it does not work."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bridge.errors import UnavailableError
from bridge.kernel.errors import MapNotFoundError
from bridge.kernel.features import Capability
from bridge.kernel.objects import ObjectError, compile_object, load_object, remove_pins
from tests.integration.kernel_support import BPFFS, needs, no_descriptor_leaks, unique_name

NEEDS_BPF = needs(Capability.CAP_BPF, Capability.CAP_NET_ADMIN)
_SOURCE = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "answer.h"
#ifdef TABLE
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} table SEC(".maps");
#endif
SEC("tc")
int answer(struct __sk_buff *packet)
{
	return ANSWER;
}
SEC("tc")
int length(struct __sk_buff *packet)
{
	return packet->len;
}
char LICENSE[] SEC("license") = "GPL";
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "answer.h").write_text("#define ANSWER 41\n")
    path = tmp_path / "answer.bpf.c"
    path.write_text(_SOURCE)
    return path


@NEEDS_BPF
def test_load_run_unload(source: Path, tmp_path: Path) -> None:
    pins = BPFFS / unique_name("objects")
    compiled = compile_object(source, defines=["TABLE"], cache=tmp_path / "cache")
    with no_descriptor_leaks(), load_object(compiled, pins) as loaded:
        assert loaded.program("answer").test_run(bytes(64)).retval == 41
        assert loaded.program("length").test_run(bytes(97)).retval == 97
        assert loaded.program("answer") is loaded.program("answer")
        assert loaded.map("table").lookup(bytes(4)) == bytes(8)
        assert loaded.map_pin("table").exists()
        with pytest.raises(MapNotFoundError):
            loaded.map("chair")
        with pytest.raises(ObjectError, match="there already"):
            load_object(compiled, pins)
        assert loaded.map_pin("table").exists(), "the refused load took nothing away"
    assert not pins.exists()
    loaded.unload()
    remove_pins(pins)


def test_an_object_is_made_again_only_when_something_changed(source: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = compile_object(source, cache=cache)
    made = first.stat().st_mtime_ns
    assert compile_object(source, cache=cache) == first
    assert first.stat().st_mtime_ns == made
    other = compile_object(source, cache=cache, defines=["TABLE"])
    (source.parent / "answer.h").write_text("#define ANSWER 43\n")
    changed = compile_object(source, cache=cache)
    assert len({first, other, changed}) == 3
    assert sorted(cache.iterdir()) == sorted({first, other, changed})
    assert first.read_bytes() != changed.read_bytes()


def test_what_clang_says_is_passed_on(source: Path, tmp_path: Path) -> None:
    source.write_text(_SOURCE.replace("return ANSWER", "return QUESTION"))
    cache = tmp_path / "cache"
    with pytest.raises(ObjectError, match="'QUESTION'"):
        compile_object(source, cache=cache)
    assert list(cache.iterdir()) == []


@NEEDS_BPF
def test_what_the_verifier_says_is_passed_on(source: Path, tmp_path: Path) -> None:
    source.write_text(_SOURCE.replace("packet->len", "*(int *)1"))
    pins = BPFFS / unique_name("objects")
    compiled = compile_object(source, cache=tmp_path / "cache")
    with pytest.raises(ObjectError, match="invalid mem access"):
        load_object(compiled, pins)
    assert not pins.exists()


@pytest.mark.parametrize("tool", ["clang", "bpftool"])
def test_a_missing_tool_is_named(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str
) -> None:
    compiled = compile_object(source, cache=tmp_path / "cache")
    monkeypatch.setattr("bridge.kernel.objects._SYSTEM_PATHS", ())
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    calls: dict[str, Callable[[], object]] = {
        "clang": lambda: compile_object(source, cache=tmp_path / "cache"),
        "bpftool": lambda: load_object(compiled, BPFFS / unique_name("objects")),
    }
    with pytest.raises(UnavailableError, match=f"^{tool}: not found") as caught:
        calls[tool]()
    assert f"install {tool}" in caught.value.hint


def test_missing_headers_are_named(source: Path, tmp_path: Path) -> None:
    source.write_text(_SOURCE.replace("<bpf/bpf_helpers.h>", '"none/bpf/bpf_helpers.h"'))
    with pytest.raises(UnavailableError, match=r"bpf_helpers\.h not found") as caught:
        compile_object(source, cache=tmp_path / "cache")
    assert "libbpf-dev" in caught.value.hint
