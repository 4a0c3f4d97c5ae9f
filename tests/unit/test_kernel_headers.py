"""Headers for BCC from the folders that distributions install."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from bridge.kernel.headers import (
    HeadersError,
    native_headers,
    prepare_headers,
    split_headers,
)

MACHINES = {"x86_64": ("amd64", "x86"), "aarch64": ("arm64", "arm64")}


def install(sources: Path, version: str, suffix: str, arch: str) -> None:
    """What the two header packages of a version put below ``/usr/src``."""
    common = sources / f"linux-headers-{version}-common"
    specific = sources / f"linux-headers-{version}-{suffix}"
    for path, text in {
        common / "include/linux/kernel.h": version,
        common / "include/uapi/linux/bpf.h": version,
        common / f"arch/{arch}/include/asm/page.h": version,
        specific / "include/generated/autoconf.h": version,
        specific / "include/config/auto.conf": version,
        specific / f"arch/{arch}/include/generated/asm/rwonce.h": version,
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize("machine", MACHINES)
def test_newest_pair_of_this_architecture(tmp_path: Path, machine: str) -> None:
    suffix, arch = MACHINES[machine]
    for version in ("6.1.0-9", "6.1.0-56", "5.10.0-100"):
        install(tmp_path, version, suffix, arch)
    install(tmp_path, "7.9.0-1", "other", arch)
    (tmp_path / f"linux-headers-9.9.0-1-{suffix}").mkdir()  # its common part is missing
    found = split_headers(tmp_path, machine)
    assert found is not None
    assert found.specific.name == f"linux-headers-6.1.0-56-{suffix}"
    assert found.common.name == "linux-headers-6.1.0-56-common"
    assert found.arch == arch


@pytest.mark.skipif(platform.machine() not in MACHINES, reason="layout of this machine not listed")
def test_merged_folder(tmp_path: Path) -> None:
    suffix, arch = MACHINES[platform.machine()]
    install(tmp_path / "src", "6.1.0-56", suffix, arch)
    merged = prepare_headers(tmp_path / "cache", modules=tmp_path, sources=tmp_path / "src")
    assert merged is not None
    for path in (
        "include/linux/kernel.h",
        "include/uapi/linux/bpf.h",
        "include/generated/autoconf.h",
        "include/config/auto.conf",
        f"arch/{arch}/include/asm/page.h",
        f"arch/{arch}/include/generated/asm/rwonce.h",
    ):
        assert (merged / path).read_text() == "6.1.0-56"
    made = merged.stat().st_mtime_ns
    again = prepare_headers(tmp_path / "cache", modules=tmp_path, sources=tmp_path / "src")
    assert again == merged
    assert merged.stat().st_mtime_ns == made
    # A build that was cut short is made again.
    (merged / ".complete").unlink()
    (merged / "include/linux").unlink()
    prepare_headers(tmp_path / "cache", modules=tmp_path, sources=tmp_path / "src")
    assert (merged / "include/linux/kernel.h").is_file()


def test_native_headers_need_no_help(tmp_path: Path) -> None:
    build = tmp_path / platform.release() / "build"
    build.mkdir(parents=True)
    assert native_headers(modules=tmp_path) is None, "an empty folder has no headers"
    (build / "include").mkdir()
    assert native_headers(modules=tmp_path) == build
    cache = tmp_path / "cache"
    assert prepare_headers(cache, modules=tmp_path, sources=tmp_path) is None
    assert not cache.exists()


def test_none_at_all(tmp_path: Path) -> None:
    with pytest.raises(HeadersError, match="none for") as caught:
        prepare_headers(tmp_path / "cache", modules=tmp_path, sources=tmp_path / "src")
    assert "linux-headers" in caught.value.hint
