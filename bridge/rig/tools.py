"""Run the system tools that demos and benchmarks need, and say in words what is missing."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bridge.errors import BridgeError, PrivilegeError, UnavailableError

COMMAND_SECONDS_MAX = 60.0

# Debian's package for each tool; other distributions use the same names, clang and bpftool included
_PACKAGES = {
    "ip": "iproute2",
    "tc": "iproute2",
    "nsenter": "util-linux",
    "clang": "clang",
    "bpftool": "bpftool",
    "keepalived": "keepalived",
}

# include/uapi/linux/capability.h; namespaces need the second, addresses and filters the first
_CAPABILITIES = {12: "CAP_NET_ADMIN", 21: "CAP_SYS_ADMIN"}


class CommandError(BridgeError):
    """A tool ended with an error; the message holds its last words."""


def require_tools(*names: str) -> None:
    """Raises UnavailableError with the packages to install when a tool is not on PATH."""
    missing = [name for name in names if shutil.which(name) is None]
    if missing:
        packages = sorted({_PACKAGES.get(name, name) for name in missing})
        raise UnavailableError(
            f"{missing[0]}: not found on PATH (missing {', '.join(missing)})",
            hint=f"install {' '.join(packages)} (Debian: apt install {' '.join(packages)})",
        )


def require_privileges() -> None:
    """Raises PrivilegeError naming the capabilities that this process lacks."""
    missing = [
        name for bit, name in _CAPABILITIES.items() if not effective_capabilities() >> bit & 1
    ]
    if missing:
        raise PrivilegeError(
            f"network namespaces: need {' and '.join(missing)} (got a process without)",
            hint="run as root; in a container, with --privileged",
        )


def mount_file_systems() -> None:
    """Mounts what a system without systemd leaves out: the BPF file system, and tracefs.

    Raises CommandError. A kernel without tracefs is left without.
    """
    types = {
        target: kind
        for _, target, kind, *_ in map(
            str.split, Path("/proc/self/mounts").read_text().splitlines()
        )
    }
    if types.get("/sys/fs/bpf") != "bpf":
        run(["mount", "-t", "bpf", "bpf", "/sys/fs/bpf"])
    if types.get("/sys/kernel/tracing") != "tracefs" and Path("/sys/kernel/tracing").exists():
        run(["mount", "-t", "tracefs", "tracefs", "/sys/kernel/tracing"])


def effective_capabilities() -> int:
    """The capability bits of this process (``CapEff`` in proc(5))."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def run(
    argv: Sequence[str], *, input_text: str | None = None, seconds_max: float = COMMAND_SECONDS_MAX
) -> str:
    """What the command prints on stdout. Raises CommandError when it fails or takes too long."""
    try:
        done = subprocess.run(
            argv,
            input=input_text,
            capture_output=True,
            text=True,
            timeout=seconds_max,
            check=False,
        )
    except FileNotFoundError:
        require_tools(argv[0])
        raise
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"{argv[0]}: took too long (got {seconds_max:g} s)") from error
    if done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        raise CommandError(f"{' '.join(argv)}: {' / '.join(words[-3:])} (got {done.returncode})")
    return done.stdout


def end(process: subprocess.Popen[bytes], seconds_max: float) -> None:
    """SIGTERM, and after ``seconds_max`` SIGKILL; nothing for one that has ended."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(seconds_max)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
