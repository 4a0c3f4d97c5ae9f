"""Threads that change a map at a steady rate, as a process of their own.

    python -m bridge.bench.load PROGRAM WRITERS RATE SECONDS

``PROGRAM`` is the pin of ``churn_run``, whose writers 0 to ``WRITERS`` - 1 are set; ``RATE`` is of
all of them together, in changes per second. Kept apart from the process that reads, so that the
two do not share an interpreter's lock. A writer that is late catches up, in bursts.
"""

from __future__ import annotations

import math
import sys
import threading
import time

from bridge.bench.churn import OPERATIONS_MAX, frame_of
from bridge.kernel.programs import KernelProgram, open_pinned_program

BURST_SECONDS = 0.001  # a writer sleeps so long, and then does what has become due
RUNS_MAX = 1024  # of one system call


def write(program: KernelProgram, writer: int, rate: float, seconds: float) -> None:
    """Run a writer for ``seconds`` at ``rate`` operations per second, or as fast as it can."""
    frame = frame_of(writer)
    began = time.monotonic()
    done = 0
    while (passed := time.monotonic() - began) < seconds:
        due = math.ceil((rate * passed - done) / OPERATIONS_MAX)
        if due <= 0:
            time.sleep(BURST_SECONDS)
            continue
        runs = min(due, RUNS_MAX)
        program.test_run(frame, repeat=runs)
        done += runs * OPERATIONS_MAX


def main() -> None:
    pin, writers, rate, seconds = sys.argv[1:]
    count = int(writers)
    with open_pinned_program(pin) as program:
        threads = [
            threading.Thread(target=write, args=(program, i, float(rate) / count, float(seconds)))
            for i in range(count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
