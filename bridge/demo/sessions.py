"""Entries of the connection tracker's map, for people and for counting.

Twin of ``struct ct_key`` and ``struct ct_value`` in ``bpf/examples/conntrack.bpf.c``.
"""

from __future__ import annotations

import enum
import ipaddress

import numpy as np

from bridge.model import U8

KEY_DTYPE = np.dtype(
    [
        ("address", np.uint8, (2, 16)),
        ("port", ">u2", (2,)),
        ("family", np.uint8),
        ("protocol", np.uint8),
        ("zero", np.uint8, (2,)),
    ]
)
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
assert KEY_DTYPE.itemsize == VALUE_DTYPE.itemsize == 40, "twin of the C structs"


class State(enum.IntEnum):
    """``enum ct_state``."""

    SYN_SENT = 1
    SYN_RECEIVED = 2
    ESTABLISHED = 3
    FIN_WAIT = 4
    CLOSING = 5


def count_states(values: U8) -> dict[State, int]:
    """How many entries (``u8[n, 40]``) are in each state; states without any are left out."""
    found, counts = np.unique(_decoded(values, VALUE_DTYPE)["state"], return_counts=True)
    return {State(int(s)): int(n) for s, n in zip(found, counts, strict=True)}


def count_families(keys: U8) -> dict[int, int]:
    """How many entries (``u8[n, 40]``) are IPv4 (4) and IPv6 (6)."""
    found, counts = np.unique(_decoded(keys, KEY_DTYPE)["family"], return_counts=True)
    return {int(f): int(n) for f, n in zip(found, counts, strict=True)}


def describe_key(key: bytes) -> str:
    """``198.18.0.1:8000 <-> 198.19.0.7:41234``, in the order of the key."""
    row = np.frombuffer(key, KEY_DTYPE)[0]
    ends = []
    for address, port in zip(row["address"], row["port"], strict=True):
        if row["family"] == 6:
            ends.append(f"[{ipaddress.IPv6Address(address.tobytes())}]:{port}")
        else:
            ends.append(f"{ipaddress.IPv4Address(address[:4].tobytes())}:{port}")
    return " <-> ".join(ends)


def describe_value(value: bytes) -> str:
    """``ESTABLISHED after 3 changes``."""
    row = np.frombuffer(value, VALUE_DTYPE)[0]
    return f"{State(int(row['state'])).name} after {int(row['changes'])} changes"


def _decoded(rows: U8, dtype: np.dtype[np.void]) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    return np.ascontiguousarray(rows).view(dtype).reshape(len(rows))
