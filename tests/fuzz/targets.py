"""What reads bytes of others, each as a function of bytes that must not fail in an unforeseen way.

A target may raise ``BridgeError`` and, where its callers catch it, what stands in ``FORESEEN``.
Anything else is a bug. ``seeds`` come out of the real encoders.
"""

from __future__ import annotations

import asyncio
import base64
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import cast

import numpy as np
import orjson

from bridge.bus.board import SyncBoard
from bridge.bus.control import Answer
from bridge.bus.feeds import SourcePlace
from bridge.bus.inbound import to_item
from bridge.bus.link import Reply
from bridge.bus.nats_bus import NatsBus
from bridge.bus.protocol import Received
from bridge.capture.decoding import Decoder as RingDecoder
from bridge.capture.record import Layout as RecordLayout
from bridge.cli.peers import read_digest, read_page
from bridge.core.digests import Digest
from bridge.errors import BridgeError
from bridge.feed.schema import MapSchema, decode_schema, encode_schema
from bridge.feed.where import Where
from bridge.kernel.btf import Btf
from bridge.kernel.maps import KernelMap
from bridge.layout.declared import DeclaredError, read_declared
from bridge.layout.document import from_document, to_document
from bridge.layout.reader import read_type
from bridge.model import Anchor, Manifest, Origin, Part, Role
from bridge.node.control import Control, MapView, pack
from bridge.node.halts import Halts
from bridge.node.lane import Lane
from bridge.node.verdicts import Verdicts
from bridge.wire.codec import decode, encode
from bridge.wire.manifest import decode_manifest, encode_manifest
from bridge.wire.subjects import delta_subject, parse_subject
from tests.bus_kit import numbered_delta
from tests.fuzz import protocols
from tests.unit.test_feed_where import LAYOUT, TYPES, delta
from tests.unit.test_kernel_btf import sample

KEY, VALUE = 16, 24


@dataclass(frozen=True, slots=True)
class Target:
    """``check`` takes any bytes. ``foreseen``: what its callers catch beside ``BridgeError``."""

    check: Callable[[bytes], None]
    seeds: Callable[[], Sequence[bytes]]
    foreseen: tuple[type[Exception], ...] = ()

    def run(self, data: bytes) -> None:
        """Raises only what nobody foresaw."""
        foreseen: tuple[type[Exception], ...] = (BridgeError, *self.foreseen)
        try:
            self.check(data)
        except foreseen:
            return


def _wire(data: bytes) -> None:
    found = decode(data)
    assert encode(found) is not None
    assert found.batch.keys.nbytes + found.batch.values.nbytes <= 128 << 20


def _messages() -> list[bytes]:
    return [encode(numbered_delta(1, rows)) for rows in (1, 3, 17)] + [encode(delta())]


def _item(data: bytes) -> None:
    """What a subscription makes of subject and content: the change of that subject, or nothing."""
    subject, _, content = data.partition(b"\n")
    text = subject.decode(errors="replace")
    item = to_item(1, 1, text, content)
    if isinstance(item, Received):
        assert parse_subject(text).node == item.delta.origin.node


def _items() -> list[bytes]:
    one = numbered_delta(1, 3)
    return [delta_subject(one.origin).encode() + b"\n" + encode(one)]


def _manifests() -> list[bytes]:
    made = Manifest(
        Origin("c", "flows", "n1", 7), "log", 9, Anchor(3, 4), 1, 1.5, 2, KEY, VALUE, 11,
        (Part(3, 99), Part(4, 98)), 5, 77,
    )  # fmt: skip
    return [encode_manifest(made)]


def _schemas() -> list[bytes]:
    return [encode_schema(MapSchema.of("c", "flows", LAYOUT))]


def _document(data: bytes) -> None:
    from_document(orjson.loads(data))


def _documents() -> list[bytes]:
    return [orjson.dumps(to_document(LAYOUT))]


def _btf(data: bytes) -> None:
    """All that is asked of a blob: types by id and by name, members, sizes, and layouts."""
    btf = Btf(data, "fuzz")
    for name in ("outer", "int", "number"):
        btf.find(name)
    for type_id in range(min(len(btf), 64)):
        try:
            btf.size_of(type_id)
            read_type(btf, type_id, 32)
        except BridgeError:
            continue
    btf.place("outer", "id")


def _blobs() -> list[bytes]:
    return [sample().bytes(), sample().bytes(header=32)]


def _declared(data: bytes) -> None:
    text, _, names = data.decode(errors="replace").partition("\0")
    key, _, value = names.partition("\0")
    read_declared(text, key or "__u32", value or "struct v")


def _declarations() -> list[bytes]:
    small = "struct v { __u32 a : 3; union { __u8 b[4]; __be32 c; }; } __attribute__((packed));"
    return [f"{TYPES}\0struct k\0struct v".encode(), small.encode()]


def _where(data: bytes) -> None:
    mask = Where(data.decode(errors="replace")).mask(delta(), LAYOUT)
    assert mask.shape == (5,)


def _filters() -> list[bytes]:
    return [
        b'value.state == "ESTABLISHED" and key.addr["*"] in "10.0.0.0/8"',
        b'not (op == "delete" or node in ["a", "b"]) and value.n[1][0] >= -2',
        b"value.rate < 1.5 and value.up == true and time > 3",
    ]


def _ring(data: bytes) -> None:
    """Runs of records of the length that the first byte says, as the ring's reader cuts them."""
    width = 8 * (1 + data[0] % 32) if data else 8
    body = data[1 : 1 + (len(data) - 1) // width * width] if data else b""
    if not body:
        return
    run = np.frombuffer(body, np.uint8).reshape(-1, width)
    for layout in (RecordLayout(KEY, VALUE), RecordLayout(KEY, VALUE, keys_only=True)):
        batch = RingDecoder(layout, lambda key: bytes(VALUE)).decode([run])
        assert batch is None or len(batch) <= len(data)


def _records() -> list[bytes]:
    import struct

    found = []
    for flags, count, size in ((0, 1, 64), (1, 2, 64), (2, 1, 40), (4, 3, 24)):
        head = struct.pack("<QIIIBBH", 9, 1, 4711, count, 1, flags, 0)
        found.append(bytes([size // 8 - 1]) + (head + bytes(size - 24)) * 3)
    return found


class _Map:
    """A map that holds nothing: what a question does before it meets entries."""

    info = SimpleNamespace(key_size=KEY, value_size=VALUE, name="m")

    def scan(self) -> list[tuple[object, object]]:
        return []

    def lookup(self, key: bytes) -> None:
        del key


@functools.cache
def _control() -> Control:
    lane = SimpleNamespace(
        identity=SimpleNamespace(missing_means_deleted=True, keys=lambda keys: keys),
        sink=lambda batch: len(batch) >= 0,
    )
    view = MapView(
        cast("KernelMap", _Map()), cast("Lane", lane), Role.REPLICATE, lambda: 1 << 62, lambda: True
    )
    return Control("c", "n1", lambda: {"m": view}, cast("Halts", None), Verdicts())


def _question(data: bytes) -> None:
    verb, _, content = data.partition(b"\n")
    question = orjson.loads(content or b"{}")
    subject = f"mapbridge.c.ctl.n1.{verb.decode(errors='replace')}"
    orjson.dumps(asyncio.run(_control().handle(subject, question)))


def _questions() -> list[bytes]:
    common: Answer = {"map": "m", "seed": "12", "buckets": 64, "position": 9}
    return [
        b"digest\n" + orjson.dumps(common),
        b"entries\n" + orjson.dumps(common | {"wanted": [1, 2, 63]}),
        b"repair\n" + orjson.dumps({"map": "m", "keys": pack(np.zeros((2, KEY), np.uint8))}),
        b"verified\n" + orjson.dumps({"map": "m", "drift": 3, "nodes": 2}),
        b"resume\n" + orjson.dumps({"map": "m", "position": 3}),
    ]


def _answer(data: bytes) -> None:
    """What another node answers to `verify` and `diff`."""
    found = orjson.loads(data)
    if isinstance(found, dict):
        read_digest("n2", found, Digest(7, 64))
        read_page("n2", found)


def _answers() -> list[bytes]:
    numbers = pack(np.zeros((64, 8), np.uint8))
    body: Answer = {
        "reached": True,
        "sequence": 3,
        "entries": 0,
        "sums": numbers,
        "counts": numbers,
    }
    page = {"key_size": KEY, "value_size": VALUE, "truncated": False, "keys": "", "values": ""}
    return [orjson.dumps(body | page)]


def _board(data: bytes) -> None:
    subject, _, content = data.partition(b"\n")
    board = SyncBoard(cast("NatsBus", None), "c")
    board.read(subject.decode(errors="replace"), base64.b64encode(content).decode())
    board.read("$KV.MAPBRIDGE-SYNC_c.m.n1", content.decode(errors="replace"))


def _standings() -> list[bytes]:
    body = {"node": "n1", "map": "m", "synced": True, "state": "running", "behind_seconds": 0.5}
    more = body | {"position": 3, "written": 4.5}
    return [b"$KV.MAPBRIDGE-SYNC_c.m.n1\n" + orjson.dumps(more)]


def _reply(data: bytes) -> None:
    """Answers of the broker, and positions in headers of feeds."""
    SourcePlace.parse(data.decode(errors="replace"))
    reply = Reply(data)
    reply.number("state", "last_seq")
    reply.text("message", "data")


def _replies() -> list[bytes]:
    return [
        b'{"type":"x","error":{"code":404,"err_code":10059,"description":"no"}}',
        b'{"state":{"last_seq":9},"message":{"seq":1,"data":"AA=="}}',
        str(SourcePlace("2026-01-01T00:00:00Z", 7, 3)).encode(),
    ]


JSON_ERRORS = (orjson.JSONDecodeError,)  # the same that the callers catch
QUESTION_ERRORS = (ValueError, LookupError, TypeError, ArithmeticError)
TARGETS = {
    "wire": Target(_wire, _messages),
    "item": Target(_item, _items),
    "manifest": Target(lambda data: void(decode_manifest(data)), _manifests),
    "schema": Target(lambda data: void(decode_schema(data)), _schemas),
    "document": Target(_document, _documents, JSON_ERRORS),
    "btf": Target(_btf, _blobs),
    "declared": Target(_declared, _declarations, (DeclaredError,)),
    "where": Target(_where, _filters),
    "ring": Target(_ring, _records),
    "control": Target(_question, _questions, QUESTION_ERRORS),
    "answer": Target(_answer, _answers, JSON_ERRORS),
    "board": Target(_board, _standings),
    "reply": Target(_reply, _replies),
    "http": Target(protocols.request, protocols.requests),
    "headers": Target(protocols.headers, protocols.header_blocks),
}


def void(found: object) -> None:
    """Takes a result that only had to come about."""
    del found
