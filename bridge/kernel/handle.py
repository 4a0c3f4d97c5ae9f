"""An open kernel map: reading and writing its entries singly and in batches.

Keys and values are raw bytes: ``bytes`` for single entries, ``u8[n, size]`` arrays for batches.
All methods may be called from several threads; each call is one or a few system calls, during
which the interpreter lock is free.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from types import TracebackType

import numpy as np

from bridge.kernel import syscall
from bridge.kernel.elements import (
    BatchOutcome,
    address_of,
    delete_rows,
    lookup_and_delete,
    take_rows,
    update_rows,
)
from bridge.kernel.errors import (
    Asked,
    MapClosedError,
    SizeMismatchError,
    check,
    translate,
)
from bridge.kernel.maptypes import ARRAY_TYPES, UpdateFlag
from bridge.kernel.scan import NO_BATCH, BatchCursor, count_entries, entries_within, scan_map
from bridge.kernel.syscall import Command
from bridge.model import U8, MapInfo

SCAN_ENTRIES = 8192


class KernelMap:
    """An open map. Owns its descriptor: close it, or use it in a ``with``."""

    __slots__ = ("_key_type", "_value_type", "fd", "info")

    fd: int
    info: MapInfo

    def __init__(self, fd: int, info: MapInfo) -> None:
        self.fd = fd
        self.info = info
        self._key_type = ctypes.c_char * max(info.key_size, 1)
        self._value_type = ctypes.c_char * max(info.value_size, 1)

    def __enter__(self) -> KernelMap:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<KernelMap {self.info.name} id {self.info.id} fd {self.fd}>"

    def close(self) -> None:
        """Give the descriptor back; a second call does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def fileno(self) -> int:
        """The descriptor. Raises MapClosedError."""
        if self.fd < 0:
            raise MapClosedError(
                f"{self._subject}: used after close", hint="report this as a fault"
            )
        return self.fd

    # --- single entries ---------------------------------------------------------------------

    def lookup(self, key: bytes) -> bytes | None:
        """The value of a key, or ``None``."""
        value = self._value_type()
        key_copy = self._key(key)
        code = syscall.element(
            Command.MAP_LOOKUP_ELEM,
            self.fileno(),
            self._key_address(key_copy),
            ctypes.addressof(value),
        )
        if code == errno.ENOENT:
            return None
        check(code, Asked.ELEMENT, self._subject, "lookup")
        return bytes(value.raw)

    def update(self, key: bytes, value: bytes, flags: int = UpdateFlag.ANY) -> None:
        """Set a key. Raises MapFullError, KeyExistsError, KeyMissingError, MapBusyError, ..."""
        if len(value) != self.info.value_size:
            raise self._size_error("value", len(value), self.info.value_size)
        key_copy = self._key(key)
        value_copy = self._value_type.from_buffer_copy(value)
        code = syscall.element(
            Command.MAP_UPDATE_ELEM,
            self.fileno(),
            self._key_address(key_copy),
            ctypes.addressof(value_copy),
            int(flags),
        )
        check(code, Asked.ELEMENT, self._subject, "update")

    def delete(self, key: bytes) -> bool:
        """Remove a key. Answers whether it was there."""
        key_copy = self._key(key)
        code = syscall.element(Command.MAP_DELETE_ELEM, self.fileno(), self._key_address(key_copy))
        if code == errno.ENOENT:
            return False
        check(code, Asked.ELEMENT, self._subject, "delete")
        return True

    def lookup_and_delete(self, key: bytes) -> bytes | None:
        """Take a key out and answer its value, or ``None``. One step from Linux 5.14 on."""
        value = self._value_type()
        key_copy = self._key(key)
        code = lookup_and_delete(
            self.fileno(), self._key_address(key_copy), ctypes.addressof(value)
        )
        if code == errno.ENOENT:
            return None
        check(code, Asked.ELEMENT, self._subject, "lookup and delete")
        return bytes(value.raw)

    # --- batches ----------------------------------------------------------------------------

    def scan(self, entries_per_call: int = SCAN_ENTRIES) -> Iterator[tuple[U8, U8]]:
        """All entries as (``u8[n, key_size]``, ``u8[n, value_size]``), fresh arrays each time.

        A key that stays in the map during the scan comes exactly once; of others nothing is
        promised. Wide values mean fewer entries per call.
        """
        return scan_map(self.fileno, self.info, entries_per_call)

    def count(self) -> int:
        """How many entries there are now (an array: all its slots)."""
        if self.info.type in ARRAY_TYPES:
            return self.info.max_entries
        return count_entries(self.fileno, self.info, SCAN_ENTRIES)

    def update_batch(self, keys: U8, values: U8, flags: int = UpdateFlag.ANY) -> BatchOutcome:
        """Set ``n`` keys in order by one system call; stops at the first that fails.

        The kernel takes no NOEXIST or EXIST here: with them it is one call per key.
        """
        fd = self.fileno()
        self._check_rows(keys, "key", self.info.key_size)
        self._check_rows(values, "value", self.info.value_size)
        if len(keys) != len(values):
            raise SizeMismatchError(
                f"{self._subject}: update batch: as many keys as values needed "
                f"(got {len(keys)} and {len(values)})"
            )
        if flags & ~UpdateFlag.LOCK:
            return update_rows(fd, keys, values, int(flags))
        outcome = self._batch(Command.MAP_UPDATE_BATCH, keys, values, int(flags))
        return update_rows(fd, keys, values, int(flags)) if outcome is None else outcome

    def delete_batch(self, keys: U8) -> BatchOutcome:
        """Remove ``n`` keys in order by one system call; stops at the first that fails."""
        fd = self.fileno()
        self._check_rows(keys, "key", self.info.key_size)
        outcome = self._batch(Command.MAP_DELETE_BATCH, keys, None, 0)
        return delete_rows(fd, keys) if outcome is None else outcome

    def lookup_and_delete_batch(self, count: int) -> tuple[U8, U8]:
        """Take about ``count`` entries out, from the map's beginning; none when it is empty.

        A bucket leaves whole: a small ``count`` can bring a few more than asked for.
        """
        cursor = BatchCursor(self.info, entries_within(self.info, count))
        code, done = cursor.read(self.fileno(), Command.MAP_LOOKUP_AND_DELETE_BATCH)
        if code == 0:
            return cursor.keys[:done], cursor.values[:done]
        if code in NO_BATCH:
            code, keys, values = take_rows(
                self.fileno(), self.info, entries_within(self.info, count)
            )
            if len(keys) or code == 0:
                return keys, values
        raise translate(code, Asked.ELEMENT, self._subject, "lookup and delete batch")

    def _batch(
        self, command: Command, keys: U8, values: U8 | None, flags: int
    ) -> BatchOutcome | None:
        """One batch command; ``None`` where the kernel or the type does not have it."""
        n = len(keys)
        if n == 0:
            return BatchOutcome(0)
        code, done = syscall.batch(
            command,
            self.fileno(),
            n,
            keys=address_of(keys),
            values=0 if values is None else address_of(values),
            flags=flags,
        )
        # Refused before the first element, the kernel leaves the count as it was.
        done = 0 if code and done >= n else done
        if code in NO_BATCH and done == 0:
            return None
        return BatchOutcome(done, code)

    # --- the map itself -----------------------------------------------------------------------

    def pin(self, path: str | os.PathLike[str]) -> None:
        """Give the map a path below a bpffs. Raises PathTakenError, KernelPrivilegeError."""
        code = syscall.pin(self.fileno(), os.fsencode(path))
        check(code, Asked.PIN, self._subject, f"pin at {os.fspath(path)}")

    def freeze(self) -> None:
        """Forbid user space to write from now on."""
        check(syscall.freeze(self.fileno()), Asked.ELEMENT, self._subject, "freeze")

    # --- checks -------------------------------------------------------------------------------

    @property
    def _subject(self) -> str:
        return f"map {self.info.name} (id {self.info.id})"

    def _key(self, key: bytes) -> ctypes.Array[ctypes.c_char]:
        if len(key) != self.info.key_size:
            raise self._size_error("key", len(key), self.info.key_size)
        return self._key_type.from_buffer_copy(key or b"\0")

    def _key_address(self, key: ctypes.Array[ctypes.c_char]) -> int:
        # Queues and stacks have no keys, and the kernel insists on a null pointer.
        return ctypes.addressof(key) if self.info.key_size else 0

    def _size_error(self, what: str, got: int, wanted: int) -> SizeMismatchError:
        return SizeMismatchError(
            f"{self._subject}: {what}: the map has {wanted} bytes (got {got})",
            hint="see that both sides use the same version of the program",
        )

    def _check_rows(self, rows: U8, what: str, width: int) -> None:
        if rows.ndim != 2 or rows.shape[1] != width:
            raise SizeMismatchError(
                f"{self._subject}: {what}: the map has {width} bytes (got shape {rows.shape})",
                hint="see that both sides use the same version of the program",
            )
        if rows.dtype != np.uint8 or not rows.flags.c_contiguous:
            layout = "contiguous" if rows.flags.c_contiguous else "strided"
            raise SizeMismatchError(
                f"{self._subject}: {what}: contiguous u8 rows of {width} bytes needed "
                f"(got {layout} {rows.dtype})",
                hint="pass the array through numpy.ascontiguousarray",
            )
