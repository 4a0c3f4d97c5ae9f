"""Scans while others write: what stays is seen exactly once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from bridge.kernel.features import Capability
from bridge.kernel.maps import KernelMap, MapFlag, MapType, create_map
from bridge.model import U8
from tests.integration.kernel_support import needs, no_descriptor_leaks, rows_of

pytestmark = needs(Capability.CAP_BPF)

STAYING = 100_003
CHURNING = 20_000
CHURNS_MIN = 20


class Churn(threading.Thread):
    """Inserts and deletes ``rows`` for ever, and sets ``kept`` anew each time."""

    def __init__(self, table: KernelMap, rows: U8, values: U8, kept: U8 | None) -> None:
        super().__init__()
        self._table = table
        self._rows, self._values, self._kept = rows, values, kept
        self._halt = threading.Event()
        self.rounds = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._halt.is_set():
                assert self._table.update_batch(self._rows, self._values).errno == 0
                if self._kept is not None:
                    values = np.resize(self._values, (len(self._kept), self._values.shape[1]))
                    assert self._table.update_batch(self._kept, values).errno == 0
                assert self._table.delete_batch(self._rows).errno == 0
                self.rounds += 1
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
            self.error = error

    @contextmanager
    def running(self) -> Iterator[None]:
        self.start()
        try:
            yield
        finally:
            self._halt.set()
            self.join()
        if self.error is not None:
            raise self.error


def numbers_of(rows: U8) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    return np.ascontiguousarray(rows[:, :4]).view(np.uint32).ravel()


def scan_numbers(table: KernelMap, entries: int) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    return np.concatenate([numbers_of(keys) for keys, _ in table.scan(entries)])


def check_once(got: np.ndarray[tuple[int], np.dtype[np.uint32]], staying: int) -> None:
    unique, counts = np.unique(got, return_counts=True)
    assert counts.max() == 1, "a key came twice"
    stayed = unique[unique < staying]
    assert np.array_equal(stayed, np.arange(staying, dtype=np.uint32))


@pytest.mark.parametrize("entries", [8192, 500])
@pytest.mark.parametrize(
    "flags", [MapFlag.NONE, MapFlag.NO_PREALLOC], ids=["prealloc", "no-prealloc"]
)
def test_keys_that_stay_come_exactly_once(flags: MapFlag, entries: int) -> None:
    with (
        no_descriptor_leaks(),
        create_map(MapType.HASH, 16, 24, 200_000, name="busy", flags=flags) as table,
    ):
        staying = rows_of(range(STAYING), 16)
        values = rows_of(range(STAYING), 24)
        assert table.update_batch(staying, values).done == STAYING
        coming = rows_of(range(STAYING, STAYING + CHURNING), 16)
        churn = Churn(table, coming, values[:CHURNING].copy(), staying[::10].copy())
        strangers = 0
        with churn.running():
            while churn.rounds < CHURNS_MIN and churn.error is None:
                got = scan_numbers(table, entries)
                check_once(got, STAYING)
                strangers += len(got) - STAYING
        assert churn.rounds >= CHURNS_MIN
        assert strangers > 0, "the writer never met a scan"
        assert table.count() == STAYING


def test_values_come_with_their_keys() -> None:
    with create_map(MapType.HASH, 5, 9, 3000, name="pairs") as table:
        keys, values = rows_of(range(3000), 5), rows_of(range(7000, 10_000), 9)
        table.update_batch(keys, values)
        for got_keys, got_values in table.scan(257):
            assert np.array_equal(numbers_of(got_keys) + 7000, numbers_of(got_values))


def test_buffer_grows_to_the_largest_bucket() -> None:
    with create_map(MapType.HASH, 8, 8, 1024, name="tight") as table:
        keys = rows_of(range(1024), 8)
        table.update_batch(keys, keys)
        sizes = [len(got) for got, _ in table.scan(1)]
        assert sum(sizes) == 1024
        assert max(sizes) > 1, "no bucket held two: the buffer never had to grow"
        check_once(scan_numbers(table, 1), 1024)


def test_batches_belong_to_the_caller() -> None:
    with create_map(MapType.HASH, 8, 8, 1024, name="owned") as table:
        keys = rows_of(range(1024), 8)
        table.update_batch(keys, keys)
        batches = list(table.scan(64))
        assert len(batches) > 10
        check_once(np.concatenate([numbers_of(got) for got, _ in batches]), 1024)


@needs(Capability.CAP_NET_ADMIN)
def test_walk_without_batch_commands_under_churn() -> None:
    """A walk by key starts again when its key vanishes: nothing comes twice, nothing is missed."""
    staying_count = 2003
    with create_map(MapType.DEVMAP_HASH, 4, 4, 8192, name="walked") as table:
        loopback = np.array([[1, 0, 0, 0]], np.uint8)
        staying = rows_of(range(staying_count), 4)
        assert table.update_batch(staying, np.tile(loopback, (staying_count, 1))).errno == 0
        coming = rows_of(range(staying_count, staying_count + 500), 4)
        churn = Churn(table, coming, np.tile(loopback, (500, 1)), None)
        strangers = scans = 0
        with churn.running():
            while (churn.rounds < 30 or scans < 10) and churn.error is None:
                got = scan_numbers(table, 100)
                check_once(got, staying_count)
                strangers += len(got) - staying_count
                scans += 1
        assert strangers > 0, "the writer never met a scan"
