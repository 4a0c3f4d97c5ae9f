"""The vocabulary shared by all stages: operations, batches of changes, origins, map identities.

A batch is columns, never objects: numpy arrays with one row per change, so that each stage costs
per batch and not per change. Kernel times are ``CLOCK_MONOTONIC`` nanoseconds of the node that
recorded the change (``bpf_ktime_get_ns``); times of two nodes are never compared.
"""

from __future__ import annotations

import enum
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.intp]
Flags = npt.NDArray[np.bool_]

KEY_SIZE_MAX = 512  # the key of a map helper call must fit the BPF stack (MAX_BPF_STACK)
VALUE_SIZE_MAX = 65_536


class Op(enum.IntEnum):
    """What was done to a key. Twin of ``enum mapbridge_op`` in ``bpf/record.h``."""

    UPDATE = 1
    DELETE = 2
    EVICT = 3


class Cause(enum.IntEnum):
    """Why a batch exists. Twin of ``Cause`` in ``schemas/mapbridge/v1/delta.proto``."""

    CHANGE = 0  # somebody wrote the map
    SCAN = 1  # found in the map when the bridge started
    REPAIR = 2  # found by a sweep after a loss


@dataclass(frozen=True, slots=True)
class DeltaBatch:
    """``n`` changes of one map, in the order in which the kernel recorded them.

    ops      u8[n]               an ``Op`` each
    keys     u8[n, key_size]
    values   u8[n, value_size]   rows of deletes and evictions are zero
    entered  u64[n]              kernel time at which the operation began; 0: unknown
    left     u64[n]              kernel time at which it had ended
    writers  u32[n]              thread id in the initial pid namespace; 0: unknown
    """

    ops: U8
    keys: U8
    values: U8
    entered: U64
    left: U64
    writers: U32
    cause: Cause = Cause.CHANGE

    def __post_init__(self) -> None:
        n = len(self.ops)
        if self.keys.ndim != 2 or self.values.ndim != 2:
            raise ValueError("keys and values: need two dimensions")
        columns = (self.keys, self.values, self.entered, self.left, self.writers)
        if any(len(column) != n for column in columns):
            raise ValueError(f"columns differ in length (ops has {n})")

    def __len__(self) -> int:
        return len(self.ops)

    @property
    def key_size(self) -> int:
        return int(self.keys.shape[1])

    @property
    def value_size(self) -> int:
        return int(self.values.shape[1])

    @property
    def nbytes(self) -> int:
        """Memory that the columns hold or, for views, cover."""
        return int(
            self.ops.nbytes
            + self.keys.nbytes
            + self.values.nbytes
            + self.entered.nbytes
            + self.left.nbytes
            + self.writers.nbytes
        )

    def take(self, rows: Rows | slice | npt.NDArray[np.bool_]) -> DeltaBatch:
        """The given rows, in the given order. A slice is a view, everything else a copy."""
        if isinstance(rows, slice):
            return DeltaBatch(
                self.ops[rows],
                self.keys[rows],
                self.values[rows],
                self.entered[rows],
                self.left[rows],
                self.writers[rows],
                self.cause,
            )
        # numpy's take moves whole rows, several times faster than indexing two dimensions does
        at = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        return DeltaBatch(
            self.ops.take(at),
            self.keys.take(at, axis=0),
            self.values.take(at, axis=0),
            self.entered.take(at),
            self.left.take(at),
            self.writers.take(at),
            self.cause,
        )

    @staticmethod
    def concatenate(batches: Sequence[DeltaBatch]) -> DeltaBatch:
        """One batch out of several of the same map and cause, in the given order."""
        first = batches[0]
        if len(batches) == 1:
            return first
        assert all(b.cause == first.cause for b in batches), "causes differ"
        return DeltaBatch(
            np.concatenate([b.ops for b in batches]),
            np.concatenate([b.keys for b in batches]),
            np.concatenate([b.values for b in batches]),
            np.concatenate([b.entered for b in batches]),
            np.concatenate([b.left for b in batches]),
            np.concatenate([b.writers for b in batches]),
            first.cause,
        )

    @staticmethod
    def empty(key_size: int, value_size: int, cause: Cause = Cause.CHANGE) -> DeltaBatch:
        return DeltaBatch(
            np.zeros(0, np.uint8),
            np.zeros((0, key_size), np.uint8),
            np.zeros((0, value_size), np.uint8),
            np.zeros(0, np.uint64),
            np.zeros(0, np.uint64),
            np.zeros(0, np.uint32),
            cause,
        )

    @staticmethod
    def of_entries(
        op: Op, keys: U8, values: U8, time: int, *, began: int = 0, cause: Cause = Cause.CHANGE
    ) -> DeltaBatch:
        """A batch with the same operation and times on every row (scans, diffs, tests)."""
        n = len(keys)
        return DeltaBatch(
            np.full(n, op, np.uint8),
            keys,
            values,
            np.full(n, began, np.uint64),
            np.full(n, time, np.uint64),
            np.zeros(n, np.uint32),
            cause,
        )


def new_incarnation() -> int:
    """A number nobody can guess, one per start of the bridge and map id (never 0)."""
    return int.from_bytes(os.urandom(8), "little") | 1


@dataclass(frozen=True, slots=True)
class Origin:
    """Who changes come from. Sequences count the changes of one origin from 1, without holes."""

    cluster: str
    map: str
    node: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class Delta:
    """One message: a batch with its origin and the origin sequence of its first change."""

    origin: Origin
    first_sequence: int
    batch: DeltaBatch
    clock_offset: int = 0  # CLOCK_REALTIME - CLOCK_MONOTONIC of the sender, ns
    layout: int = 0  # fingerprint of the field layout; 0: raw bytes only

    @property
    def last_sequence(self) -> int:
        return self.first_sequence + len(self.batch) - 1


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the stream: everything up to ``sequence`` is meant, 0 is before the first."""

    sequence: int


@dataclass(frozen=True, slots=True)
class Part:
    """One message of a snapshot: how many changes it holds, and the CRC-32 of its bytes."""

    rows: int
    crc: int


@dataclass(frozen=True, slots=True)
class Anchor:
    """A message of the log, by place and time: one that was stored anew has another time."""

    sequence: int
    stored_at_ns: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What makes parts a snapshot: the state of one map with all changes up to ``position``.

    Newer changes may be in it; all of them stand in the log behind ``position``. ``origin`` names
    who took it, its incarnation being the snapshot's own number, which every part bears.
    """

    origin: Origin
    log: str  # id of the log that ``position`` counts in
    position: int
    anchor: Anchor | None  # the last message of the map at or before ``position``
    slot: int
    taken_at: float  # seconds since 1970, by the taker's clock: for people and for intervals
    clock_offset: int  # as in ``Delta``
    key_size: int
    value_size: int
    layout: int
    parts: tuple[Part, ...]
    first_part: int  # where in the stream of snapshots the first part is
    digest: int  # sum of the hashes of all rows, modulo 2**64

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)


class Role(enum.StrEnum):
    """What a node does with a map."""

    PUBLISH = "publish"
    APPLY = "apply"
    REPLICATE = "replicate"

    @property
    def publishes(self) -> bool:
        return self is not Role.APPLY

    @property
    def applies(self) -> bool:
        return self is not Role.PUBLISH


class Evict(enum.StrEnum):
    """What it means to the other nodes that an LRU map has dropped an entry to make room."""

    LOCAL = "local"  # nothing
    REPLICATE = "replicate"  # the key is gone, everywhere


class ConflictPolicy(enum.StrEnum):
    """Who is right when several nodes change one key. The same on all nodes of a map."""

    STREAM = "stream"  # the change that comes last in the log
    OWNER = "owner"  # the node that brought the key in
    MAX = "max"  # the largest number
    SUM = "sum"  # all: the map of a node that applies holds the sum of what each node holds


@dataclass(frozen=True, slots=True)
class MapSelector:
    """How an operator names a kernel map: exactly one of the three is set."""

    pin: str | None = None
    name: str | None = None
    id: int | None = None

    def __post_init__(self) -> None:
        if sum(x is not None for x in (self.pin, self.name, self.id)) != 1:
            raise ValueError("a map selector needs exactly one of pin, name, id")

    @property
    def is_pattern(self) -> bool:
        """Whether it means all maps that match. Only the last part of a pin's path may do so."""
        return has_wildcard(self.pin or self.name or "")

    def __str__(self) -> str:
        if self.pin is not None:
            return f"pin {self.pin}"
        return f"name {self.name}" if self.name is not None else f"id {self.id}"


@dataclass(frozen=True, slots=True)
class MapInfo:
    """What the kernel tells of a map (``struct bpf_map_info``).

    ``value_size`` is what bpf(2) exchanges: of a per-CPU map the values of all ``cpus`` possible
    CPUs, each padded to 8 bytes. ``cpus`` is 0 for other maps.
    """

    id: int
    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int = 0
    cpus: int = 0


WILDCARDS = "*?["


def has_wildcard(text: str) -> bool:
    """Whether ``fnmatch`` takes the text for more than itself."""
    return any(character in text for character in WILDCARDS)


_TOKEN = re.compile(r"[A-Za-z0-9_-]+")


def is_token(name: str) -> bool:
    """Whether a node or cluster name may stand as one token of a subject."""
    return _TOKEN.fullmatch(name) is not None
