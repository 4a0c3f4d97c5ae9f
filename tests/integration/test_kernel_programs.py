"""Programs for real: loading, pinning, test runs, statistics."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from bridge.kernel import errors
from bridge.kernel.features import Capability
from bridge.kernel.maps import MapType, create_map, open_pin
from bridge.kernel.programs import (
    KernelProgram,
    ProgramType,
    load_program,
    open_pinned_program,
    test_run as run_program,
)
from tests.integration.kernel_support import needs, no_descriptor_leaks, pin_folder

pytestmark = needs(Capability.CAP_BPF, Capability.CAP_NET_ADMIN)

EXIT = bytes.fromhex("9500000000000000")


def answer(number: int) -> bytes:
    """A program that returns a number: ``r0 = number; exit``."""
    return bytes.fromhex("b7000000") + number.to_bytes(4, "little") + EXIT


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    with no_descriptor_leaks():
        yield


@pytest.fixture
def program() -> Iterator[KernelProgram]:
    with load_program(ProgramType.SCHED_CLS, answer(7), name="seven") as loaded:
        yield loaded


def test_run_answers_what_the_program_returns(program: KernelProgram) -> None:
    ran = program.test_run(bytes(64), repeat=1000)
    assert ran.retval == 7
    assert 0 <= ran.duration_ns < 1_000_000
    assert ran.interrupted == 0


def test_info(program: KernelProgram) -> None:
    info = program.info()
    assert (info.name, info.type) == ("seven", ProgramType.SCHED_CLS)
    assert info.id > 0
    assert info.recursion_misses == 0


def test_pinned_program(program: KernelProgram) -> None:
    with pin_folder() as folder:
        program.pin(folder / "seven")
        with open_pinned_program(folder / "seven") as opened:
            assert opened.info().id == program.info().id
            assert run_program(opened.fileno(), bytes(64)).retval == 7
        with pytest.raises(errors.UnsupportedError, match="not a map"):
            open_pin(folder / "seven")
        with create_map(MapType.HASH, 4, 4, 1, name="table") as table:
            table.pin(folder / "table")
        with pytest.raises(errors.UnsupportedError, match="not a program"):
            open_pinned_program(folder / "table")
        with pytest.raises(errors.KernelError, match=r"gone: open program: .*ENOENT"):
            open_pinned_program(folder / "gone")


def test_a_signal_starts_the_run_anew(program: KernelProgram) -> None:
    signals = 0

    def note(number: int, frame: object) -> None:
        nonlocal signals
        signals += 1

    repeat = 1_000_000
    while True:  # long enough to be met by a timer of 20 ms
        ran = program.test_run(bytes(64), repeat=repeat)
        if ran.duration_ns * repeat > 200_000_000 or repeat >= 1 << 28:
            break
        repeat *= 2
    before = signal.signal(signal.SIGALRM, note)
    tries = 0
    try:
        # On a loaded machine the timer can run out before the run has begun.
        while not ran.interrupted and tries < 20:
            tries += 1
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            ran = program.test_run(bytes(64), repeat=repeat)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert ran.interrupted == 1
    assert ran.retval == 7
    assert signals == tries


def test_refused_program_says_what_the_verifier_said() -> None:
    with pytest.raises(errors.KernelError, match=r"program broken: load") as caught:
        load_program(ProgramType.SCHED_CLS, EXIT, name="broken")  # r0 never set
    assert "R0 !read_ok" in caught.value.hint


def test_data_that_is_too_short(program: KernelProgram) -> None:
    with pytest.raises(errors.InvalidError, match="test run"):
        program.test_run(b"short")


def test_closed_program(program: KernelProgram) -> None:
    program.close()
    with pytest.raises(errors.MapClosedError):
        program.info()
