"""The changes of a benchmark: ``bpf/examples/churn.bpf.c``, run as fast as asked.

A kernel program cannot be slowed down by a full ring, so the generator looks at the ring before it
starts the next run, and waits while it is more than half full: what is measured is then the rate
that the whole way sustains, not the rate at which changes are lost.
"""

from __future__ import annotations

import mmap
import struct
import time
from dataclasses import dataclass

from bridge.bench.churn import OPERATIONS_MAX, RING, Churn, Writer
from bridge.kernel.maps import KernelMap

KEYS = 65_536
DELETES_PER_1024 = 102
RUNS_PER_CALL = 64
PAUSE_SECONDS = 0.0005
_POSITION = struct.Struct("=Q")


@dataclass(frozen=True, slots=True)
class Generated:
    """What the program did, as it counted itself."""

    changes: int
    seconds: float


class RingFill:
    """How full a ring is, read from its two position pages."""

    def __init__(self, ring: KernelMap) -> None:
        page, size = mmap.PAGESIZE, ring.info.max_entries
        fd = ring.fileno()
        self._size = size
        self._consumer = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ)
        self._producer = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)

    def share(self) -> float:
        """0 (empty) to 1."""
        consumed: int = _POSITION.unpack_from(self._consumer)[0]
        produced: int = _POSITION.unpack_from(self._producer)[0]
        return (produced - consumed) / self._size

    def close(self) -> None:
        self._consumer.close()
        self._producer.close()


class Generator:
    """Runs one writer of the loaded program."""

    def __init__(self, churn: Churn, keys: int = KEYS) -> None:
        self._churn = churn
        self._fill = RingFill(churn.loaded.map(RING))
        self._stopped = False
        churn.set_writer(0, Writer(1, keys, OPERATIONS_MAX, DELETES_PER_1024))

    def stop(self) -> None:
        """Let ``run`` return early. From any thread."""
        self._stopped = True

    def run(self, seconds: float, rate: float | None) -> Generated:
        """Change the map for ``seconds``, at ``rate`` changes per second or as fast as it goes."""
        began = time.monotonic()
        before = self._churn.writer(0).changes
        done = 0
        while (passed := time.monotonic() - began) < seconds and not self._stopped:
            behind = rate is None or done < rate * passed
            if not behind or self._fill.share() > 0.5:
                time.sleep(PAUSE_SECONDS)
                continue
            runs = RUNS_PER_CALL
            if rate is not None:  # small steps at small rates, or latency would be that of a burst
                runs = max(1, min(runs, int(rate * PAUSE_SECONDS / OPERATIONS_MAX)))
            self._churn.run(0, runs)
            done += runs * OPERATIONS_MAX
        self._fill.close()
        changes = self._churn.writer(0).changes - before
        return Generated(changes, time.monotonic() - began)
