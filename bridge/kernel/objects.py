"""BPF programs in C for libbpf: compiled with clang into a cache, loaded and pinned by bpftool.

The capture programs do not come this way (BCC compiles those). This is for programs of the kind
that users have themselves: examples, demonstrations, benchmarks, tests.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from bridge.errors import BridgeError, UnavailableError
from bridge.kernel.maps import KernelMap, open_pin
from bridge.kernel.programs import KernelProgram, open_pinned_program

COMPILE_SECONDS_MAX = 120.0
LOAD_SECONDS_MAX = 60.0
_MAPS = "maps"
_SYSTEM_PATHS = ("/usr/sbin", "/sbin", "/usr/local/sbin")  # not in every user's PATH
_SAID_LINES = 12
_REASON_LINES = 6
_ADVICE = ("Warning: bpftool is now running", "If it used to work for this object file")


class ObjectError(BridgeError):
    """A BPF program could not be compiled or loaded."""


class LoadedObject:
    """A loaded object file: its programs and maps, pinned in ``directory``.

    Maps and programs are opened once, from any thread, and closed by ``unload``, which also
    removes the pins; the kernel frees what nobody else holds.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._maps: dict[str, KernelMap] = {}
        self._programs: dict[str, KernelProgram] = {}
        self._opening = threading.Lock()

    def __enter__(self) -> LoadedObject:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.unload()

    def map_pin(self, name: str) -> Path:
        return self.directory / _MAPS / name

    def map(self, name: str) -> KernelMap:
        """A map by the name that it has in the source. Raises ``MapNotFoundError``."""
        with self._opening:
            if name not in self._maps:
                self._maps[name] = open_pin(self.map_pin(name))
            return self._maps[name]

    def program(self, name: str) -> KernelProgram:
        """A program by the name of its function."""
        with self._opening:
            if name not in self._programs:
                self._programs[name] = open_pinned_program(self.directory / name)
            return self._programs[name]

    def unload(self) -> None:
        for opened in self._maps.values():
            opened.close()
        for program in self._programs.values():
            program.close()
        self._maps.clear()
        self._programs.clear()
        remove_pins(self.directory)


def default_cache() -> Path:
    """Where compiled objects are kept: ``$XDG_CACHE_HOME/mapbridge``, or in ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "mapbridge"


def compile_object(
    source: Path,
    *,
    include: Sequence[Path] = (),
    defines: Sequence[str] = (),
    cache: Path | None = None,
) -> Path:
    """The object file of a C source; compiled only when nothing like it is in the cache.

    ``defines`` are like ``EMIT`` or ``RING_BYTES=65536``. The name of an object says which source,
    headers next to it and in ``include``, options and compiler it came from. Raises
    ``UnavailableError`` when the tools are missing, ``ObjectError`` with what clang said.
    """
    clang = _tool("clang", "install clang (Debian, Ubuntu, Fedora: package clang)")
    options = [
        *("-O2", "-g", "-Wall", "-Werror=implicit-function-declaration", "-target", "bpf"),
        *(f"-D{define}" for define in defines),
        *(f"-I{path}" for path in (*include, *_system_include())),
    ]
    digest = _digest(clang, options, source, include)
    directory = default_cache() if cache is None else cache
    compiled = directory / f"{source.name.split('.')[0]}-{digest}.o"
    if compiled.is_file():
        return compiled
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        fresh = Path(scratch) / compiled.name
        said = _run([clang, *options, "-c", str(source), "-o", str(fresh)], COMPILE_SECONDS_MAX)
        if said is not None:
            raise _compile_error(source, said)
        fresh.replace(compiled)  # another process may have made the same one meanwhile
    return compiled


def load_object(
    compiled: Path, directory: Path, *, program_type: str = "classifier"
) -> LoadedObject:
    """Loads all programs of an object file and pins them, and their maps, below ``directory``.

    ``directory`` must not exist and lie in a bpf file system; ``program_type`` is one of
    bpftool's. Raises ``UnavailableError``, ``ObjectError``.
    """
    bpftool = _tool("bpftool", "install bpftool (Debian: package bpftool; Ubuntu: linux-tools)")
    if directory.exists():
        raise ObjectError(
            f"load {compiled.name}: the folder for its pins is there already (got {directory})",
            hint="a program that was not unloaded: remove the folder, or take another one",
        )
    command = [bpftool, "prog", "loadall", str(compiled), str(directory)]
    command += ["type", program_type, "pinmaps", str(directory / _MAPS)]
    said = _run(command, LOAD_SECONDS_MAX)
    if said is not None:
        remove_pins(directory)
        raise ObjectError(
            f"load {compiled.name}: refused by bpftool (got {_reasons(said)})",
            hint="run as root or with CAP_BPF and CAP_NET_ADMIN, with a bpf file system mounted",
        )
    return LoadedObject(directory)


def remove_pins(directory: Path) -> None:
    """Removes the pins that ``load_object`` made; the folder need not be complete, or there."""
    for folder in (directory / _MAPS, directory):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for pin in list(folder.iterdir()):
                pin.unlink(missing_ok=True)
            folder.rmdir()


def _digest(clang: str, options: Sequence[str], source: Path, include: Sequence[Path]) -> str:
    """Names what an object is made from; headers of the system are taken not to change."""
    compiler = Path(clang).resolve()
    known = hashlib.sha256(f"{compiler} {compiler.stat().st_mtime_ns} {options}".encode())
    headers = {path for folder in (source.parent, *include) for path in folder.glob("*.h")}
    for path in (source, *sorted(headers)):
        known.update(f"\0{path.name}\0".encode())
        known.update(path.read_bytes())
    return known.hexdigest()[:20]


def _system_include() -> list[Path]:
    """Debian keeps ``asm/types.h`` in a folder by machine, where ``-target bpf`` does not look."""
    folder = Path(f"/usr/include/{platform.machine()}-linux-gnu")
    return [folder] if folder.is_dir() else []


def _tool(name: str, hint: str) -> str:
    found = shutil.which(name)
    if found is None:
        found = shutil.which(name, path=os.pathsep.join(_SYSTEM_PATHS))
    if found is None:
        raise UnavailableError(f"{name}: not found in PATH", hint=hint)
    return found


def _run(command: Sequence[str], seconds_max: float) -> str | None:
    """What a command said when it failed; ``None`` when it did not."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds_max,
            check=False,
            text=True,
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {seconds_max:g} s"
    except OSError as error:
        return f"cannot be run: {error.strerror}"
    return None if done.returncode == 0 else done.stdout.strip() or f"exit {done.returncode}"


def _compile_error(source: Path, said: str) -> BridgeError:
    if "bpf/bpf_helpers.h' file not found" in said:
        return UnavailableError(
            f"compile {source.name}: bpf/bpf_helpers.h not found",
            hint="install the headers of libbpf (Debian, Ubuntu: libbpf-dev; Fedora: libbpf-devel)",
        )
    shown = "\n".join(said.splitlines()[:_SAID_LINES])
    return ObjectError(f"compile {source.name}: refused by clang (got {shown})")


def _reasons(said: str) -> str:
    """The end of what bpftool and the verifier said, without bpftool's advice about itself."""
    lines = [line.removeprefix("libbpf: ").strip() for line in said.splitlines()]
    reasons = [line for line in lines if line and not line.startswith(_ADVICE)]
    return " / ".join(reasons[-_REASON_LINES:]) or "no reason"
