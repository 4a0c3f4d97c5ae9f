"""Boots a kernel under QEMU with the host's root as its own, and runs one command in it as root.

The guest sees the host's files through 9p, read-only below a layer in memory: virtual environments,
compilers and the checkout are where they are on the host, and nothing that the command writes
reaches the host, but for one folder per run, which both sides write:

``command.sh guest.env``  from the host: what to run
``output.log``            standard output and error of the command, also passed on as it comes
``console.log``           the kernel's console
``booted exit dmesg``     from the guest; without ``exit`` the run has failed in any case
"""

from __future__ import annotations

import codecs
import os
import platform
import re
import selectors
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO

from bridge.errors import UnavailableError
from tests.vm.initramfs import build_initramfs
from tests.vm.kernels import BUILD, CHECKOUT, Kernel

GUEST_RESULTS: Final = "/run/mapbridge-vm"
EXIT_TIME_LIMIT: Final = 124
EXIT_NO_RESULT: Final = 70
EXIT_KERNEL_COMPLAINT: Final = 71

_CPUS = 2
_MEMORY_MIB = 3072
# The plainest model is the fastest to emulate; the flags are those that numpy's builds require.
_CPU_MODEL = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+rdrand"
_KVM_TRIAL_SECONDS = 25.0
_KEPT_RUNS = 20
_RUN_SECONDS_MAX = 3600.0

# The time stamp counter spares a device access per reading of the clock: emulation keeps it in step
# on all processors, which the kernel does not believe by itself. Timeouts of the kernel's own
# watchdogs are long because emulation on a loaded host stalls for seconds: what they report after
# that is a fault of the guest. An oops ends the run at once.
_KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet loglevel=5 panic=-1 oops=panic nokaslr mitigations=off no_timer_check "
    "audit=0 tsc=reliable rcupdate.rcu_cpu_stall_timeout=120 watchdog_thresh=60"
)
_COMPLAINT = re.compile(
    r"WARNING: |\bBUG: |\bOops: |Kernel panic - |rcu: .*(?:stalls? on|starved for)|Call Trace:"
    r"|INFO: task .* blocked|general protection fault|Out of memory: Killed"
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. ``exit_code`` is what the harness exits with, see ``explain``."""

    exit_code: int
    command_code: int | None
    complaints: tuple[str, ...]
    timed_out: bool
    boot_seconds: float | None
    total_seconds: float
    folder: Path

    def explain(self) -> str:
        """One line for a person."""
        boot = "never" if self.boot_seconds is None else f"{self.boot_seconds:.1f} s"
        times = f"boot {boot}, total {self.total_seconds:.1f} s, files in {_short(self.folder)}"
        if self.timed_out:
            return f"stopped at the time limit ({times})"
        if self.command_code is None:
            return f"the guest ended without an exit code ({times})"
        if self.complaints:
            return f"exit {self.command_code}, but the kernel complained ({times})"
        return f"exit {self.command_code} ({times})"


def _short(path: Path) -> str:
    return str(path.relative_to(CHECKOUT)) if path.is_relative_to(CHECKOUT) else str(path)


def run_in_guest(
    kernel: Kernel,
    command: Sequence[str],
    *,
    limit_seconds: float,
    cwd: Path | None = None,
    kvm: bool = False,
    environment: Mapping[str, str] | None = None,
    output: TextIO | None = None,
) -> Outcome:
    """Boots ``kernel``, runs ``command`` in ``cwd`` (the current folder), and powers off.

    The command's output goes to ``output`` (standard output) as it comes. Raises UnavailableError
    when QEMU or busybox is missing; everything that goes wrong later is in the Outcome.
    """
    qemu = find_qemu()
    limit_seconds = min(limit_seconds, _RUN_SECONDS_MAX)
    folder = _new_folder(kernel)
    shown = output or sys.stdout
    (folder / "command.sh").write_text(_command_text(kernel, command, cwd, environment))
    (folder / "guest.env").write_text(_guest_text(kernel, shown.isatty()))
    (folder / "initramfs").write_bytes(build_initramfs(kernel))
    started = time.monotonic()
    started_wall = time.time()
    with _running([qemu, *_qemu_arguments(kernel, folder, kvm=kvm)], folder) as process:
        deadline = started + limit_seconds
        timed_out = not _pass_output(process, shown, folder / "output.log", deadline)
    (folder / "initramfs").unlink()
    booted = folder / "booted"
    boot_seconds = booted.stat().st_mtime - started_wall if booted.exists() else None
    return judge(folder, timed_out, boot_seconds, time.monotonic() - started)


def find_qemu() -> str:
    """Path of the emulator for this machine's architecture."""
    if platform.machine() != "x86_64":
        raise UnavailableError(
            f"guest: only x86_64 is supported (got {platform.machine()})",
            hint="run the tests on a kernel with kprobes: MAPBRIDGE_VM=1 pytest -m vm tests/vm",
        )
    found = shutil.which("qemu-system-x86_64")
    if found is None:
        raise UnavailableError(
            "guest: qemu-system-x86_64 is missing", hint="apt-get install qemu-system-x86"
        )
    return found


def kvm_works(kernel: Kernel) -> bool:
    """Whether a guest boots under KVM: where virtualization nests, the device may open in vain."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    with Path(os.devnull).open("w") as silent:
        outcome = run_in_guest(
            kernel, ["true"], limit_seconds=_KVM_TRIAL_SECONDS, kvm=True, output=silent
        )
    return outcome.exit_code == 0


def _new_folder(kernel: Kernel) -> Path:
    runs = BUILD / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    _remove_old(runs)
    name = f"{kernel.version}-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}"
    folder = runs / name
    for attempt in range(100):
        try:
            folder.mkdir()
        except FileExistsError:
            folder = runs / f"{name}-{attempt}"
        else:
            return folder
    raise UnavailableError(f"guest: no free folder for the run (got {folder})")


def _remove_old(runs: Path) -> None:
    """Keeps the newest runs, and those that may still be under way beside this one."""
    oldest_running = time.time() - _RUN_SECONDS_MAX
    folders = sorted(runs.iterdir(), key=lambda path: path.name.split("-")[1:])
    for folder in folders[:-_KEPT_RUNS]:
        if folder.stat().st_mtime < oldest_running:
            shutil.rmtree(folder, ignore_errors=True)


def _command_text(
    kernel: Kernel,
    command: Sequence[str],
    cwd: Path | None,
    environment: Mapping[str, str] | None,
) -> str:
    variables = {
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "TERM": os.environ.get("TERM", "dumb"),
        "TMPDIR": "/run/tmp",
        "MAPBRIDGE_VM": "1",
        "MAPBRIDGE_VM_KERNEL": kernel.version,
        "MAPBRIDGE_VM_RESULTS": GUEST_RESULTS,
        **(environment or {}),
    }
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    lines += [f"cd {shlex.quote(str(cwd or Path.cwd()))} || exit", f"exec {shlex.join(command)}"]
    return "".join(f"{line}\n" for line in lines)


def _guest_text(kernel: Kernel, terminal: bool) -> str:
    size = shutil.get_terminal_size((100, 40))
    variables = {
        "GUEST_ARCHITECTURE": "amd64",
        "GUEST_CHECKOUT": str(CHECKOUT),
        "GUEST_COLUMNS": str(size.columns),
        "GUEST_MODULES": str(kernel.modules.parent.resolve()),
        "GUEST_RESULTS": GUEST_RESULTS,
        "GUEST_ROWS": str(size.lines),
        "GUEST_TERMINAL": str(int(terminal)),
    }
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in variables.items())


def _qemu_arguments(kernel: Kernel, folder: Path, *, kvm: bool) -> list[str]:
    arguments = ["-no-user-config", "-nodefaults", "-display", "none", "-no-reboot"]
    arguments += ["-machine", "pc", "-smp", str(_CPUS), "-m", f"{_MEMORY_MIB}M"]
    if kvm:
        arguments += ["-accel", "kvm", "-cpu", "host"]
    else:
        arguments += ["-accel", "tcg,thread=multi,tb-size=512", "-cpu", _CPU_MODEL]
    arguments += ["-kernel", str(kernel.image), "-initrd", str(folder / "initramfs")]
    arguments += ["-append", _KERNEL_ARGUMENTS]
    arguments += ["-serial", f"file:{folder / 'console.log'}"]
    arguments += ["-chardev", "stdio,id=output,signal=off", "-serial", "chardev:output"]
    for tag, path, options in (
        ("host", "/", "readonly=on,multidevs=remap"),
        ("results", str(folder), "multidevs=remap"),
    ):
        device = f"local,id={tag},path={path},security_model=none,{options}"
        arguments += ["-fsdev", device]
        arguments += ["-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
    return arguments


@contextmanager
def _running(command: Sequence[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    guard = shutil.which("setpriv")
    # The emulator goes down with this process, however this one ends.
    prefix = [guard, "--pdeathsig", "KILL"] if guard else []
    with (folder / "qemu.log").open("wb") as log:
        process = subprocess.Popen(
            [*prefix, *command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _pass_output(
    process: subprocess.Popen[bytes], shown: TextIO, log_path: Path, deadline: float
) -> bool:
    """Copies the guest's output until it powers off; False when the deadline came first."""
    assert process.stdout is not None
    source = process.stdout.fileno()
    # A chunk may end within a character.
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    with selectors.DefaultSelector() as selector, log_path.open("wb") as log:
        selector.register(source, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if not selector.select(left):
                continue
            chunk = os.read(source, 65536)
            if not chunk:
                return True
            log.write(chunk)
            log.flush()
            shown.write(decoder.decode(chunk))
            shown.flush()
    return False


def judge(folder: Path, timed_out: bool, boot: float | None, total: float) -> Outcome:
    """The outcome of the run that left its files in ``folder``; times in seconds."""
    code: int | None = None
    if (folder / "exit").exists():
        code = int((folder / "exit").read_text())
    logs = [folder / name for name in ("dmesg", "console.log")]
    complaints = find_complaints("\n".join(_read(path) for path in logs))
    if timed_out:
        exit_code = EXIT_TIME_LIMIT
    elif code is None:
        exit_code = EXIT_NO_RESULT
    else:
        exit_code = code or (EXIT_KERNEL_COMPLAINT if complaints else 0)
    return Outcome(exit_code, code, tuple(complaints), timed_out, boot, total, folder)


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def find_complaints(log: str) -> list[str]:
    """Lines of a kernel log that no run may have, in order and once each."""
    return list(dict.fromkeys(line for line in log.splitlines() if _COMPLAINT.search(line)))
