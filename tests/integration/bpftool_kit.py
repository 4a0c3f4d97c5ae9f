"""What bpftool says of maps, and how our layouts are held to it: every field, every value."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from bridge.kernel.map_btf import map_types
from bridge.kernel.maps import KernelMap
from bridge.kernel.maptypes import MapType
from bridge.layout.columns import Column, Decoder
from bridge.layout.reader import read_layout
from bridge.layout.types import Kind, Leaf, Type, as_record, leaves

ROWS = 16
WRAPPERS = ("TYPEDEF", "CONST", "VOLATILE", "RESTRICT", "TYPE_TAG")

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


@dataclass(frozen=True, slots=True)
class Place:
    path: str
    bit_offset: int
    bits: int


def bpftool(*arguments: str) -> Json:
    tool = shutil.which("bpftool") or "/usr/sbin/bpftool"
    done = subprocess.run([tool, "-j", *arguments], capture_output=True, check=True, timeout=60)
    found: Json = json.loads(done.stdout, object_pairs_hook=merged)
    return found


def merged(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    """bpftool gives anonymous members the name "": theirs stand among their holder's."""
    found: dict[str, Json] = {}
    for name, value in pairs:
        if name == "" and isinstance(value, dict):
            found.update(value)
        else:
            found[name] = value
    return found


class Types:
    """``bpftool btf dump`` of a map's BTF, walked on its own way."""

    def __init__(self, btf_id: int) -> None:
        dump = bpftool("btf", "dump", "id", str(btf_id))
        assert isinstance(dump, dict)
        listed = dump["types"]
        assert isinstance(listed, list)
        self._types = {entry["id"]: entry for entry in listed if isinstance(entry, dict)}

    def strip(self, type_id: Json) -> dict[str, Json]:
        found = self._types[type_id]
        while found["kind"] in WRAPPERS:
            found = self._types[found["type_id"]]
        return found

    def places(self, type_id: Json, prefix: str = "", base: int = 0) -> Iterator[Place]:
        for member in self._members(type_id):
            offset, bits = member["bits_offset"], member.get("bitfield_size", 0)
            assert isinstance(offset, int)
            assert isinstance(bits, int)
            held, suffix = self.strip(member["type_id"]), ""
            while held["kind"] == "ARRAY":
                held, suffix = self.strip(held["type_id"]), f"{suffix}[]"
            if member["name"] == "(anon)":
                yield from self.places(member["type_id"], prefix, base + offset)
            elif held["kind"] in ("STRUCT", "UNION"):
                inner = f"{prefix}{member['name']}{suffix}."
                yield from self.places(held["id"], inner, base + offset)
            else:
                yield Place(f"{prefix}{member['name']}", base + offset, bits)

    def _members(self, type_id: Json) -> Iterator[dict[str, Json]]:
        found = self.strip(type_id)
        members = found["vars" if found["kind"] == "DATASEC" else "members"]
        assert isinstance(members, list)
        for member in members:
            assert isinstance(member, dict)
            if found["kind"] == "DATASEC":
                variable, offset = self._types[member["type_id"]], member["offset"]
                assert isinstance(offset, int)
                yield {**variable, "bits_offset": offset * 8}
            else:
                yield member

    def size(self, type_id: Json) -> int:
        size = self.strip(type_id)["size"]
        assert isinstance(size, int)
        return size


def fields_agree(opened: KernelMap, key_fields: int, value_fields: int) -> None:
    """Both have so many fields, at the places where bpftool finds them."""
    shown = bpftool("map", "show", "id", str(opened.info.id))
    types, layout = map_types(opened), read_layout(opened)
    assert types is not None
    assert isinstance(shown, dict)
    assert isinstance(shown["btf_id"], int)
    theirs = Types(shown["btf_id"])
    sides = ((layout.key, types.key_id, key_fields), (layout.value, types.value_id, value_fields))
    for found, type_id, count in sides:
        ours = [Place(x.path, x.bit_offset, x.field.bits) for x in leaves(as_record(found, "x"))]
        assert len(ours) == count
        if type_id:  # the keys of a data section have no type
            assert found.size == theirs.size(type_id)
        if found.is_record:
            assert ours == list(theirs.places(type_id))


def values_agree(opened: KernelMap) -> int:
    """All fields of all entries, as bpftool prints them; how many entries."""
    layout = read_layout(opened)
    dump = bpftool("map", "dump", "id", str(opened.info.id))
    keys, values = (np.concatenate(part) for part in zip(*opened.scan(), strict=True))
    assert isinstance(dump, list)
    theirs = {}
    for entry in dump:
        assert isinstance(entry, dict)
        formatted = entry.get("formatted", entry)
        assert isinstance(formatted, dict)
        theirs[key_bytes(entry, layout.key)] = formatted
    assert len(theirs) == len(keys)
    compared = 0
    for role, found, rows in (("key", layout.key, keys), ("value", layout.value, values)):
        decoder = Decoder(found, role)
        columns = decoder.columns(rows)
        for row, key in enumerate(keys):
            shown = theirs[key.tobytes()][role]
            tree = shown if found.is_record else {role: shown}
            for leaf in leaves(decoder.record):
                assert number_at(leaf, columns, row) == their_number(leaf, tree), leaf.path
                compared += 1
    per_row = len(list(leaves(as_record(layout.key, "key")))) + len(
        list(leaves(as_record(layout.value, "value")))
    )
    assert compared == len(keys) * per_row
    return len(keys)


def fill(opened: KernelMap, random: np.random.Generator) -> None:
    """Random bytes, and half of the rows small ones, so that enumerators and text occur."""
    info = opened.info
    if info.type == MapType.ARRAY:
        for index in range(info.max_entries):
            opened.update(index.to_bytes(4, "little"), random.bytes(info.value_size))
        return
    for row in range(ROWS):
        value = random.bytes(info.value_size)
        if row % 2:
            value = bytes(byte % 3 for byte in value)
        opened.update(random.bytes(info.key_size), value)


def key_bytes(entry: dict[str, Json], key: Type) -> bytes:
    raw = entry["key"]
    assert isinstance(raw, list), f"{key.label}: bpftool gave no bytes"
    return bytes(int(str(byte), 16) for byte in raw)


def number_at(leaf: Leaf, columns: dict[str, Column], row: int) -> Json:
    """Our value, in bpftool's terms: without the orders and names that it does not know."""
    inner = leaf.field.type.innermost
    held = columns[leaf.path][row]
    if inner.kind is Kind.BYTES:
        return int.from_bytes(held.tobytes(), "little")
    if inner.kind is Kind.TEXT:
        return list(held.tobytes().split(b"\0")[0])
    if inner.network_order:
        held = held.astype(held.dtype.newbyteorder("=")).byteswap()
    found: Json = held.tolist()
    return wrapped(found, leaf)


def their_number(leaf: Leaf, tree: Json) -> Json:
    return wrapped(descend(tree, leaf.path.split(".")), leaf)


def descend(tree: Json, path: list[str]) -> Json:
    if not path:
        return tree
    name = path[0].rstrip("[]")
    assert isinstance(tree, dict)
    return beneath(tree[name], path[0].count("[]"), path[1:])


def beneath(tree: Json, depth: int, path: list[str]) -> Json:
    if not depth:
        return descend(tree, path)
    assert isinstance(tree, list)
    return [beneath(each, depth - 1, path) for each in tree]


def wrapped(found: Json, leaf: Leaf) -> Json:
    """Enumerators as numbers, all numbers modulo their width."""
    inner = leaf.field.type.innermost
    bits = leaf.field.bits or 8 * (1 if inner.kind is Kind.TEXT else inner.size)
    if isinstance(found, list):
        if inner.kind is Kind.TEXT and 0 in found:
            found = found[: found.index(0)]
        return [wrapped(each, leaf) for each in found]
    if isinstance(found, bool):
        return found
    if isinstance(found, str) and inner.kind is Kind.TEXT:
        return wrapped(list(found.encode()), leaf)
    if isinstance(found, str):
        names = dict(inner.enumerators)
        found = names[found] if found in names else int(found, 0)
    assert isinstance(found, int), f"{leaf.path}: {found!r}"
    return found % (1 << bits)


def map_id_of(fd: int) -> int:
    """The kernel tells it beside the descriptor."""
    (found,) = _ids_in(Path(f"/proc/self/fdinfo/{fd}"))
    return found


def map_ids(pid: int) -> set[int]:
    """The maps that a process holds."""
    found: set[int] = set()
    with contextlib.suppress(OSError):  # it ended
        for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
            with contextlib.suppress(OSError):
                found.update(_ids_in(entry))
    return found


def _ids_in(entry: Path) -> list[int]:
    lines = entry.read_text().splitlines()
    return [int(line.split()[1]) for line in lines if line.startswith("map_id:")]
