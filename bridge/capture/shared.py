"""What readers of memory that the kernel writes at the same time have in common."""

from __future__ import annotations

import platform
import threading

from bridge.model import U32

FIRST_WINDOW = 64
_LOADS_IN_ORDER = platform.machine() in {"x86_64", "i686", "i386", "AMD64"}


class Barrier:
    """Keeps accesses to the shared memory in order where the processor would not.

    Releasing and then taking a lock orders everything before with everything behind (a store
    release is never passed by a later load acquire). x86 keeps loads in order, and loads before
    later stores, by itself.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def order(self) -> None:
        if not _LOADS_IN_ORDER:
            self._lock.release()
            self._lock.acquire()


def run_length(heads: U32, word: int) -> int:
    """How many of ``heads``, which begin with ``word``, are equal to it before the first other.

    Looks at windows that grow, so that runs of one stay cheap.
    """
    start, window = 1, FIRST_WINDOW
    while start < len(heads):
        other = heads[start : start + window] != word
        stop = int(other.argmax())
        if other[stop]:
            return start + stop
        start += len(other)
        window *= 4
    return len(heads)
