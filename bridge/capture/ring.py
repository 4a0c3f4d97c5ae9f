"""Reading a kernel ring buffer through its memory, whole runs of records at a time.

The map's descriptor gives the consumer's page at offset 0 (read-write), and read-only behind it the
producer's page and the data, mapped twice in a row so that a record which wraps is contiguous too.
A record is eight bytes of head (length; bit 31: being written; bit 30: discarded) and the payload,
padded to eight. Heads are read *before* the payload is copied: a copy may read memory in any order,
and a head that was copied after its payload would vouch for bytes that were not written yet.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from dataclasses import dataclass

import numpy as np

from bridge.capture.record import pad8
from bridge.capture.shared import Barrier, run_length
from bridge.errors import BridgeError, PrivilegeError
from bridge.model import U8

BUSY = 1 << 31
DISCARD = 1 << 30
LENGTH = DISCARD - 1
HEAD_SIZE = 8
BYTES_MAX = 1 << 20  # of one drain: about the second-level cache, and some 15,000 small records


class RingError(BridgeError):
    """A ring buffer could not be opened."""


@dataclass(frozen=True, slots=True)
class RingStatistics:
    """Counts since the reader was opened; all of them only grow."""

    records: int = 0
    bytes: int = 0
    discarded: int = 0  # records that their program gave up
    corrupt: int = 0  # times that a head made no sense and all that was in the ring was skipped
    disturbed: int = 0  # times that somebody else had moved the consumer's position


class RingReader:
    """The one reader of a ring buffer.

    ``fd`` is duplicated; ``size`` is the ring's size in bytes (``max_entries`` of the map).
    Raises ``RingError`` when it cannot be mapped. Not thread-safe.
    """

    def __init__(self, fd: int, size: int) -> None:
        page = mmap.PAGESIZE
        if size < page or size & (size - 1):
            raise RingError(f"ring buffer: size is not a power of two of pages (got {size})")
        self._size = size
        self._fd = os.dup(fd)
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, self._fd)
            try:
                self._consumer_page = mmap.mmap(self._fd, page, mmap.MAP_SHARED, offset=0)
                undo.callback(self._consumer_page.close)
                self._pages = mmap.mmap(
                    self._fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page
                )
            except OSError as error:
                raise _translated(error, size) from error
            undo.pop_all()
        self._consumer = np.frombuffer(self._consumer_page, np.uint64, 1)
        self._producer = np.frombuffer(self._pages, np.uint64, 1)
        self._data = np.frombuffer(self._pages, np.uint8, 2 * size, offset=page)
        self._words = self._data.view(np.uint32)
        self._barrier = Barrier()
        self._position = int(self._consumer[0])
        self._records = self._bytes = self._discarded = self._corrupt = self._disturbed = 0

    def fileno(self) -> int:
        return self._fd

    @property
    def size(self) -> int:
        return self._size

    def waiting_bytes(self) -> int:
        """Bytes in the ring that were not consumed yet, heads included."""
        return int(self._producer[0]) - int(self._consumer[0])

    def drain(self, bytes_max: int = BYTES_MAX) -> list[U8]:
        """Runs of consecutive records of one length, oldest first: ``u8[n, length]`` each.

        Ends at a record that is being written, and when ``bytes_max`` are taken (at least one
        record is). The runs are copies; the ring's memory is given back at once.
        """
        producer = int(self._producer[0])
        self._barrier.order()
        position = self._begin(producer)
        runs: list[U8] = []
        end = min(producer, position + bytes_max)
        while position < end:
            offset = position & (self._size - 1)
            word = int(self._words[offset >> 2])
            if word & BUSY:
                break
            length = word & LENGTH
            stride = HEAD_SIZE + pad8(length)
            if stride > producer - position:
                self._corrupt += 1
                position = producer
                break
            count = self._run(offset, stride, word, max(1, (end - position) // stride))
            self._barrier.order()
            if word & DISCARD:
                self._discarded += count
            else:
                block = self._data[offset : offset + count * stride].copy()
                runs.append(block.reshape(count, stride)[:, HEAD_SIZE : HEAD_SIZE + length])
                self._records += count
                self._bytes += count * stride
            position += count * stride
            self._give_back(position)
        self._give_back(position)
        return runs

    def skip(self) -> int:
        """Throws away what was in the ring when this was called; answers how many records.

        Stops early at a record that is being written: those behind it stay.
        """
        end = int(self._producer[0])
        records = 0
        while self._position < end:
            before = self._position
            records += sum(len(run) for run in self.drain(min(BYTES_MAX, end - before)))
            if self._position == before:
                break
        return records

    def statistics(self) -> RingStatistics:
        return RingStatistics(
            self._records, self._bytes, self._discarded, self._corrupt, self._disturbed
        )

    def close(self) -> None:
        """Unmaps the ring. What is in it stays there for the next reader."""
        if self._fd < 0:
            return
        del self._consumer, self._producer, self._data, self._words
        for memory in (self._consumer_page, self._pages):
            with contextlib.suppress(BufferError):  # a view lives on: unmapped when that is gone
                memory.close()
        os.close(self._fd)
        self._fd = -1

    def _begin(self, producer: int) -> int:
        position = int(self._consumer[0])
        if position != self._position:
            self._disturbed += 1  # a second reader takes records that this one will never see
            self._position = position
        if position & 7 or not 0 <= producer - position <= self._size:
            self._corrupt += 1
            return producer
        return position

    def _give_back(self, position: int) -> None:
        if position != self._position:
            self._barrier.order()
            self._consumer[0] = position
            self._position = position

    def _run(self, offset: int, stride: int, word: int, count_max: int) -> int:
        """How many records from ``offset`` on have this head, ``count_max`` at most."""
        step = stride >> 2
        first = offset >> 2
        return run_length(self._words[first : first + count_max * step : step], word)


def _translated(error: OSError, size: int) -> BridgeError:
    if isinstance(error, PermissionError):
        return PrivilegeError(
            f"ring buffer: mapping refused (got {error.strerror})",
            hint="run as root or with CAP_BPF; maps frozen or opened read-only cannot be read",
        )
    return RingError(
        f"ring buffer: cannot be mapped with {size} bytes (got {error.strerror})",
        hint="the map must be of type ringbuf (Linux 5.8 or later)",
    )
