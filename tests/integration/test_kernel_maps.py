"""What kernel maps of each type hold and take, for real: entries and batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from bridge.kernel import errors
from bridge.kernel.features import Capability
from bridge.kernel.maps import (
    BatchOutcome,
    KernelMap,
    MapFlag,
    MapType,
    UpdateFlag,
    create_map,
)
from tests.integration.kernel_support import (
    needs as needs_capabilities,
    no_descriptor_leaks,
    rows_of,
)

pytestmark = needs_capabilities(Capability.CAP_BPF, Capability.CAP_SYS_ADMIN)
E2BIG, ENOENT, EEXIST, EINVAL = 7, 2, 17, 22
LOOPBACK = (1).to_bytes(4, "little")  # interface index


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    with no_descriptor_leaks():
        yield


@pytest.fixture(params=[MapFlag.NONE, MapFlag.NO_PREALLOC], ids=["prealloc", "no-prealloc"])
def table(request: pytest.FixtureRequest) -> Iterator[KernelMap]:
    with create_map(MapType.HASH, 7, 13, 100, name="odd", flags=request.param) as opened:
        yield opened


def test_single_entries(table: KernelMap) -> None:
    key, value = b"seven..", b"thirteen bytes"[:13]
    assert table.lookup(key) is None
    assert table.delete(key) is False
    table.update(key, value)
    assert table.lookup(key) == value
    assert table.lookup_and_delete(key) == value
    assert table.lookup_and_delete(key) is None
    table.update(key, value, UpdateFlag.NOEXIST)
    with pytest.raises(errors.KeyExistsError, match=r"map odd \(id \d+\): update"):
        table.update(key, value, UpdateFlag.NOEXIST)
    assert table.delete(key) is True
    with pytest.raises(errors.KeyMissingError):
        table.update(key, value, UpdateFlag.EXIST)


def test_full_map_by_single_updates(table: KernelMap) -> None:
    assert table.update_batch(rows_of(range(100), 7), rows_of(range(100), 13)).errno == 0
    with pytest.raises(errors.MapFullError) as caught:
        table.update(b"\xff" * 7, bytes(13))
    assert caught.value.errno == E2BIG
    assert "max_entries" in caught.value.hint


def test_partial_update_batch_tells_how_many(table: KernelMap) -> None:
    keys, values = rows_of(range(150), 7), rows_of(range(150), 13)
    assert table.update_batch(keys, values) == BatchOutcome(100, E2BIG)
    assert table.count() == 100
    assert table.lookup(keys[99].tobytes()) == values[99].tobytes()
    assert table.lookup(keys[100].tobytes()) is None
    # Keys that are there can still be set, up to the first new one.
    assert table.update_batch(keys[90:110].copy(), values[:20].copy()) == BatchOutcome(10, E2BIG)
    assert table.lookup(keys[95].tobytes()) == values[5].tobytes()


def test_delete_batch_stops_at_the_missing_key(table: KernelMap) -> None:
    table.update_batch(rows_of(range(50), 7), rows_of(range(50), 13))
    wanted = rows_of(iter([3, 4, 77, 5]), 7)
    assert table.delete_batch(wanted) == BatchOutcome(2, ENOENT)
    assert table.count() == 48
    assert table.delete_batch(wanted[3:].copy()) == BatchOutcome(1)
    assert table.delete_batch(wanted[:1].copy()) == BatchOutcome(0, ENOENT)


def test_flags_in_a_batch(table: KernelMap) -> None:
    keys, values = rows_of(range(10), 7), rows_of(range(10), 13)
    assert table.update_batch(keys[:5].copy(), values[:5].copy()) == BatchOutcome(5)
    order = [7, 8, 2, 9]
    outcome = table.update_batch(keys[order], values[order], UpdateFlag.NOEXIST)
    assert outcome == BatchOutcome(2, EEXIST)
    assert table.update_batch(keys[order], values[order], UpdateFlag.EXIST) == BatchOutcome(
        3, ENOENT
    )


def test_empty_batches(table: KernelMap) -> None:
    nothing = np.zeros((0, 7), np.uint8)
    assert table.update_batch(nothing, np.zeros((0, 13), np.uint8)) == BatchOutcome(0)
    assert table.delete_batch(nothing) == BatchOutcome(0)
    assert list(table.scan()) == []
    assert table.count() == 0
    keys, values = table.lookup_and_delete_batch(10)
    assert keys.shape == (0, 7)
    assert values.shape == (0, 13)


def test_lookup_and_delete_batch_drains(table: KernelMap) -> None:
    table.update_batch(rows_of(range(100), 7), rows_of(range(200, 300), 13))
    taken: dict[bytes, bytes] = {}
    for _ in range(100):
        keys, values = table.lookup_and_delete_batch(16)
        if not len(keys):
            break
        for key, value in zip(keys, values, strict=True):
            assert key.tobytes() not in taken
            taken[key.tobytes()] = value.tobytes()
    assert len(taken) == 100
    assert table.count() == 0
    for number in range(100):
        assert taken[number.to_bytes(7, "little")] == (number + 200).to_bytes(13, "little")


@pytest.mark.parametrize(
    "keys",
    [
        np.zeros((3, 8), np.uint8),
        np.zeros((3, 7), np.int8),
        np.zeros((3, 14), np.uint8)[:, ::2],
        np.zeros(21, np.uint8),
        np.zeros((7, 3), np.uint8).T,
    ],
    ids=["width", "type", "strided", "flat", "column-order"],
)
def test_arrays_of_another_shape_are_refused(table: KernelMap, keys: np.ndarray) -> None:
    with pytest.raises(errors.SizeMismatchError, match=r"map odd .* 7 bytes"):
        table.update_batch(keys, np.zeros((3, 13), np.uint8))
    with pytest.raises(errors.SizeMismatchError, match=r"map odd .* 7 bytes"):
        table.delete_batch(keys)


def test_sizes_of_single_entries_are_checked(table: KernelMap) -> None:
    with pytest.raises(errors.SizeMismatchError, match=r"7 bytes \(got 6\)"):
        table.lookup(bytes(6))
    with pytest.raises(errors.SizeMismatchError, match=r"13 bytes \(got 14\)"):
        table.update(bytes(7), bytes(14))
    with pytest.raises(errors.SizeMismatchError, match=r"got 2 and 3"):
        table.update_batch(rows_of(range(2), 7), rows_of(range(3), 13))


def test_widest_values() -> None:
    with create_map(MapType.HASH, 16, 65_536, 300, name="wide", flags=MapFlag.NO_PREALLOC) as wide:
        values = np.random.default_rng(1).integers(0, 256, (300, 65_536), np.uint8)
        keys = rows_of(range(300), 16)
        assert wide.update_batch(keys, values) == BatchOutcome(300)
        seen = 0
        for got_keys, got_values in wide.scan(8192):
            # 16 MiB per call hold 255 of these
            assert len(got_keys) <= 256
            numbers = got_keys[:, :8].copy().view(np.uint64).ravel()
            assert np.array_equal(got_values, values[numbers.astype(np.intp)])
            seen += len(got_keys)
        assert seen == wide.count() == 300


def test_array_map() -> None:
    with create_map(MapType.ARRAY, 4, 6, 1000, name="slots") as slots:
        assert slots.count() == 1000
        keys, values = rows_of(range(1000), 4), rows_of(range(1000), 6)
        assert slots.update_batch(keys, values) == BatchOutcome(1000)
        pairs = list(slots.scan(300))
        assert np.array_equal(np.concatenate([k for k, _ in pairs]), keys)
        assert np.array_equal(np.concatenate([v for _, v in pairs]), values)
        beyond = rows_of(range(998, 1003), 4)
        assert slots.update_batch(beyond, values[:5].copy()) == BatchOutcome(2, E2BIG)
        with pytest.raises(errors.InvalidError):
            slots.delete(bytes(4))


def test_lru_map_evicts_and_still_scans_once() -> None:
    with create_map(MapType.LRU_HASH, 8, 8, 1000, name="lru") as lru:
        keys = rows_of(range(5000), 8)
        assert lru.update_batch(keys, keys) == BatchOutcome(5000)
        got = np.concatenate([k for k, _ in lru.scan(64)])
        assert 0 < len(got) <= 1000
        assert len(np.unique(got, axis=0)) == len(got) == lru.count()


def test_longest_prefix_map() -> None:
    flags = MapFlag.NO_PREALLOC
    with create_map(MapType.LPM_TRIE, 8, 4, 500, name="routes", flags=flags) as routes:
        keys = np.zeros((256, 8), np.uint8)
        keys[:, 0] = 24  # prefix length
        keys[:, 6] = np.arange(256)
        assert routes.update_batch(keys, rows_of(range(256), 4)) == BatchOutcome(256)
        got = np.concatenate([k for k, _ in routes.scan(50)])
        assert np.array_equal(np.unique(got, axis=0), np.unique(keys, axis=0))
        assert len(got) == routes.count() == 256
        keys[100, 0] = 77  # no such prefix length
        assert routes.update_batch(keys, rows_of(range(256), 4)) == BatchOutcome(100, EINVAL)


@pytest.mark.parametrize("map_type", [MapType.PERCPU_HASH, MapType.LRU_PERCPU_HASH])
def test_values_of_per_cpu_maps_are_those_of_all_cpus(map_type: MapType) -> None:
    with create_map(map_type, 4, 12, 1009, name="counters") as counters:
        info = counters.info
        assert info.value_size == 16 * info.cpus  # padded to eight bytes each
        keys, values = rows_of(range(211), 4), rows_of(range(211), info.value_size)
        values.reshape(211, info.cpus, 16)[:, :, 12:] = 0  # the padding, which the kernel keeps
        assert counters.update_batch(keys, values) == BatchOutcome(211)
        counters.update(bytes([255] * 4), values[7].tobytes())
        assert counters.lookup(bytes([255] * 4)) == values[7].tobytes()
        found = {
            key.tobytes(): value.tobytes()
            for chunk in counters.scan()
            for key, value in zip(*chunk, strict=True)
        }
        assert found.pop(bytes([255] * 4)) == values[7].tobytes()
        assert found == {k.tobytes(): v.tobytes() for k, v in zip(keys, values, strict=True)}
        assert counters.count() == 212
        assert counters.delete(bytes([255] * 4))
        taken, _ = counters.lookup_and_delete_batch(1000)
        assert len(taken) == 211


def test_every_cpu_has_a_value_in_an_array() -> None:
    with create_map(MapType.PERCPU_ARRAY, 4, 8, 17, name="counts") as counts:
        value = b"".join(cpu.to_bytes(8, "little") for cpu in range(counts.info.cpus))
        counts.update((3).to_bytes(4, "little"), value)
        ((keys, values),) = counts.scan()
        assert len(keys) == 17
        assert values[3].tobytes() == value
        assert not values[4].any()


@needs_capabilities(Capability.CAP_NET_ADMIN)
def test_a_type_without_batch_commands_answers_the_same() -> None:
    """The kernel has no batch commands for this type, so every call takes the other way."""
    with create_map(MapType.DEVMAP_HASH, 4, 4, 64, name="ports") as ports:
        keys = rows_of(range(80), 4)
        values = np.tile(np.frombuffer(LOOPBACK, np.uint8), (80, 1))
        assert ports.update_batch(keys, values) == BatchOutcome(64, E2BIG)
        assert ports.count() == 64
        got = np.concatenate([k for k, _ in ports.scan(10)])
        assert len(got) == 64
        assert np.array_equal(np.unique(got, axis=0), np.unique(keys[:64], axis=0))
        assert ports.delete_batch(keys[60:70].copy()) == BatchOutcome(4, ENOENT)
        assert ports.lookup_and_delete(keys[0].tobytes()) == LOOPBACK
        assert ports.lookup(keys[0].tobytes()) is None
        taken, taken_values = ports.lookup_and_delete_batch(50)
        assert len(taken) == len(np.unique(taken, axis=0)) == 50
        assert (taken_values == values[:50]).all()
        taken, _ = ports.lookup_and_delete_batch(50)
        assert len(taken) == 9
        assert ports.lookup_and_delete_batch(50)[0].shape == (0, 4)
