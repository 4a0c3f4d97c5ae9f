"""Builds the small root from which the guest reaches the host's: busybox, an init and six modules.

Debian's kernels have virtio, 9p and overlayfs as modules only, so they must be loaded before there
is any file system to load them from.
"""

from __future__ import annotations

import lzma
import shutil
import stat
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bridge.errors import UnavailableError
from tests.vm.kernels import Kernel

_WANTED_MODULES: Final = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
_INIT: Final = Path(__file__).with_name("guest") / "init.sh"


@dataclass(slots=True)
class Archive:
    """A cpio archive in the "newc" form, which the kernel unpacks (its ``buffer-format.rst``)."""

    _chunks: list[bytes] = field(default_factory=list)
    _entries: int = 0

    def add_folder(self, name: str) -> None:
        self._add(name, stat.S_IFDIR | 0o755, b"")

    def add_file(self, name: str, data: bytes, *, mode: int = 0o644) -> None:
        self._add(name, stat.S_IFREG | mode, data)

    def _add(self, name: str, mode: int, data: bytes) -> None:
        self._entries += 1
        path = name.encode() + b"\0"
        numbers = (self._entries, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
        header = b"070701" + b"".join(b"%08X" % number for number in numbers) + path
        self._chunks += [header, bytes(-len(header) % 4), data, bytes(-len(data) % 4)]

    def finish(self) -> bytes:
        self._add("TRAILER!!!", 0, b"")
        return b"".join(self._chunks)


def build_initramfs(kernel: Kernel) -> bytes:
    """The archive for ``kernel``. Raises UnavailableError without a static busybox."""
    archive = Archive()
    archive.add_folder("bin")
    archive.add_folder("modules")
    archive.add_file("bin/busybox", _static_busybox().read_bytes(), mode=0o755)
    archive.add_file("init", _INIT.read_bytes(), mode=0o755)
    names = []
    for path in order_modules(kernel):
        names.append(path.name.split(".ko")[0] + ".ko")
        archive.add_file(f"modules/{names[-1]}", read_module(path))
    archive.add_file("modules/order", "".join(f"{name}\n" for name in names).encode())
    return archive.finish()


def order_modules(kernel: Kernel) -> list[Path]:
    """Files of the wanted modules and all that they need, in the order of loading."""
    dependencies: dict[str, list[str]] = {}
    for line in (kernel.modules / "modules.dep").read_text().splitlines():
        name, _, needed = line.partition(":")
        dependencies[name] = needed.split()
    by_name = {_module_name(path): path for path in dependencies}
    builtin = {
        _module_name(path) for path in (kernel.modules / "modules.builtin").read_text().split()
    }
    ordered: list[str] = []
    for wanted in _WANTED_MODULES:
        if wanted in by_name:
            # modules.dep lists the deepest dependency last.
            path = by_name[wanted]
            ordered += [need for need in reversed(dependencies[path]) if need not in ordered]
            ordered.append(path)
        elif wanted not in builtin:
            raise UnavailableError(
                f"kernel {kernel.release}: module {wanted} is missing", hint="remove build/vm"
            )
    return [kernel.modules / path for path in dict.fromkeys(ordered)]


def _module_name(path: str) -> str:
    return path.rsplit("/", 1)[-1].split(".ko", 1)[0].replace("-", "_")


def read_module(path: Path) -> bytes:
    """The module's bytes, unpacked: not every kernel's insmod path takes packed ones."""
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".zst":
        return subprocess.run(
            ["zstd", "-dc"], input=data, check=True, capture_output=True, timeout=60
        ).stdout
    return data


def _static_busybox() -> Path:
    found = shutil.which("busybox")
    # An ELF file with no PT_INTERP names no loader: it needs nothing else in the initramfs.
    if found is None or b"ld-linux" in Path(found).read_bytes()[:4096]:
        raise UnavailableError(
            "guest: no static busybox", hint="apt-get install busybox-static kmod"
        )
    return Path(found)
