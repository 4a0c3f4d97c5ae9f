"""The emit header with keys and values of awkward sizes, and as a part of a BCC program."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.capture.emit import EmitSource
from bridge.capture.record import Layout
from bridge.capture.ring_source import RingSource
from bridge.capture.source import Losses
from bridge.kernel.features import Capability
from bridge.kernel.headers import ENVIRONMENT_VARIABLE, prepare_headers
from bridge.kernel.objects import LoadedObject, compile_object, load_object
from bridge.kernel.programs import test_run as run_program
from bridge.model import DeltaBatch, MapSelector, Op
from bridge.resources import bpf_directory
from tests.integration.kernel_support import BPFFS, needs, no_descriptor_leaks, unique_name

pytestmark = needs(Capability.CAP_BPF, Capability.CAP_NET_ADMIN)
PROGRAMS = Path(__file__).parent / "programs"
KEY = b"odd-key"
FRAME = KEY.ljust(64, b"\0")
TOUCHES = 13


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedObject]:
    compiled = compile_object(
        PROGRAMS / "wide.bpf.c", include=[bpf_directory()], cache=tmp_path_factory.mktemp("cache")
    )
    with no_descriptor_leaks(), load_object(compiled, BPFFS / unique_name("wide_ring")) as loaded:
        yield loaded


def open_source(wide: LoadedObject, name: str) -> EmitSource:
    return EmitSource(
        wide.map(name),
        MapSelector(pin=str(wide.map_pin(f"{name}_ring"))),
        MapSelector(pin=str(wide.map_pin(f"{name}_lost"))),
    )


def touched(wide: LoadedObject, name: str) -> tuple[DeltaBatch, bytes]:
    """The changes of some in-place writes to a patterned value; and the value before them."""
    size = wide.map(name).info.value_size
    value = bytes(i * 7 % 256 for i in range(size - 1)) + b"\0"
    wide.map(name).update(KEY, value)
    source = open_source(wide, name)
    for _ in range(TOUCHES):
        assert wide.program("wide_touch").test_run(FRAME).retval == 0
    (batch,) = source.drain()
    assert source.losses() == Losses()
    source.close()
    assert wide.map(name).delete(KEY)
    return batch, value


@pytest.mark.parametrize(("name", "value_size"), [("odd", 13), ("wide", 3001)])
def test_each_write_in_place_comes_with_its_value(
    wide: LoadedObject, name: str, value_size: int
) -> None:
    batch, value = touched(wide, name)
    assert batch.value_size == value_size
    assert [key.tobytes() for key in batch.keys] == [KEY] * TOUCHES
    assert [v.tobytes() for v in batch.values] == [
        value[:-1] + bytes([i]) for i in range(1, TOUCHES + 1)
    ]
    assert batch.ops.tolist() == [Op.UPDATE] * TOUCHES
    assert batch.entered.any() == (name != "odd"), "odd says that it does not know"


def test_a_value_too_wide_is_read_from_the_map(wide: LoadedObject) -> None:
    assert not Layout(7, 40_001).carries_value
    batch, value = touched(wide, "huge")
    assert [v.tobytes() for v in batch.values] == [value[:-1] + bytes([TOUCHES])] * TOUCHES
    assert batch.entered.all()


def test_a_delete_between_updates_keeps_the_stride(wide: LoadedObject) -> None:
    source = open_source(wide, "odd")
    for _ in range(5):
        wide.map("odd").update(KEY, b"thirteen byt\0")
        assert wide.program("wide_touch").test_run(FRAME).retval == 0
        assert wide.program("wide_remove").test_run(FRAME).retval == 0
        assert wide.program("wide_remove").test_run(FRAME).retval == 0  # nothing left to remove
    (batch,) = source.drain()
    assert batch.ops.tolist() == [Op.UPDATE, Op.DELETE] * 5
    assert [v.tobytes() for v in batch.values] == [b"thirteen byt\1", bytes(13)] * 5
    assert source.losses() == Losses()
    source.close()


_BCC = """
#include "mapbridge.h"

struct table_key { char bytes[7]; };
struct table_value { u64 count; char rest[5]; };
BPF_RINGBUF_OUTPUT(ring, 16);

int emit(struct __sk_buff *packet)
{
    MAPBRIDGE_RECORD(struct table_key, struct table_value) record = {};
    struct table_key key = {.bytes = "odd-ke"};
    struct table_value value = {.count = 4711, .rest = "rest"};
    u64 began = MAPBRIDGE_BEGIN();

    mapbridge_fill_update(&record, began, &key, &value);
    ring.ringbuf_output(&record, sizeof(record), 0);
    mapbridge_fill_delete(&record, began, &key);
    ring.ringbuf_output(&record, sizeof(record), 0);
    return 0;
}
"""


def test_the_header_in_a_bcc_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bcc = pytest.importorskip("bcc")
    folder = prepare_headers(tmp_path)
    if folder is not None:
        monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(folder))
    program = bcc.BPF(text=_BCC.encode(), cflags=[f"-I{bpf_directory()}"])
    emit = program.load_func(b"emit", bcc.BPF.SCHED_CLS)
    ring_fd = program[b"ring"].map_fd
    value_size = ctypes.sizeof(ctypes.c_uint64) * 2
    source = RingSource(
        ring_fd,
        16 * os.sysconf("SC_PAGE_SIZE"),
        Layout(7, value_size),
        lookup=_never,
        losses=Losses,
    )
    run_program(emit.fd, bytes(64), repeat=7)
    (batch,) = source.drain()
    assert source.losses() == Losses()
    source.close()
    program.cleanup()
    assert batch.ops.tolist() == [Op.UPDATE, Op.DELETE] * 7
    assert {key.tobytes() for key in batch.keys} == {b"odd-ke\0"}
    value = (4711).to_bytes(8, "little") + b"rest\0\0\0\0"
    assert [v.tobytes() for v in batch.values] == [value, bytes(16)] * 7
    assert (batch.entered <= batch.left).all()
    assert batch.entered.all()


def _never(key: bytes) -> bytes | None:
    raise AssertionError(f"nobody asked for {key!r}")
