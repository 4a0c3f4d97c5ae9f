"""Reading a whole map by BPF_MAP_LOOKUP_BATCH, element by element where that is missing.

A hash map is read bucket by bucket, each under its lock: a key that is in the map for the whole
scan is seen exactly once, and nothing is promised of keys that come or go meanwhile.
"""

from __future__ import annotations

import ctypes
import errno
import time
from collections.abc import Callable, Iterator

import numpy as np

from bridge.errors import Exit
from bridge.kernel import syscall
from bridge.kernel.elements import KeyWalk, address_of, walk_rows
from bridge.kernel.errors import BUSY, Asked, KernelError, ScanUnsteadyError, translate
from bridge.kernel.maptypes import SINGLE_PASS_TYPES
from bridge.kernel.syscall import ENOTSUPP, Command
from bridge.model import U8, MapInfo

BUFFER_BYTES_MAX = 16 << 20  # wide values mean fewer entries per call
BUSY_TRIES_MAX = 1_000  # in a row at one place of the map
SCAN_TRIES_MAX = 5
SCAN_PAUSE_SECONDS = 0.2
PASSES_MAX = 16  # a scan that starts again and again gives up

Entries = tuple[U8, U8]

NO_BATCH = (ENOTSUPP, errno.EINVAL, errno.EOPNOTSUPP)


def entries_within(info: MapInfo, wanted: int) -> int:
    """How many entries one call is to ask for."""
    widest = max(1, BUFFER_BYTES_MAX // max(info.key_size + info.value_size, 1))
    return max(1, min(wanted, widest, max(info.max_entries, 1)))


class BatchCursor:
    """Position and buffers of a batch lookup. ``read`` answers views of ``keys`` and ``values``.

    The kernel keeps its position in a token: four bytes for hash maps, a key for the others.
    """

    def __init__(self, info: MapInfo, entries: int) -> None:
        self._info = info
        self._token_bytes = max(info.key_size, 4)
        self._token_in = ctypes.create_string_buffer(self._token_bytes)
        self._token_out = ctypes.create_string_buffer(self._token_bytes)
        self._started = False
        self._tries_left = BUSY_TRIES_MAX
        self.ended = False
        self._resize(entries)

    def _resize(self, entries: int) -> None:
        self.keys: U8 = np.empty((entries, self._info.key_size), np.uint8)
        self.values: U8 = np.empty((entries, self._info.value_size), np.uint8)

    def read(self, fd: int, command: Command = Command.MAP_LOOKUP_BATCH) -> tuple[int, int]:
        """One step of the scan. Answers (errno, entries read into the buffers).

        ENOENT is the end and not an error. ENOSPC means that one bucket holds more than the
        buffers: they are doubled, at most up to what the map can hold.
        """
        while True:
            code, done = syscall.batch(
                command,
                fd,
                len(self.keys),
                keys=address_of(self.keys),
                values=address_of(self.values),
                token_in=ctypes.addressof(self._token_in) if self._started else 0,
                token_out=ctypes.addressof(self._token_out),
            )
            if code == errno.ENOSPC and len(self.keys) < 2 * self._info.max_entries:
                self._resize(2 * len(self.keys))
                continue
            if code not in BUSY:
                break
            # What was read before the busy bucket counts, and the token stands at that bucket.
            if done:
                code = 0
                break
            self._tries_left -= 1
            if not self._tries_left:
                return code, 0
        if code == errno.ENOENT:
            self.ended = True
            return 0, done
        if code == 0:
            self._started = True
            self._tries_left = BUSY_TRIES_MAX
            self._token_in, self._token_out = self._token_out, self._token_in
        return code, done if code == 0 else 0


class SeenKeys:
    """Drops keys that a scan has met before, for maps whose scan may start again."""

    def __init__(self, info: MapInfo) -> None:
        self._info = info
        self._seen: set[bytes] = set()
        self._rows_left = PASSES_MAX * (info.max_entries + 1024)

    def fresh(self, keys: U8) -> list[int]:
        """The rows whose key is new."""
        self._rows_left -= len(keys)
        if self._rows_left < 0:
            raise ScanUnsteadyError(
                f"map {self._info.name} (id {self._info.id}): scan: keys vanish faster than the "
                "scan goes on",
                hint="scan again when there is less traffic",
            )
        rows = []
        for row, key in enumerate(keys):
            text = key.tobytes()
            if text not in self._seen:
                self._seen.add(text)
                rows.append(row)
        return rows


def scan_map(descriptor: Callable[[], int], info: MapInfo, wanted: int) -> Iterator[Entries]:
    """All entries in batches of about ``wanted``; the arrays belong to the caller."""
    cursor = BatchCursor(info, entries_within(info, wanted))
    seen = None if info.type in SINGLE_PASS_TYPES else SeenKeys(info)
    first = True
    while not cursor.ended:
        code, done = cursor.read(descriptor())
        if code in NO_BATCH and first:
            yield from _walk(descriptor, info, len(cursor.keys))
            return
        if code:
            raise translate(code, Asked.ELEMENT, f"map {info.name} (id {info.id})", "scan")
        first = False
        keys, values = cursor.keys[:done], cursor.values[:done]
        if seen is not None:
            rows = seen.fresh(keys)
            keys, values = keys[rows], values[rows]
        else:
            keys, values = keys.copy(), values.copy()
        if len(keys):
            yield keys, values


def scan_whole(scan: Callable[[], Iterator[Entries]]) -> list[Entries]:
    """All of a scan; one that breaks off for a reason that passes is begun again, a few times."""
    for left in reversed(range(SCAN_TRIES_MAX)):
        try:
            return list(scan())
        except KernelError as error:
            if error.exit_code is not Exit.TEMPORARY or not left:
                raise
            time.sleep(SCAN_PAUSE_SECONDS)
    raise AssertionError("unreachable")


def count_entries(descriptor: Callable[[], int], info: MapInfo, wanted: int) -> int:
    """How many entries there are, without handing them out."""
    if info.type not in SINGLE_PASS_TYPES:
        return sum(len(keys) for keys, _ in scan_map(descriptor, info, wanted))
    cursor = BatchCursor(info, entries_within(info, wanted))
    total = 0
    first = True
    while not cursor.ended:
        code, done = cursor.read(descriptor())
        if code in NO_BATCH and first:
            return sum(len(keys) for keys, _ in _walk(descriptor, info, len(cursor.keys)))
        if code:
            raise translate(code, Asked.ELEMENT, f"map {info.name} (id {info.id})", "count")
        first = False
        total += done
    return total


def _walk(descriptor: Callable[[], int], info: MapInfo, count: int) -> Iterator[Entries]:
    walk = KeyWalk(info)
    ended = False
    while not ended:
        ended, keys, values = walk_rows(descriptor(), info, walk, count)
        if len(keys):
            yield keys, values
