"""Ways to write changes for readers, measured side by side on the same changes.

What goes in are a batch's columns, as they come out of the log; what comes out are bytes, and from
these again what a reader in Python works with. Times are of the processor, per change.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import orjson
from google.protobuf import any_pb2
from google.protobuf.message import Message

from bridge.feed.encoders import JsonEncoder
from bridge.feed.reading import message_classes
from bridge.feed.typed import TypedEncoder
from bridge.layout.columns import Decoder
from bridge.layout.declared import read_declared
from bridge.layout.render import Renderer
from bridge.layout.types import Layout
from bridge.model import Delta, DeltaBatch, Op, Origin
from bridge.wire.codec import decode, encode

BATCH_ROWS = 1024
SEED = 1009
_URL = "type.googleapis.com/mapbridge.ct"

TYPES = """
enum ct_state {
  CT_SYN_SENT = 1, CT_SYN_RECEIVED, CT_ESTABLISHED, CT_FIN_WAIT, CT_CLOSING
} __attribute__((packed));
struct ct_key { __be32 address[2][4]; __be16 port[2]; __u8 family, protocol, zero[2]; };
struct ct_value {
  __u64 changed_ns; __u32 bytes[2], isn[2], fin_end[2]; __u32 changes;
  enum ct_state state; __u8 flags, initiator, zero;
};
"""


@dataclass(frozen=True, slots=True)
class Measured:
    """One codec; microseconds of processor time per change, best of all rounds."""

    name: str
    encode_us: float
    decode_us: float
    bytes_per_change: float
    encoded_per_second: float
    decoded_per_second: float


@dataclass(frozen=True, slots=True)
class _Codec:
    name: str
    encode: Callable[[Delta], list[bytes]]
    decode: Callable[[bytes], object]


def measure(changes: int, rounds: int) -> list[Measured]:
    """Every codec over the same changes, in batches of ``BATCH_ROWS``."""
    layout = read_declared(TYPES, "struct ct_key", "struct ct_value")
    deltas = _changes(changes)
    threshold = gc.get_threshold()
    gc.set_threshold(50_000, 20, 20)  # as `mapbridge feed` does
    try:
        return [_measured(codec, deltas, changes, rounds) for codec in _codecs(layout)]
    finally:
        gc.set_threshold(*threshold)


def _measured(codec: _Codec, deltas: Sequence[Delta], changes: int, rounds: int) -> Measured:
    encoding, decoding, size = [], [], 0
    for _ in range(rounds):
        spent = [0.0, 0.0]
        size = 0
        for delta in deltas:
            began = time.process_time()
            parts = codec.encode(delta)
            between = time.process_time()
            for part in parts:
                codec.decode(part)
            spent[0] += between - began
            spent[1] += time.process_time() - between
            size += sum(map(len, parts))
        encoding.append(spent[0])
        decoding.append(spent[1])
    encoded, decoded = (min(times) / changes for times in (encoding, decoding))
    return Measured(
        codec.name,
        round(encoded * 1e6, 3),
        round(decoded * 1e6, 3),
        round(size / changes, 1),
        round(1 / encoded),
        round(1 / decoded),
    )


def _codecs(layout: Layout) -> list[_Codec]:
    classes = message_classes("ct", layout)
    lines, typed = JsonEncoder(), TypedEncoder(layout)
    key, value = Renderer(layout.key, "key"), Renderer(layout.value, "value")
    change, changes = classes["Change"], classes["Changes"]

    def json_in_any(delta: Delta) -> list[bytes]:
        batch = delta.batch
        return [
            any_pb2.Any(
                type_url=_URL, value=orjson.dumps({"op": op, "key": k, "value": v})
            ).SerializeToString()
            for op, k, v in zip(
                batch.ops.tolist(), key.listed(batch.keys), value.listed(batch.values), strict=True
            )
        ]

    def json_lines(delta: Delta) -> list[bytes]:
        return lines.lines(delta, layout, 1, np.arange(len(delta.batch)))

    def typed_feed(delta: Delta) -> list[bytes]:
        return [typed.changes(delta, np.arange(len(delta.batch)), 1)[0]]

    return [
        _Codec(
            "json-in-any",
            json_in_any,
            lambda data: orjson.loads(any_pb2.Any.FromString(data).value),
        ),
        _Codec("typed-each", _EachTyped(layout, classes).encode, change.FromString),
        _Codec("json-feed", json_lines, orjson.loads),
        _Codec("typed-feed", typed_feed, changes.FromString),
        _Codec("columns", lambda delta: [encode(delta)], _read_columns(layout)),
    ]


class _EachTyped:
    """A message object per change, field by field, serialised one by one."""

    def __init__(self, layout: Layout, classes: dict[str, type[Message]]) -> None:
        self._key, self._value = Decoder(layout.key, "key"), Decoder(layout.value, "value")
        self._classes = classes

    def encode(self, delta: Delta) -> list[bytes]:
        batch = delta.batch
        key_class, value_class = self._classes["Key"], self._classes["Value"]
        change_class = self._classes["Change"]
        keys, values = self._key.columns(batch.keys), self._value.columns(batch.values)
        addresses = batch.keys[:, :32].reshape(-1, 2, 16)
        keys_listed = {
            name: c.tolist() for name, c in keys.items() if name not in ("address", "zero")
        }
        keys_listed["address"] = [[one.tobytes() for one in pair] for pair in addresses]
        keys_listed["zero"] = [row.tobytes() for row in batch.keys[:, 38:40]]
        values_listed = {name: column.tolist() for name, column in values.items()}
        rows = zip(
            batch.ops.tolist(),
            zip(*keys_listed.values(), strict=True),
            zip(*values_listed.values(), strict=True),
            batch.left.tolist(),
            strict=True,
        )
        return [
            change_class(
                operation=op,
                key=key_class(**dict(zip(keys_listed, key, strict=True))),
                value=value_class(**dict(zip(values_listed, value, strict=True))),
                time_ns=left,
                node=delta.origin.node,
            ).SerializeToString()
            for op, key, value, left in rows
        ]


def _read_columns(layout: Layout) -> Callable[[bytes], object]:
    key, value = Decoder(layout.key, "key"), Decoder(layout.value, "value")

    def read(data: bytes) -> object:
        batch = decode(data).batch
        return key.columns(batch.keys), value.columns(batch.values)

    return read


def _changes(count: int) -> list[Delta]:
    """Updates of connections: IPv4 addresses, ports, states."""
    random = np.random.default_rng(SEED)
    found = []
    for first in range(0, count, BATCH_ROWS):
        rows = min(BATCH_ROWS, count - first)
        keys = np.zeros((rows, 40), np.uint8)
        keys[:, 0:4] = [198, 18, 0, 1]
        keys[:, 16:18] = [198, 19]
        keys[:, 18:20] = random.integers(0, 256, (rows, 2), np.uint8)
        keys[:, 32:36] = random.integers(0, 256, (rows, 4), np.uint8)
        keys[:, 36], keys[:, 37] = 4, 6
        values = random.integers(0, 256, (rows, 40), np.uint8)
        values[:, 5:8] = 0
        values[:, 32:40] = 0
        values[:, 32] = random.integers(1, 9, rows)
        values[:, 36] = random.integers(1, 6, rows)
        batch = DeltaBatch.of_entries(Op.UPDATE, keys, values, 10**18 + first)
        found.append(Delta(Origin("c", "ct", "node-a", 7), first + 1, batch))
    return found
