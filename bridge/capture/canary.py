"""The canary: writes a private map in every way and looks at what the probes report.

That probes are attached says little about what they see: kernels inline, rename and skip. So
coverage is what was seen here, on the running kernel, and nothing else.
"""

from __future__ import annotations

import enum
import errno
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from bridge.capture.probes import ProbeCapture
from bridge.capture.source import Mode
from bridge.kernel.errors import KernelError, KeyExistsError, UnsupportedError
from bridge.kernel.maps import BatchOutcome, KernelMap, UpdateFlag
from bridge.kernel.programs import FRAME_BYTES_MIN, test_run
from bridge.model import U8, DeltaBatch, Op

WAIT_SECONDS = 0.25  # for a report that is due; it is there before the write returns
_PAUSE_SECONDS = 0.005
BATCH_ENTRIES = 7
# Twins of the keys and values in bpf/capture.bpf.c.
PROGRAM_KEY = (0x70726F67).to_bytes(4, "little")
PROGRAM_VALUE = (0x6D6170627269).to_bytes(8, "little")
_KEY = b"bird"
_VALUES = (b"canary 1", b"canary 2")

Change = tuple[Op, bytes, bytes]


class Writer(enum.StrEnum):
    """Who writes."""

    SYSCALL = "system call"
    BATCH = "batch system call"
    PROGRAM = "bpf program"


class Seen(enum.StrEnum):
    """What came of a write."""

    YES = "yes"
    NO = "no"
    QUIET = "quiet"  # refused by the kernel, and rightly not reported
    WRONG = "wrong"  # something else was reported than was done
    UNSUPPORTED = "unsupported"  # the kernel has no such operation


@dataclass(frozen=True, slots=True)
class Finding:
    """One way of writing."""

    writer: Writer
    operation: str
    seen: Seen
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Coverage:
    """What the probes of a mode were seen to report."""

    mode: Mode
    findings: tuple[Finding, ...]

    def gaps(self) -> tuple[Finding, ...]:
        """Findings that speak against the mode.

        Mode ``syscall`` promises nothing about BPF programs.
        """
        return tuple(
            f
            for f in self.findings
            if f.seen is Seen.WRONG
            or (
                f.seen is Seen.NO
                and (self.mode is not Mode.SYSCALL or f.writer is not Writer.PROGRAM)
            )
        )

    @property
    def proven(self) -> bool:
        return not self.gaps()

    def as_dict(self) -> dict[str, dict[str, str]]:
        """For JSON: by writer and operation, what was seen."""
        answer: dict[str, dict[str, str]] = {}
        for f in self.findings:
            said = f"{f.seen}: {f.detail}" if f.detail else str(f.seen)
            answer.setdefault(str(f.writer), {})[f.operation] = said
        return answer

    def table(self) -> str:
        """For a person."""
        lines = [f"{'writer':<18} {'operation':<24} seen"]
        lines += [f"{f.writer:<18} {f.operation:<24} {f.seen} {f.detail}" for f in self.findings]
        return "\n".join(line.rstrip() for line in lines)


def prove(capture: ProbeCapture) -> Coverage:
    """Write the canary in every way. Takes milliseconds where all is seen.

    The calling thread must not be one of ``own_thread``. Raises ``KernelError`` when the map
    cannot be written at all.
    """
    with capture.canary_lock:
        canary = _Canary(capture)
        canary.drain()
        findings = (*_singles(canary), *_batches(canary), *_programs(canary, capture))
    return Coverage(capture.mode, findings)


class _Canary:
    """The map, and what is reported of it."""

    def __init__(self, capture: ProbeCapture) -> None:
        self.map: KernelMap = capture.canary
        self._source = capture.canary_source

    def drain(self) -> list[DeltaBatch]:
        """All that was reported."""
        found: list[DeltaBatch] = []
        while batches := self._source.drain():
            found += batches
        return found

    def look(
        self, writer: Writer, operation: str, write: Callable[[], object], expected: list[Change]
    ) -> Finding:
        """Do a write and compare what is reported with what should be, in any order."""
        try:
            write()
        except UnsupportedError as error:
            return Finding(writer, operation, Seen.UNSUPPORTED, str(error))
        found = self._reported(len(expected))
        if sorted(found) == sorted(expected):
            return Finding(writer, operation, Seen.YES if expected else Seen.QUIET)
        if not found:
            return Finding(writer, operation, Seen.NO)
        detail = f"{len(found)} reported, {len(expected)} done"
        return Finding(writer, operation, Seen.WRONG, detail)

    def _reported(self, count: int) -> list[Change]:
        found: list[Change] = []
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            for batch in self.drain():
                found += [
                    (Op(op), key.tobytes(), value.tobytes())
                    for op, key, value in zip(batch.ops, batch.keys, batch.values, strict=True)
                ]
            if len(found) >= count or time.monotonic() > deadline:
                return found
            time.sleep(_PAUSE_SECONDS)


def _singles(canary: _Canary) -> list[Finding]:
    writer, table = Writer.SYSCALL, canary.map
    first, second = _VALUES
    gone = bytes(8)

    def refused_update() -> None:
        with suppress(KeyExistsError):
            table.update(_KEY, second, UpdateFlag.NOEXIST)

    return [
        canary.look(
            writer, "update", lambda: table.update(_KEY, first), [(Op.UPDATE, _KEY, first)]
        ),
        canary.look(
            writer, "overwrite", lambda: table.update(_KEY, second), [(Op.UPDATE, _KEY, second)]
        ),
        canary.look(writer, "refused update", refused_update, []),
        canary.look(writer, "delete", lambda: table.delete(_KEY), [(Op.DELETE, _KEY, gone)]),
        canary.look(writer, "delete of no key", lambda: table.delete(_KEY), []),
        _take_one(canary),
    ]


def _take_one(canary: _Canary) -> Finding:
    canary.map.update(_KEY, _VALUES[0])
    canary.drain()
    return canary.look(
        Writer.SYSCALL,
        "lookup and delete",
        lambda: canary.map.lookup_and_delete(_KEY),
        [(Op.DELETE, _KEY, bytes(8))],
    )


def _batches(canary: _Canary) -> list[Finding]:
    writer, table = Writer.BATCH, canary.map
    keys: U8 = np.arange(BATCH_ENTRIES * 4, dtype=np.uint8).reshape(-1, 4)
    values: U8 = np.arange(100, 100 + BATCH_ENTRIES * 8, dtype=np.uint8).reshape(-1, 8)
    rows = [(keys[i].tobytes(), values[i].tobytes()) for i in range(BATCH_ENTRIES)]
    half = BATCH_ENTRIES // 2
    findings = [
        canary.look(
            writer,
            "update",
            lambda: _whole(table.update_batch(keys, values), BATCH_ENTRIES),
            [(Op.UPDATE, key, value) for key, value in rows],
        ),
        canary.look(
            writer,
            "delete",
            lambda: _whole(table.delete_batch(keys[:half].copy()), half),
            [(Op.DELETE, key, bytes(8)) for key, _ in rows[:half]],
        ),
        canary.look(
            writer,
            "lookup and delete",
            lambda: _take_all(table),
            [(Op.DELETE, key, bytes(8)) for key, _ in rows[half:]],
        ),
    ]
    table.delete_batch(keys)
    canary.drain()
    return findings


def _whole(outcome: BatchOutcome, wanted: int) -> None:
    if outcome.done != wanted:
        code = errno.errorcode.get(outcome.errno, str(outcome.errno))
        raise KernelError(f"canary: batch stopped after {outcome.done} of {wanted} (got {code})")


def _take_all(table: KernelMap) -> None:
    for _ in range(BATCH_ENTRIES):
        keys, _ = table.lookup_and_delete_batch(4 * BATCH_ENTRIES)
        if not len(keys):
            return


def _programs(canary: _Canary, capture: ProbeCapture) -> list[Finding]:
    update = capture.canary_program("update_canary")
    delete = capture.canary_program("delete_canary")
    packet = bytes(FRAME_BYTES_MIN)
    key = PROGRAM_KEY
    return [
        canary.look(
            Writer.PROGRAM,
            "update",
            lambda: test_run(update, packet),
            [(Op.UPDATE, key, PROGRAM_VALUE)],
        ),
        canary.look(
            Writer.PROGRAM, "delete", lambda: test_run(delete, packet), [(Op.DELETE, key, bytes(8))]
        ),
        canary.look(Writer.PROGRAM, "delete of no key", lambda: test_run(delete, packet), []),
    ]
