"""Single elements of a map by descriptor, and loops over them for maps without batch commands.

The loops answer like the batch commands: how many elements were done, and the errno that stopped
them (0: none), so that callers need not know which way was taken.
"""

from __future__ import annotations

import ctypes
import errno
from dataclasses import dataclass

import numpy as np

from bridge.kernel import syscall
from bridge.kernel.errors import Asked, ScanUnsteadyError, translate
from bridge.kernel.syscall import ENOTSUPP, Command
from bridge.model import U8, MapInfo

# A lookup that meets the update of a preallocated element can answer a false ENOENT.
ABSENT_TRIES = 3

# A walk may start again when its key vanished; each start again costs at most one pass.
WALK_PASSES_MAX = 16


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """``done`` elements were done; ``errno`` (0: none) stopped the batch at index ``done``."""

    done: int
    errno: int = 0


def address_of(rows: U8) -> int:
    """The address of an array's data."""
    return int(rows.__array_interface__["data"][0])


def update_rows(fd: int, keys: U8, values: U8, flags: int) -> BatchOutcome:
    """Update one element after the other."""
    key, value = address_of(keys), address_of(values)
    for i in range(len(keys)):
        code = syscall.element(
            Command.MAP_UPDATE_ELEM,
            fd,
            key + i * keys.shape[1],
            value + i * values.shape[1],
            flags,
        )
        if code:
            return BatchOutcome(i, code)
    return BatchOutcome(len(keys))


def delete_rows(fd: int, keys: U8) -> BatchOutcome:
    """Delete one element after the other."""
    key = address_of(keys)
    for i in range(len(keys)):
        code = syscall.element(Command.MAP_DELETE_ELEM, fd, key + i * keys.shape[1])
        if code:
            return BatchOutcome(i, code)
    return BatchOutcome(len(keys))


def lookup_and_delete(fd: int, key: int, value: int) -> int:
    """Take one element out; answers the errno.

    Kernels before 5.14 have the command for queues only: there it is a lookup and a delete, and a
    write between the two is lost.
    """
    code = syscall.element(Command.MAP_LOOKUP_AND_DELETE_ELEM, fd, key, value)
    if code not in (ENOTSUPP, errno.EINVAL, errno.EOPNOTSUPP):
        return code
    code = syscall.element(Command.MAP_LOOKUP_ELEM, fd, key, value)
    return code or syscall.element(Command.MAP_DELETE_ELEM, fd, key)


def take_rows(fd: int, info: MapInfo, count: int) -> tuple[int, U8, U8]:
    """Take up to ``count`` elements out. Answers (errno, keys, values)."""
    keys = np.empty((count, info.key_size), np.uint8)
    values = np.empty((count, info.value_size), np.uint8)
    key, value = address_of(keys), address_of(values)
    done = 0
    for _ in range(count * WALK_PASSES_MAX):
        if done == count:
            break
        at = key + done * info.key_size
        code = syscall.element(Command.MAP_GET_NEXT_KEY, fd, 0, at)
        code = code or lookup_and_delete(fd, at, value + done * info.value_size)
        if code == 0:
            done += 1
        elif code != errno.ENOENT:
            return code, keys[:done], values[:done]
        elif syscall.element(Command.MAP_GET_NEXT_KEY, fd, 0, at) == errno.ENOENT:
            break
    return 0, keys[:done], values[:done]


class KeyWalk:
    """All keys of a map, each once, by BPF_MAP_GET_NEXT_KEY.

    The kernel starts again at the first key when the one to go on from has vanished. So the walk
    remembers what it has seen and passes over it, in a bounded number of steps. An element that
    is *replaced* meanwhile can move behind the walk where the kernel keeps buckets as lists, and
    then is missed; the batch commands do not have this fault.
    """

    def __init__(self, info: MapInfo) -> None:
        self._info = info
        self._key = ctypes.create_string_buffer(max(info.key_size, 1))
        self._next = ctypes.create_string_buffer(max(info.key_size, 1))
        self._seen: set[bytes] = set()
        self._steps_left = WALK_PASSES_MAX * (info.max_entries + 1024)

    def step(self, fd: int) -> bytes | None:
        """The next key that was not seen before, or ``None`` at the end."""
        size = self._info.key_size
        while self._steps_left:
            self._steps_left -= 1
            key = ctypes.addressof(self._key) if self._seen else 0
            code = syscall.element(Command.MAP_GET_NEXT_KEY, fd, key, ctypes.addressof(self._next))
            if code == errno.ENOENT:
                return None
            if code:
                raise translate(code, Asked.ELEMENT, _subject(self._info), "next key")
            self._key, self._next = self._next, self._key
            found = self._key.raw[:size]
            if found not in self._seen:
                self._seen.add(found)
                return found
        raise ScanUnsteadyError(
            f"{_subject(self._info)}: scan: keys vanish faster than the walk goes on",
            hint="scan again when there is less traffic",
        )


def walk_rows(fd: int, info: MapInfo, walk: KeyWalk, count: int) -> tuple[bool, U8, U8]:
    """The next up to ``count`` elements of a walk. Answers (whether it has ended, keys, values).

    Keys without a value (empty slots, deleted meanwhile) are left out.
    """
    keys = np.empty((count, info.key_size), np.uint8)
    values = np.empty((count, info.value_size), np.uint8)
    key, value = address_of(keys), address_of(values)
    done = 0
    while done < count:
        found = walk.step(fd)
        if found is None:
            return True, keys[:done], values[:done]
        keys[done] = np.frombuffer(found, np.uint8)
        at, to = key + done * info.key_size, value + done * info.value_size
        code = errno.ENOENT
        for _ in range(ABSENT_TRIES):
            code = syscall.element(Command.MAP_LOOKUP_ELEM, fd, at, to)
            if code != errno.ENOENT:
                break
        if code == 0:
            done += 1
        elif code != errno.ENOENT:
            raise translate(code, Asked.ELEMENT, _subject(info), "lookup")
    return False, keys, values


def _subject(info: MapInfo) -> str:
    return f"map {info.name} (id {info.id})"
