"""Runs a command, or tests, on a Debian kernel in a virtual machine.

    python -m tests.vm run --kernel 6.1 [--timeout SECONDS] -- COMMAND [ARGUMENT...]
    python -m tests.vm test --kernel 6.1 [--timeout SECONDS] [PYTEST ARGUMENT...]
    python -m tests.vm fetch --kernel 6.1
    python -m tests.vm matrix [--kernel 6.1]

Exit codes: that of the command; 69 something is missing, 70 the guest ended without a result, 71
the kernel complained in its log, 124 the time limit.
"""

from __future__ import annotations

import argparse
import compileall
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from bridge.errors import BridgeError
from tests.vm.kernels import CHECKOUT, SUITES, fetch_kernel
from tests.vm.machine import GUEST_RESULTS, Outcome, kvm_works, run_in_guest
from tests.vm.matrix.run import run_matrix

_RUN_SECONDS = 600.0
_TEST_SECONDS = 1800.0
_ONE_TEST_SECONDS = 300  # emulation is ten to thirty times slower than the processor
_SHOWN_LINES = 40


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """This program's options, and the command or pytest's arguments."""
    parser = argparse.ArgumentParser(prog="python -m tests.vm", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    actions = parser.add_subparsers(dest="action", required=True)
    for name, summary in (
        ("run", "run a command in a guest"),
        ("test", "run the tests marked vm in a guest"),
        ("fetch", "only download the kernel"),
        ("matrix", "what is seen of each writer, on this kernel or on all of them"),
    ):
        action = actions.add_parser(name, help=summary, allow_abbrev=False)
        kernel = None if name == "matrix" else "6.1"
        action.add_argument("--kernel", default=kernel, choices=tuple(SUITES))
        seconds = _TEST_SECONDS if name == "test" else _RUN_SECONDS
        action.add_argument("--timeout", type=float, default=seconds, metavar="SECONDS")
        action.add_argument(
            "--accel", choices=("tcg", "kvm"), default="tcg", help="kvm only where a trial boots"
        )
        if name == "run":
            action.add_argument("command", nargs="*", metavar="COMMAND ARGUMENT")
    # What stands behind "--" is not this program's, whatever it looks like.
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    options, unknown = parser.parse_known_args(arguments[:cut])
    if unknown and options.action != "test":
        parser.error(f"unknown arguments: {' '.join(unknown)} (the command goes behind --)")
    before = options.command if options.action == "run" else unknown
    return options, [*before, *arguments[cut + 1 :]]


def _command(action: str, rest: list[str]) -> list[str]:
    if action == "run":
        return rest
    junit = f"--junitxml={GUEST_RESULTS}/junit.xml"
    pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "vm", junit]
    # Later arguments win: the caller's own --timeout stands.
    chosen = any((CHECKOUT / word.split("::", 1)[0]).exists() for word in rest)
    return [*pytest, f"--timeout={_ONE_TEST_SECONDS}", *([] if chosen else ["tests/vm"]), *rest]


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _report(outcome: Outcome) -> None:
    print(f"vm: {outcome.explain()}", file=sys.stderr)
    for line in outcome.complaints[:_SHOWN_LINES]:
        print(f"vm: kernel: {line}", file=sys.stderr)
    if outcome.command_code is None:
        for name in ("qemu.log", "console.log"):
            path = outcome.folder / name
            lines = path.read_text(errors="replace").splitlines() if path.exists() else []
            for line in lines[-_SHOWN_LINES:]:
                print(f"vm: {name}: {line}", file=sys.stderr)


def main(arguments: Sequence[str]) -> int:
    options, rest = _parse(arguments)
    command = _command(options.action, rest)
    if options.action == "run" and not command:
        print("Error: no command given\nTry: python -m tests.vm run -- uname -r", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _stop)
    if options.action != "fetch":
        # Compiled here in moments, or at every boot again in the emulator.
        for folder in ("bridge", "tests"):
            compileall.compile_dir(str(CHECKOUT / folder), quiet=2)
    try:
        if options.action == "matrix":
            versions = [options.kernel] if options.kernel else list(SUITES)
            return run_matrix(versions, options.timeout)
        kernel = fetch_kernel(options.kernel)
        print(f"vm: kernel {kernel.release}", file=sys.stderr)
        if options.action == "fetch":
            return 0
        kvm = options.accel == "kvm" and kvm_works(kernel)
        if options.accel == "kvm" and not kvm:
            print("vm: no guest boots under KVM here, using emulation", file=sys.stderr)
        cwd = CHECKOUT if options.action == "test" else None
        outcome = run_in_guest(kernel, command, limit_seconds=options.timeout, cwd=cwd, kvm=kvm)
    except BridgeError as error:
        print(f"Error: {error}", file=sys.stderr)
        if error.hint:
            print(f"Try: {error.hint}", file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        print("vm: interrupted", file=sys.stderr)
        return 130
    _report(outcome)
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
