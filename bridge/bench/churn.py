"""``bpf/examples/churn.bpf.c`` from the outside: a program that changes a map when it is run."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bridge.errors import BridgeError
from bridge.kernel.objects import LoadedObject, compile_object, load_object
from bridge.resources import bpf_directory, bpf_source

MAP, RING, LOSSES = "churn", "churn_ring", "churn_lost"
OPERATIONS_MAX = 32  # CHURN_OPERATIONS_MAX: of one run
REPEAT_MAX = 100_000  # runs of one system call
FRAME_BYTES = 64  # a packet's least; its first four bytes name the writer
_WRITER = struct.Struct("=QQIIIIQQQQ")  # struct churn_writer


class ChurnError(BridgeError):
    """The program was not run as often as asked, so that its counts mean nothing."""


@dataclass(frozen=True, slots=True)
class Writer:
    """``struct churn_writer``: settings, and counts of what was done."""

    first_key: int
    keys: int
    operations: int
    deletes: int = 0  # of 1024 operations
    flags: int = 0
    done: int = 0
    updates: int = 0
    deletions: int = 0
    vain: int = 0
    refused: int = 0

    def pack(self) -> bytes:
        return _WRITER.pack(
            self.done,
            self.first_key,
            self.keys,
            self.operations,
            self.deletes,
            self.flags,
            self.updates,
            self.deletions,
            self.vain,
            self.refused,
        )

    @staticmethod
    def unpack(data: bytes) -> Writer:
        done, first, keys, operations, deletes, flags, *counts = _WRITER.unpack(data)
        return Writer(first, keys, operations, deletes, flags, done, *counts)

    @property
    def changes(self) -> int:
        return self.updates + self.deletions


def frame_of(number: int) -> bytes:
    """The packet that names a writer."""
    return struct.pack("=I", number).ljust(FRAME_BYTES, b"\0")


class Churn:
    """The loaded program; ``with`` unloads it."""

    def __init__(self, loaded: LoadedObject) -> None:
        self.loaded = loaded

    def set_writer(self, number: int, writer: Writer) -> None:
        self.loaded.map("churn_writers").update(struct.pack("=I", number), writer.pack())

    def writer(self, number: int) -> Writer:
        value = self.loaded.map("churn_writers").lookup(struct.pack("=I", number))
        assert value is not None
        return Writer.unpack(value)

    def run(self, number: int, runs: int) -> None:
        """``runs`` runs of the writer; the interpreter lock is free meanwhile."""
        program = self.loaded.program("churn_run")
        frame = frame_of(number)
        while runs > 0:
            step = min(runs, REPEAT_MAX)
            answer = program.test_run(frame, repeat=step)
            if answer.retval or answer.interrupted:
                raise ChurnError("churn: run refused or interrupted (got a signal, or no writer)")
            runs -= step


@contextlib.contextmanager
def loaded_churn(cache: Path, pins: Path, defines: Sequence[str] = ()) -> Iterator[Churn]:
    """Compile and load; pins of programs and maps go below ``pins``, which must not exist yet."""
    compiled = compile_object(
        bpf_source("examples/churn.bpf.c"),
        include=[bpf_directory()],
        defines=defines,
        cache=cache,
    )
    with load_object(compiled, pins) as loaded:
        yield Churn(loaded)
