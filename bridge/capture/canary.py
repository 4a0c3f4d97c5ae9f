"""The canaries: a private map of each type, written in every way to see what the probes report.

That probes are attached says little about what they see: kernels inline, rename and skip. So
coverage is what was seen here, on the running kernel, and nothing else.
"""

from __future__ import annotations

import enum
import errno
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from bridge.capture.probes import CanaryMap, ProbeCapture
from bridge.capture.source import Mode
from bridge.kernel.errors import KernelError, KeyExistsError, UnsupportedError
from bridge.kernel.maps import BatchOutcome, KernelMap, MapType, UpdateFlag, type_name
from bridge.kernel.maptypes import ARRAY_TYPES, LRU_TYPES
from bridge.kernel.programs import FRAME_BYTES_MIN, test_run
from bridge.model import U8, DeltaBatch, Op

WAIT_SECONDS = 0.25  # for a report that is due; it is there before the write returns
_PAUSE_SECONDS = 0.005
BATCH_ENTRIES = 7
EVICTION = "eviction"
LRU_ENTRIES = 512  # CANARY_LRU_ENTRIES
# Twins of the keys and values in bpf/capture_canary.h.
_PROGRAM_KEY = (0x70726F67).to_bytes(4, "little")
_PROGRAM_INDEX = (7).to_bytes(4, "little")
PROGRAM_VALUE = (0x6D6170627269).to_bytes(8, "little")
_PREFIX_BITS = (32).to_bytes(4, "little")

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
    map_type: str = "hash"


@dataclass(frozen=True, slots=True)
class Coverage:
    """What the probes of a mode were seen to report."""

    mode: Mode
    findings: tuple[Finding, ...]

    def gaps(self) -> tuple[Finding, ...]:
        """Findings that speak against the mode, for the types of map that were looked at.

        Mode ``syscall`` promises nothing about BPF programs. Kprobes are blind to what the kernel
        evicts while it serves bpf(2).
        """
        return tuple(f for f in self.findings if f.seen is Seen.WRONG or self._is_gap(f))

    def _is_gap(self, finding: Finding) -> bool:
        if finding.seen is not Seen.NO:
            return False
        if finding.operation == EVICTION and finding.writer is not Writer.PROGRAM:
            return self.mode is Mode.FENTRY
        return self.mode is not Mode.SYSCALL or finding.writer is not Writer.PROGRAM

    @property
    def proven(self) -> bool:
        return not self.gaps()

    def joined(self, other: Coverage) -> Coverage:
        """With what was found for another type of map."""
        return replace(self, findings=(*self.findings, *other.findings))

    def as_dict(self) -> dict[str, dict[str, dict[str, str]]]:
        """For JSON: by type of map, writer and operation, what was seen."""
        answer: dict[str, dict[str, dict[str, str]]] = {}
        for f in self.findings:
            said = f"{f.seen}: {f.detail}" if f.detail else str(f.seen)
            answer.setdefault(f.map_type, {}).setdefault(str(f.writer), {})[f.operation] = said
        return answer

    def table(self) -> str:
        """For a person."""
        lines = [f"{'type':<16} {'writer':<18} {'operation':<18} seen"]
        lines += [
            f"{f.map_type:<16} {f.writer:<18} {f.operation:<18} {f.seen} {f.detail}"
            for f in self.findings
        ]
        return "\n".join(line.rstrip() for line in lines)


def prove(capture: ProbeCapture, map_type: MapType = MapType.HASH) -> Coverage:
    """Write the canary of a type in every way. Takes milliseconds where all is seen.

    The calling thread must not be one of ``own_thread``. Attaches what the type needs. Raises
    ``ProbeError`` where that cannot be, ``KernelError`` when the map cannot be written at all.
    """
    capture.cover(map_type)
    with capture.canary(map_type) as parts:
        canary = _Canary(parts, map_type)
        canary.clear()
        findings = [*_singles(canary), *_batches(canary), *_programs(canary)]
        if map_type in LRU_TYPES:
            findings.append(_evictions(canary))
        canary.clear()
    name = type_name(map_type)
    return Coverage(capture.mode, tuple(replace(f, map_type=name) for f in findings))


class _Canary:
    """The map, and what is reported of it."""

    def __init__(self, parts: CanaryMap, map_type: MapType) -> None:
        self.map: KernelMap = parts.map
        self.source = parts.source
        self.programs = parts.update, parts.delete
        self.is_array = map_type in ARRAY_TYPES
        self._is_trie = map_type is MapType.LPM_TRIE

    def key(self, number: int) -> bytes:
        """A key of the map; arrays have no other than their indexes."""
        text = number.to_bytes(4, "little")
        return _PREFIX_BITS + text if self._is_trie else text

    @property
    def program_key(self) -> bytes:
        if self._is_trie:
            return _PREFIX_BITS + _PROGRAM_KEY
        return _PROGRAM_INDEX if self.is_array else _PROGRAM_KEY

    def value(self, number: int) -> bytes:
        """A value; of a per-CPU map the same for each CPU."""
        return number.to_bytes(8, "little") * (self.map.info.cpus or 1)

    @property
    def nothing(self) -> bytes:
        return bytes(self.map.info.value_size)

    def clear(self) -> None:
        """Empty it: the programs that write one canary write all of them."""
        if not self.is_array:
            for keys, _ in self.map.scan():
                for key in keys:
                    self.map.delete(key.tobytes())
        self.drain()

    def drain(self) -> list[DeltaBatch]:
        """All that was reported."""
        found: list[DeltaBatch] = []
        while batches := self.source.drain():
            found += batches
        return found

    def look(
        self,
        writer: Writer,
        operation: str,
        write: Callable[[], object],
        expects: list[Change] | Callable[[], list[Change]],
    ) -> Finding:
        """Do a write and compare what is reported with what should be, in any order."""
        try:
            write()
        except UnsupportedError as error:
            return Finding(writer, operation, Seen.UNSUPPORTED, str(error))
        expected = expects if isinstance(expects, list) else expects()
        found = self.reported(len(expected))
        if sorted(found) == sorted(expected):
            return Finding(writer, operation, Seen.YES if expected else Seen.QUIET)
        if not found:
            return Finding(writer, operation, Seen.NO)
        detail = f"{len(found)} reported, {len(expected)} done"
        return Finding(writer, operation, Seen.WRONG, detail)

    def reported(self, count: int) -> list[Change]:
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
    writer, table, key = Writer.SYSCALL, canary.map, canary.key(1)
    first, second = canary.value(101), canary.value(102)

    def refused_update() -> None:
        with suppress(KeyExistsError):
            table.update(key, second, UpdateFlag.NOEXIST)

    findings = [
        canary.look(writer, "update", lambda: table.update(key, first), [(Op.UPDATE, key, first)]),
        canary.look(
            writer, "overwrite", lambda: table.update(key, second), [(Op.UPDATE, key, second)]
        ),
        canary.look(writer, "refused update", refused_update, []),
    ]
    if canary.is_array:
        return findings
    return [
        *findings,
        canary.look(
            writer, "delete", lambda: table.delete(key), [(Op.DELETE, key, canary.nothing)]
        ),
        canary.look(writer, "delete of no key", lambda: table.delete(key), []),
        _take_one(canary, key),
    ]


def _take_one(canary: _Canary, key: bytes) -> Finding:
    canary.map.update(key, canary.value(101))
    canary.drain()
    return canary.look(
        Writer.SYSCALL,
        "lookup and delete",
        lambda: canary.map.lookup_and_delete(key),
        [(Op.DELETE, key, canary.nothing)],
    )


def _batches(canary: _Canary) -> list[Finding]:
    writer, table, nothing = Writer.BATCH, canary.map, canary.nothing
    rows = [(canary.key(n), canary.value(100 + n)) for n in range(11, 11 + BATCH_ENTRIES)]
    keys, values = _column([key for key, _ in rows]), _column([value for _, value in rows])
    half = BATCH_ENTRIES // 2
    update = canary.look(
        writer,
        "update",
        lambda: _whole(table.update_batch(keys, values), BATCH_ENTRIES),
        [(Op.UPDATE, key, value) for key, value in rows],
    )
    if canary.is_array:
        return [update]
    findings = [
        update,
        canary.look(
            writer,
            "delete",
            lambda: _whole(table.delete_batch(keys[:half].copy()), half),
            [(Op.DELETE, key, nothing) for key, _ in rows[:half]],
        ),
        canary.look(
            writer,
            "lookup and delete",
            lambda: _take_all(table),
            [(Op.DELETE, key, nothing) for key, _ in rows[half:]],
        ),
    ]
    table.delete_batch(keys)
    canary.drain()
    return findings


def _column(rows: list[bytes]) -> U8:
    return np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), -1)


def _whole(outcome: BatchOutcome, wanted: int) -> None:
    if outcome.done != wanted:
        code = errno.errorcode.get(outcome.errno, str(outcome.errno))
        raise KernelError(f"canary: batch stopped after {outcome.done} of {wanted} (got {code})")


def _take_all(table: KernelMap) -> None:
    for _ in range(BATCH_ENTRIES):
        keys, _ = table.lookup_and_delete_batch(4 * BATCH_ENTRIES)
        if not len(keys):
            return


def _programs(canary: _Canary) -> list[Finding]:
    update, delete = canary.programs
    packet, key = bytes(FRAME_BYTES_MIN), canary.program_key

    def updated() -> list[Change]:
        # Of a per-CPU map the program has set one CPU's value, whichever it ran on.
        held = canary.map.lookup(key) if canary.map.info.cpus else PROGRAM_VALUE
        return [(Op.UPDATE, key, held or b"")]

    findings = [canary.look(Writer.PROGRAM, "update", lambda: test_run(update, packet), updated)]
    if canary.is_array:
        return findings
    return [
        *findings,
        canary.look(
            Writer.PROGRAM,
            "delete",
            lambda: test_run(delete, packet),
            [(Op.DELETE, key, canary.nothing)],
        ),
        canary.look(Writer.PROGRAM, "delete of no key", lambda: test_run(delete, packet), []),
    ]


def _evictions(canary: _Canary) -> Finding:
    """More keys than there is room for: what went missing must have been reported as evicted."""
    writer, table = Writer.SYSCALL, canary.map
    canary.clear()
    keys = [canary.key(number) for number in range(1000, 1000 + 4 * LRU_ENTRIES)]
    evicted: list[bytes] = []
    for start in range(0, len(keys), LRU_ENTRIES):  # its ring has no room for all
        some = keys[start : start + LRU_ENTRIES]
        _whole(table.update_batch(_column(some), _column([canary.value(1)] * len(some))), len(some))
        evicted += [key for op, key, _ in canary.reported(0) if op is Op.EVICT]
    held = {key.tobytes() for chunk, _ in table.scan() for key in chunk}
    gone = [key for key in keys if key not in held]
    if sorted(evicted) == sorted(gone):
        return Finding(writer, EVICTION, Seen.YES)
    if not evicted:
        return Finding(writer, EVICTION, Seen.NO)
    return Finding(
        writer, EVICTION, Seen.WRONG, f"{len(evicted)} reported, {len(gone)} of {len(keys)} gone"
    )
