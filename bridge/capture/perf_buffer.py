"""Reading one CPU's perf buffer through its memory, whole runs of records at a time.

The event's descriptor gives a page of positions (``struct perf_event_mmap_page``: ``data_head``,
where the kernel writes next, and ``data_tail``, up to which everything may be overwritten) and
behind it the data, once: a record may go on at the beginning. Whatever lies before the head is
complete. A record is eight bytes of head (type, flags, size of the whole), and a sample then has
four bytes of length and what the program sent; its end is padded, to a multiple of eight in all.
The records of ``bpf/record.h`` have a length that is a multiple of eight.

The head is read first and the data copied after it, the copy is finished before the tail is given
back: ``kernel/events/ring_buffer.c`` pairs its barriers with these.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
from dataclasses import dataclass

import numpy as np

from bridge.capture.shared import Barrier, run_length
from bridge.errors import BridgeError, PrivilegeError
from bridge.model import U8

HEAD_OFFSET = 1024  # data_head, with data_tail behind it
LOST, SAMPLE = 2, 9  # enum perf_event_type
HEAD_SIZE = 8
PAYLOAD_OFFSET = 12
RECORD_BYTES_MAX = 1 << 16  # the size is 16 bits wide
_UNIFORM_BYTES_MIN = 40  # from here on no record but a sample has the size of a sample
_LOST_COUNT = 16  # offset, behind the head and an id


class PerfBufferError(BridgeError):
    """A perf buffer could not be opened."""


@dataclass(frozen=True, slots=True)
class PerfStatistics:
    """Counts since the reader was opened; all of them only grow.

    ``lost`` is the kernel's word, which comes only with the next record that finds room: the
    program that sends counts what is refused, and that is the truth.
    """

    records: int = 0
    bytes: int = 0
    lost: int = 0
    corrupt: int = 0  # times that a head made no sense and all that was in the buffer was skipped

    def __add__(self, other: PerfStatistics) -> PerfStatistics:
        return PerfStatistics(
            self.records + other.records,
            self.bytes + other.bytes,
            self.lost + other.lost,
            self.corrupt + other.corrupt,
        )


class PerfReader:
    """The one reader of a perf buffer.

    ``fd`` is duplicated; ``size`` is that of the data in bytes, a power of two of pages. Raises
    ``PerfBufferError`` when it cannot be mapped. Not thread-safe.
    """

    def __init__(self, fd: int, size: int) -> None:
        page = mmap.PAGESIZE
        if size < page or size & (size - 1):
            raise PerfBufferError(
                f"perf buffer: size is not a power of two of pages (got {size} bytes)"
            )
        try:
            # Writable, or the kernel would overwrite what was not read yet.
            self._memory = mmap.mmap(fd, page + size, mmap.MAP_SHARED)
        except OSError as error:
            raise _translated(error, size) from error
        self._size = size
        self._positions = np.frombuffer(self._memory, np.uint64, 2, offset=HEAD_OFFSET)
        self._data = np.frombuffer(self._memory, np.uint8, size, offset=page)
        self._barrier = Barrier()
        self._position = int(self._positions[1])
        self._records = self._bytes = self._lost = self._corrupt = 0
        self.left_some = False  # whether the last drain left what was there when it began

    @property
    def size(self) -> int:
        return self._size

    def waiting_bytes(self) -> int:
        """Bytes in the buffer that were not consumed yet, heads included."""
        return int(self._positions[0]) - self._position

    def drain(self, bytes_max: int) -> list[U8]:
        """Runs of consecutive samples of one length, oldest first: ``u8[n, length]`` each.

        About ``bytes_max`` bytes at most, and at least one record. The runs are copies; the
        buffer's memory is given back at once.
        """
        head = int(self._positions[0])
        self._barrier.order()
        waiting = head - self._position
        if not 0 <= waiting <= self._size:
            self._corrupt += 1
            self._give_back(head)
            return []
        if not waiting:
            self.left_some = False
            return []
        block = self._copy(min(waiting, max(bytes_max, RECORD_BYTES_MAX)))
        runs, taken = self._cut(block, whole=len(block) == waiting)
        if taken is None:
            self._corrupt += 1
            taken = waiting
        self.left_some = taken < waiting
        self._give_back(self._position + taken)
        return runs

    def statistics(self) -> PerfStatistics:
        return PerfStatistics(self._records, self._bytes, self._lost, self._corrupt)

    def close(self) -> None:
        """Unmaps the buffer; a second call does nothing."""
        if self._memory.closed:
            return
        del self._positions, self._data
        with contextlib.suppress(BufferError):  # a view lives on: unmapped when that is gone
            self._memory.close()

    def _copy(self, count: int) -> U8:
        """The next ``count`` bytes in a row, placed so that what programs sent is aligned."""
        block = np.empty(count + 4, np.uint8)[4:]
        start = self._position & (self._size - 1)
        first = min(count, self._size - start)
        block[:first] = self._data[start : start + first]
        block[first:] = self._data[: count - first]
        return block

    def _cut(self, block: U8, *, whole: bool) -> tuple[list[U8], int | None]:
        """The runs of samples in a block and its bytes up to the last record that is complete.

        ``None`` instead when it makes no sense; ``whole``: all of its records are complete.
        """
        words = block[: len(block) & ~7].view(np.uint32)
        runs: list[U8] = []
        at = 0
        while at + HEAD_SIZE <= len(block):
            kind, word = int(words[at >> 2]), int(words[(at >> 2) + 1])
            size = word >> 16
            if size < HEAD_SIZE or size & 7 or (whole and at + size > len(block)):
                return runs, None
            if at + size > len(block):
                break
            count = 1
            if kind == SAMPLE and size > PAYLOAD_OFFSET:
                if size >= _UNIFORM_BYTES_MIN:
                    fitting = (len(block) - at) // size
                    heads = words[(at >> 2) + 1 :: size >> 2][:fitting]
                    count = run_length(heads, word)
                rows = block[at : at + count * size].reshape(count, size)
                runs.append(rows[:, PAYLOAD_OFFSET : size - 4])
                self._records += count
                self._bytes += count * size
            elif kind == LOST and size >= _LOST_COUNT + 8:
                start = at + _LOST_COUNT
                self._lost += int.from_bytes(block[start : start + 8].tobytes(), "little")
            at += count * size
        return runs, at

    def _give_back(self, position: int) -> None:
        self._barrier.order()
        self._positions[1] = position
        self._position = position


def _translated(error: OSError, size: int) -> BridgeError:
    message = f"perf buffer: cannot be mapped with {size} bytes (got {error.strerror})"
    if isinstance(error, PermissionError):  # what perf_event_mlock_kb allows is used up
        return PrivilegeError(message, hint="run as root or with CAP_IPC_LOCK, or lower perf_pages")
    many = error.errno in (errno.EMFILE, errno.ENFILE)
    hint = "raise the limit of open files" if many else "lower capture.perf_pages"
    return PerfBufferError(message, hint=hint)
