"""Manifests as bytes and back, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest

from bridge.model import Anchor, Manifest, Origin, Part
from bridge.wire.codec import WireError
from bridge.wire.manifest import decode_manifest, encode_manifest

MANIFEST = Manifest(
    origin=Origin("prod", "ct.v4", "lb-1", 0xDEAD_BEEF_0000_0001),
    log="2026-01-02T03:04:05.6Z",
    position=1 << 40,
    anchor=Anchor(1 << 39, 1_700_000_000_123_456_789),
    slot=1,
    taken_at=1_700_000_000.25,
    clock_offset=1_699_999_000_123_456_789,
    key_size=16,
    value_size=24,
    layout=0xFFFF_FFFF_FFFF_FFFF,
    parts=(Part(23_171, 0xFFFF_FFFF), Part(1, 0)),
    first_part=77,
    digest=0x8000_0000_0000_0000,
)


def test_all_of_it_comes_back() -> None:
    for manifest in (MANIFEST, replace(MANIFEST, anchor=None, parts=())):
        assert decode_manifest(encode_manifest(manifest)) == manifest
    assert MANIFEST.rows == 23_172


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("version", 2),
        ("slot", 2),
        ("position", -1),
        ("position", True),
        ("position", "1"),
        ("key_size", 0),
        ("key_size", 513),
        ("parts", {}),
        ("parts", [[1]]),
        ("parts", [[0, 1]]),
        ("parts", [[1, 1 << 32]]),
        ("anchor", [0, 1]),
        ("anchor", "x"),
        ("number", "xyz"),
        ("number", 5),
        ("cluster", "a.b"),
        ("node", ""),
        ("map", ""),
        ("taken_at", "now"),
        ("digest", None),
    ],
)
def test_what_makes_no_sense_is_refused(field: str, wrong: object) -> None:
    content = orjson.loads(encode_manifest(MANIFEST)) | {field: wrong}
    with pytest.raises(WireError):
        decode_manifest(orjson.dumps(content))


def test_any_bytes_are_refused_in_the_same_way() -> None:
    for data in (b"", b"\xff\xfe", b"[]", b"null", b'{"version": 1}'):
        with pytest.raises(WireError):
            decode_manifest(data)
