"""What the system-call part of the capture programs reports of writes by bpf(2).

Here it stands on the tracepoints of the running kernel. Other modules run the same tests with perf
buffers, and in a guest by kprobes.
"""

from __future__ import annotations

import errno
import mmap
import struct
import threading
import time

import pytest

from bridge.capture.probes import ProbeCapture
from bridge.capture.record import Layout
from bridge.capture.source import Losses
from bridge.capture.tables import Watch
from bridge.kernel.errors import KeyExistsError, KeyMissingError
from bridge.kernel.features import Capability
from bridge.kernel.maps import UpdateFlag
from bridge.kernel.syscall import Command
from bridge.model import Op
from tests.capture_kit import (
    PRIME,
    Watched,
    absent,
    bpf,
    by_calls,
    in_thread,
    is_present,
    number,
    rows,
    wait_for,
    watched,
)
from tests.integration.kernel_support import needs

pytestmark = needs(Capability.CAP_BPF, Capability.CAP_PERFMON)


@pytest.mark.parametrize(("key_size", "value_size"), [(4, 8), (5, 3), (1, 1), (16, 56), (512, 77)])
def test_single_operations(capture: ProbeCapture, key_size: int, value_size: int) -> None:
    with watched(capture, key_size, value_size, 64) as one:
        first, second = (row.tobytes() for row in rows(3, 2, key_size, 0x0101010101010101))
        low, high = (row.tobytes() for row in rows(7, 2, value_size, 0x0101010101010101))
        one.map.update(first, low)
        one.map.update(second, low, UpdateFlag.NOEXIST)
        one.map.update(first, high, UpdateFlag.EXIST)
        assert one.map.delete(second)
        gone = bytes(value_size)
        assert one.changes() == [
            (Op.UPDATE, first, low),
            (Op.UPDATE, second, low),
            (Op.UPDATE, first, high),
            (Op.DELETE, second, gone),
        ]
        assert one.map.lookup_and_delete(first) == high
        assert one.changes() == [(Op.DELETE, first, gone)]
        one.assert_whole(5)


def test_what_fails_or_only_looks_is_not_reported(capture: ProbeCapture) -> None:
    with watched(capture, entries=2) as one:
        one.map.update(number(1), bytes(8))
        one.changes()
        with pytest.raises(KeyExistsError):
            one.map.update(number(1), b"x" * 8, UpdateFlag.NOEXIST)
        with pytest.raises(KeyMissingError):
            one.map.update(number(2), b"x" * 8, UpdateFlag.EXIST)
        assert not one.map.delete(number(2))
        assert one.map.lookup_and_delete(number(2)) is None
        assert one.map.lookup(number(1)) == bytes(8)
        assert one.map.count() == 1
        assert one.changes() == []
        one.assert_whole(1)


@pytest.mark.parametrize(("key_size", "value_size"), [(4, 8), (5, 3), (16, 56)])
def test_batches(capture: ProbeCapture, key_size: int, value_size: int) -> None:
    with watched(capture, key_size, value_size) as one:
        keys, values = rows(1, PRIME, key_size), rows(1, PRIME, value_size, 2_654_435_761)
        assert one.map.update_batch(keys, values).done == PRIME
        one.assert_whole(PRIME)
        assert one.map.update_batch(keys[:1], values[1:2]).done == 1
        assert one.map.delete_batch(keys[:4099]).done == 4099
        one.assert_whole(PRIME + 1 + 4099)
        taken = 0
        while len(some := one.map.lookup_and_delete_batch(509)[0]):
            taken += len(some)
        assert taken == PRIME - 4099
        one.assert_whole(2 * PRIME + 1)
        assert one.contents() == {}


def test_batches_come_as_columns(capture: ProbeCapture) -> None:
    """A whole batch costs a few records, not one per entry, where the call itself is watched."""
    with watched(capture) as one:
        one.map.update_batch(rows(1, PRIME, 4), rows(1, PRIME, 8))
        assert one.count() == PRIME
        chunk = Watch(0, Layout(4, 8)).chunk_updates if by_calls(capture) else 1
        assert one.source.ring_statistics().records == -(-PRIME // chunk)


def test_batch_into_a_full_map(capture: ProbeCapture) -> None:
    with watched(capture, entries=1009) as one:
        outcome = one.map.update_batch(rows(1, 1021, 4), rows(1, 1021, 8))
        assert (outcome.done, outcome.errno) == (1009, errno.E2BIG)
        one.assert_whole(1009)


def test_batch_that_stops_at_a_missing_key(capture: ProbeCapture) -> None:
    with watched(capture) as one:
        one.map.update_batch(rows(1, 101, 4), rows(1, 101, 8))
        one.map.delete(number(54))
        outcome = one.map.delete_batch(rows(1, 101, 4))
        assert (outcome.done, outcome.errno) == (53, errno.ENOENT)
        one.assert_whole(101 + 1 + 53)


def test_refused_batch(capture: ProbeCapture) -> None:
    """The kernel leaves ``count`` as it was when it refuses a batch before its first entry."""
    with watched(capture) as one:
        keys, values = rows(1, 31, 4), rows(1, 31, 8)
        attr = batch_attr(one, keys.ctypes.data, values.ctypes.data, 31, flags=0x40)
        buffer = mmap.mmap(-1, mmap.PAGESIZE)
        buffer.write(attr)
        with absent(attr) as address:
            assert bpf(Command.MAP_UPDATE_BATCH, address, len(attr)) == -errno.EINVAL
        assert one.changes() == []
        # With the attributes absent at entry it is not known what was asked for: look again.
        looks = Losses(rescan=1) if by_calls(capture) else Losses()
        assert one.source.losses() == looks
        present = bytearray(attr)
        with absent(bytes(present)) as address:
            wait_for(lambda: touch(address))
            assert bpf(Command.MAP_UPDATE_BATCH, address, len(attr)) == -errno.EINVAL
        assert one.changes() == []
        assert one.source.losses() == looks


def batch_attr(one: Watched, keys: int, values: int, count: int, flags: int = 0) -> bytes:
    return struct.pack("=QQQQIIQQ", 0, 0, keys, values, count, one.map.fileno(), flags, 0)


def touch(address: int) -> bool:
    """Bring a page into the page table; answers whether it is there."""
    import ctypes

    ctypes.c_ubyte.from_address(address).value  # noqa: B018 - the look is what matters
    return is_present(address)


def test_attributes_keys_and_values_absent_at_entry(capture: ProbeCapture) -> None:
    with watched(capture) as one:
        with absent(number(7)) as key, absent(b"absent 7") as value:
            attr = struct.pack("=IIQQQ", one.map.fileno(), 0, key, value, 0)
            with absent(attr) as address:
                assert bpf(Command.MAP_UPDATE_ELEM, address, len(attr)) == 0
        assert one.changes() == [(Op.UPDATE, number(7), b"absent 7")]
        keys, values = rows(1, 61, 4), rows(1, 61, 8)
        with absent(keys.tobytes()) as key, absent(values.tobytes()) as value:
            attr = batch_attr(one, key, value, 61)
            with absent(attr) as address:
                assert bpf(Command.MAP_UPDATE_BATCH, address, len(attr)) == 0
        one.assert_whole(62)


def test_attributes_that_end_behind_their_last_field(capture: ProbeCapture) -> None:
    """A delete's attributes may be 16 bytes at the end of the caller's memory."""
    with watched(capture) as one:
        one.map.update(number(7), bytes(8))
        with absent(number(7)) as key:
            attr = struct.pack("=IIQ", one.map.fileno(), 0, key)
            with absent(attr) as address:
                assert bpf(Command.MAP_DELETE_ELEM, address, len(attr)) == 0
        one.assert_whole(2)


def test_batch_whose_columns_end_too_soon(capture: ProbeCapture) -> None:
    with watched(capture) as one:
        keys, values = rows(1, 23, 4), rows(1, 29, 8)
        with absent(keys.tobytes()) as key, absent(values.tobytes()) as value:
            attr = batch_attr(one, key, value, 29)
            with absent(attr) as address:
                wait_for(lambda: touch(address))
                assert bpf(Command.MAP_UPDATE_BATCH, address, len(attr)) == -errno.EFAULT
        one.assert_whole(23)


def test_batch_that_cannot_say_how_much_it_did(capture: ProbeCapture) -> None:
    """All entries are done, but ``count`` lies in memory that cannot be written: look again."""
    with watched(capture) as one:
        keys, values = rows(1, 29, 4), rows(1, 29, 8)
        attr = batch_attr(one, keys.ctypes.data, values.ctypes.data, 29)
        with absent(attr, writable=False) as address:
            wait_for(lambda: touch(address))
            assert bpf(Command.MAP_UPDATE_BATCH, address, len(attr)) == -errno.EFAULT
        done = len(one.contents())
        assert done in (0, 29)  # newer kernels try to write ``count`` first
        if by_calls(capture):
            assert one.changes() == []
            assert one.source.losses() == Losses(rescan=1)
        else:
            one.assert_whole(done)


def test_writer_and_times(capture: ProbeCapture) -> None:
    with watched(capture) as one:
        before = time.monotonic_ns()
        _, thread_id = in_thread(lambda: one.map.update(number(1), bytes(8)))
        one.map.update_batch(rows(2, 3, 4), rows(2, 3, 8))
        after = time.monotonic_ns()
        one.drain()
        batch = one.batches[0].concatenate(one.batches)
        # In a pid namespace a thread does not know its kernel's id, but its neighbours' distance.
        own = threading.get_native_id()
        assert int(batch.writers[0]) - int(batch.writers[1]) == thread_id - own
        assert (batch.entered >= before).all()
        assert (batch.entered < batch.left).all()
        assert (batch.left <= after).all()
        assert (batch.writers[1:] == batch.writers[1]).all()


@pytest.mark.parametrize("value_size", [32_000, 32_736, 32_737, 65_536])
def test_large_values(capture: ProbeCapture, value_size: int) -> None:
    """Up to the record's limit values come with it; larger ones are read from the map."""
    with watched(capture, 4, value_size, 64) as one:
        values = rows(1, 13, value_size, 0x0123456789ABCD)
        one.map.update(number(1), values[0].tobytes())
        one.map.update_batch(rows(2, 12, 4), values[1:].copy())
        one.assert_whole(13)
        one.map.delete(number(5))
        one.assert_whole(14)


def test_batch_of_64_chunks_and_one_more(capture: ProbeCapture) -> None:
    with watched(capture, 4, 8000, 512) as one:
        chunk = Watch(0, Layout(4, 8000)).chunk_updates
        count = 64 * chunk
        one.map.update_batch(rows(1, count, 4), rows(1, count, 8000))
        one.assert_whole(count)
        one.map.update_batch(rows(2, count + 1, 4), rows(2, count + 1, 8000))
        if by_calls(capture):
            assert one.count() == 2 * count  # what fits is reported all the same
            assert one.source.losses() == Losses(rescan=1)
        else:
            one.assert_whole(2 * count + 1)


def test_full_ring_is_counted(capture: ProbeCapture) -> None:
    with watched(capture, ring_bytes=1 << 16) as one:
        one.map.update_batch(rows(1, PRIME, 4), rows(1, PRIME, 8))
        lost = one.source.losses()
        assert lost.ring_full > 0
        assert lost.ring_full == lost.total
        assert one.count() + lost.ring_full == PRIME


def test_many_threads(capture: ProbeCapture) -> None:
    with watched(capture) as one:

        def work(base: int) -> None:
            for i in range(499):
                one.map.update(number(base + i), number(i, 8))
            one.map.update_batch(rows(base, 503, 4), rows(base, 503, 8))
            for i in range(0, 499, 2):
                one.map.delete(number(base + i))

        threads = [threading.Thread(target=work, args=(base << 16,)) for base in range(7)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        done = 7 * (499 + 503 + 250)
        # On preemptible kernels a call can go unseen, but not unnoticed. More can be counted than
        # went unseen: it is not known what a program would have reported that did not run.
        wait_for(lambda: one.count() + one.source.losses().unpaired >= done)
        assert one.count() <= done
        assert one.source.losses().total == one.source.losses().unpaired
        if one.count() == done:
            assert one.fold() == one.contents()
