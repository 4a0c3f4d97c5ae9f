"""What glibc's allocator keeps between messages, and when it gives it back.

Other C libraries have no such calls and are left alone.
"""

from __future__ import annotations

import asyncio
import ctypes

# mallopt(3), <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_KEPT_BYTES = 64 << 20
_MAPPED_BYTES = 32 << 20
GIVE_BACK_SECONDS = 10.0


def tune_allocator() -> None:
    """Keep what messages of a megabyte free, instead of mapping each one anew.

    With the defaults every such buffer is mapped, faulted in page by page and unmapped again, which
    was seen to cost several times what encoding and decoding a message do. All threads share one
    arena: each of their own would keep what its thread needed once (10 MB were seen), and as most
    memory is asked for under the interpreter's lock, they hardly ever wait for each other.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_ARENA_MAX, 1)


async def give_back_memory() -> None:
    """Return free pages to the system every ``GIVE_BACK_SECONDS``, until cancelled.

    Of itself glibc returns only what is free at the end of a heap, so that the peaks of backlogs
    and of large scans stay with the process (100 MB and more). A call takes milliseconds
    (malloc_trim(3)), and what is needed again costs a page fault per 4 KiB.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    while trim is not None:
        await asyncio.sleep(GIVE_BACK_SECONDS)
        await asyncio.to_thread(trim, 0)
