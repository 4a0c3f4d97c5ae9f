"""The manifest of a snapshot as bytes and back: JSON, so that a person can read it in the stream.

What comes off the wire is not trusted: ``decode_manifest`` gives a manifest in which every number
is within its bounds, or raises ``WireError``.
"""

from __future__ import annotations

from typing import Final

import orjson

from bridge.model import (
    KEY_SIZE_MAX,
    VALUE_SIZE_MAX,
    Anchor,
    Manifest,
    Origin,
    Part,
)
from bridge.wire.codec import WireError
from bridge.wire.subjects import SubjectError, check_token, escape

VERSION: Final = 1
PARTS_MAX: Final = 1 << 20
_U32_MAX: Final = 0xFFFF_FFFF
_I64_MAX: Final = 0x7FFF_FFFF_FFFF_FFFF
_U64_MAX: Final = 0xFFFF_FFFF_FFFF_FFFF


def encode_manifest(manifest: Manifest) -> bytes:
    """The JSON of ``manifest``; 64-bit numbers that are no counts are hexadecimal text."""
    origin, anchor = manifest.origin, manifest.anchor
    return orjson.dumps(
        {
            "version": VERSION,
            "cluster": origin.cluster,
            "map": origin.map,
            "node": origin.node,
            "number": f"{origin.incarnation:016x}",
            "log": manifest.log,
            "position": manifest.position,
            "anchor": None if anchor is None else [anchor.sequence, anchor.stored_at_ns],
            "slot": manifest.slot,
            "taken_at": manifest.taken_at,
            "clock_offset": manifest.clock_offset,
            "key_size": manifest.key_size,
            "value_size": manifest.value_size,
            "layout": f"{manifest.layout:016x}",
            "first_part": manifest.first_part,
            "digest": f"{manifest.digest:016x}",
            "parts": [[part.rows, part.crc] for part in manifest.parts],
        }
    )


def decode_manifest(data: bytes) -> Manifest:
    """The manifest in ``data``. Raises ``WireError`` with the reason, for any bytes."""
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise WireError("manifest: is no JSON") from error
    if not isinstance(found, dict) or found.get("version") != VERSION:
        raise WireError("manifest: version not known")
    try:
        return _manifest(found)
    except (KeyError, TypeError, ValueError, SubjectError) as error:
        raise WireError(f"manifest: {error}") from error


def _manifest(found: dict[str, object]) -> Manifest:
    anchor, parts = found["anchor"], found["parts"]
    if not isinstance(parts, list) or len(parts) > PARTS_MAX:
        raise ValueError("parts: not a list of a bearable length")
    origin = Origin(
        check_token("cluster", _text(found, "cluster")),
        _text(found, "map"),
        check_token("node", _text(found, "node")),
        int(_text(found, "number"), 16),
    )
    escape(origin.map)
    taken_at = found["taken_at"]
    if not isinstance(taken_at, float | int):
        raise TypeError("taken_at: is no number")
    return Manifest(
        origin=origin,
        log=_text(found, "log"),
        position=_number(found["position"], _U64_MAX),
        anchor=None if anchor is None else _anchor(anchor),
        slot=_number(found["slot"], 1),
        taken_at=float(taken_at),
        clock_offset=_number(found["clock_offset"], _I64_MAX, -_I64_MAX),
        key_size=_number(found["key_size"], KEY_SIZE_MAX, 1),
        value_size=_number(found["value_size"], VALUE_SIZE_MAX, 1),
        layout=int(_text(found, "layout"), 16),
        parts=tuple(_part(part) for part in parts),
        first_part=_number(found["first_part"], _U64_MAX),
        digest=int(_text(found, "digest"), 16),
    )


def _anchor(found: object) -> Anchor:
    sequence, time = _pair(found)
    return Anchor(_number(sequence, _U64_MAX, 1), _number(time, _U64_MAX))


def _part(found: object) -> Part:
    rows, crc = _pair(found)
    return Part(_number(rows, _U32_MAX, 1), _number(crc, _U32_MAX))


def _pair(found: object) -> tuple[object, object]:
    if not isinstance(found, list) or len(found) != 2:
        raise ValueError("a pair of numbers is none")
    return found[0], found[1]


def _text(found: dict[str, object], name: str) -> str:
    text = found[name]
    if not isinstance(text, str):
        raise TypeError(f"{name}: is no text")
    return text


def _number(found: object, most: int, least: int = 0) -> int:
    if not isinstance(found, int) or isinstance(found, bool) or not least <= found <= most:
        raise ValueError(f"a number is not within {least} and {most}")
    return found
