"""The states of connections in the tracker's map.

Twin of ``struct ct_value`` in ``bpf/examples/conntrack.bpf.c``.
"""

from __future__ import annotations

import enum

import numpy as np

from bridge.model import U8

VALUE_DTYPE = np.dtype(
    [
        ("changed_ns", np.uint64),
        ("bytes", np.uint32, (2,)),
        ("isn", np.uint32, (2,)),
        ("fin_end", np.uint32, (2,)),
        ("changes", np.uint32),
        ("state", np.uint8),
        ("flags", np.uint8),
        ("initiator", np.uint8),
        ("zero", np.uint8),
    ]
)
assert VALUE_DTYPE.itemsize == 40, "twin of the C struct"


class State(enum.IntEnum):
    """``enum ct_state``."""

    SYN_SENT = 1
    SYN_RECEIVED = 2
    ESTABLISHED = 3
    FIN_WAIT = 4
    CLOSING = 5


def count_states(values: U8) -> dict[State, int]:
    """How many entries (``u8[n, 40]``) are in each state; states without any are left out."""
    rows = np.ascontiguousarray(values).view(VALUE_DTYPE)
    found, counts = np.unique(rows["state"], return_counts=True)
    return {State(int(s)): int(n) for s, n in zip(found, counts, strict=True)}
