"""What the tests of wire and bus share: deltas to send, and reading with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np

from bridge.bus.protocol import Item, Received, Subscription
from bridge.model import Cause, Delta, DeltaBatch, Op, Origin

CLUSTER = "testing"
DEADLINE_SECONDS = 60.0


def origin(node: str = "n1", map_name: str = "flows", incarnation: int = 7) -> Origin:
    return Origin(CLUSTER, map_name, node, incarnation)


def numbered_batch(
    first: int, rows: int, *, key_size: int = 16, value_size: int = 24, cause: Cause = Cause.CHANGE
) -> DeltaBatch:
    """Updates whose keys and times tell their number."""
    numbers = np.arange(first, first + rows, dtype=np.uint64)
    keys = np.zeros((rows, key_size), np.uint8)
    keys[:, :8] = numbers.astype("<u8").view(np.uint8).reshape(rows, 8)[:, :key_size]
    values = np.full((rows, value_size), first % 251, np.uint8)
    return DeltaBatch(
        np.full(rows, Op.UPDATE, np.uint8),
        keys,
        values,
        np.zeros(rows, np.uint64),
        numbers + np.uint64(1_000_000),
        np.zeros(rows, np.uint32),
        cause,
    )


def numbered_delta(
    first: int, rows: int, of: Origin | None = None, *, key_size: int = 16, value_size: int = 24
) -> Delta:
    batch = numbered_batch(first, rows, key_size=key_size, value_size=value_size)
    return Delta(of or origin(), first, batch)


def same_changes(one: DeltaBatch, other: DeltaBatch) -> bool:
    """Whether two batches hold the same changes (``entered`` does not travel)."""
    return (
        np.array_equal(one.ops, other.ops)
        and np.array_equal(one.keys, other.keys)
        and np.array_equal(one.values, other.values)
        and np.array_equal(one.left, other.left)
        and np.array_equal(one.writers, other.writers)
        and one.cause == other.cause
    )


async def read_items(subscription: Subscription, count: int) -> list[Item]:
    """The next ``count`` items; fails when they do not come in time."""
    items: list[Item] = []
    async with asyncio.timeout(DEADLINE_SECONDS):
        while len(items) < count:
            items.append(await anext(subscription))
    return items


async def read_deltas(subscription: Subscription, count: int) -> list[Received]:
    """The next ``count`` items, all of which must be messages."""
    items = await read_items(subscription, count)
    received = [item for item in items if isinstance(item, Received)]
    assert len(received) == count, [item for item in items if not isinstance(item, Received)]
    return received


def assert_contiguous(received: list[Received], first: int = 1) -> int:
    """Each change once and in order; the sequence behind the last."""
    expected = first
    last_in_log = 0
    for item in received:
        assert item.sequence > last_in_log, "the log's order"
        assert item.delta.first_sequence == expected, "every change exactly once"
        last_in_log = item.sequence
        expected = item.delta.last_sequence + 1
    return expected


async def eventually(
    check: Callable[[], bool | Awaitable[bool]], seconds: float = DEADLINE_SECONDS
) -> None:
    """Poll until ``check`` holds."""
    async with asyncio.timeout(seconds):
        while True:
            answer = check()
            if answer if isinstance(answer, bool) else await answer:
                return
            await asyncio.sleep(0.01)


def resident_bytes() -> int:
    """This process's memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096
