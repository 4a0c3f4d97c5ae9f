"""Kernel headers for BCC, which compiles its programs on the node.

BCC looks in ``/lib/modules/<release>/build``. Where that is missing (a container, a kernel of other
make), headers of another version serve as well, because the capture program takes no struct of the
kernel from them. Debian splits them into a common part and one per architecture; BCC takes one
folder: ``prepare_headers`` merges them by symbolic links. Its path goes to BCC in the environment
variable ``BCC_KERNEL_SOURCE``.
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from bridge.errors import UnavailableError

MODULES = Path("/lib/modules")
SOURCES = Path("/usr/src")
ENVIRONMENT_VARIABLE = "BCC_KERNEL_SOURCE"

# machine -> (Debian's suffix, folder below arch/)
_ARCHITECTURES = {
    "x86_64": ("amd64", "x86"),
    "aarch64": ("arm64", "arm64"),
    "s390x": ("s390x", "s390"),
    "ppc64le": ("powerpc64le", "powerpc"),
    "riscv64": ("riscv64", "riscv"),
}
_DONE = ".complete"


class HeadersError(UnavailableError):
    """No kernel headers on this machine."""


@dataclass(frozen=True, slots=True)
class SplitHeaders:
    """A pair of folders as Debian's packages lay them out."""

    common: Path
    specific: Path
    arch: str


def native_headers(release: str = "", modules: Path = MODULES) -> Path | None:
    """The running kernel's own headers, where BCC finds them by itself."""
    build = modules / (release or platform.release()) / "build"
    return build if (build / "include").is_dir() else None


def split_headers(sources: Path = SOURCES, machine: str = "") -> SplitHeaders | None:
    """The newest pair of a common and an architecture's headers."""
    suffix, arch = _ARCHITECTURES.get(machine or platform.machine(), ("", ""))
    if not suffix or not sources.is_dir():
        return None
    pairs = []
    for specific in sources.glob(f"linux-headers-*-{suffix}"):
        stem = specific.name.removesuffix(f"-{suffix}")
        common = sources / f"{stem}-common"
        generated = specific / "include" / "generated" / "autoconf.h"
        if common.is_dir() and generated.is_file():
            pairs.append(SplitHeaders(common, specific, arch))
    return max(pairs, key=lambda pair: _version(pair.specific.name), default=None)


def prepare_headers(
    cache: Path, *, modules: Path = MODULES, sources: Path = SOURCES
) -> Path | None:
    """The folder to name in ``BCC_KERNEL_SOURCE``; ``None`` when BCC needs no help.

    Builds it below ``cache`` once and answers the same one later. Raises HeadersError.
    """
    if native_headers(modules=modules) is not None:
        return None
    split = split_headers(sources)
    if split is None:
        raise HeadersError(
            f"kernel headers: none for {platform.release()} (looked in {modules} and {sources})",
            hint="install the package linux-headers-amd64, or mount the host's /lib/modules and "
            "/usr/src into the container",
        )
    merged = cache / f"headers-{split.specific.name}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / ".headers.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (merged / _DONE).exists():
                shutil.rmtree(merged, ignore_errors=True)
                _merge(split, merged)
                (merged / _DONE).touch()
    except OSError as error:
        raise HeadersError(
            f"kernel headers: cannot build {merged} (got {error.strerror})",
            hint="give the service a cache folder that it can write",
        ) from error
    return merged


def use_headers(cache: Path) -> None:
    """``prepare_headers`` into this process's environment, unless the operator has set it."""
    if ENVIRONMENT_VARIABLE in os.environ:
        return
    folder = prepare_headers(cache)
    if folder is not None:
        os.environ[ENVIRONMENT_VARIABLE] = str(folder)


def _merge(split: SplitHeaders, merged: Path) -> None:
    arch = Path("arch") / split.arch / "include"
    _link_entries(split.common / "include", merged / "include")
    for name in ("generated", "config"):
        _link(split.specific / "include" / name, merged / "include" / name)
    _link_entries(split.common / arch, merged / arch)
    _link(split.specific / arch / "generated", merged / arch / "generated")


def _link_entries(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for entry in source.iterdir():
        _link(entry, target / entry.name)


def _link(source: Path, target: Path) -> None:
    if source.exists():
        target.unlink(missing_ok=True)
        target.symlink_to(source)


def _version(name: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", name))
