"""Layouts of real maps against bpftool's reading of the same: every field, every value."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest

from bridge.kernel.features import Capability
from bridge.kernel.headers import ENVIRONMENT_VARIABLE, prepare_headers
from bridge.kernel.map_btf import map_types
from bridge.kernel.maps import KernelMap, create_map, open_map_id
from bridge.kernel.maptypes import MapType
from bridge.kernel.objects import LoadedObject, compile_object, load_object
from bridge.layout.columns import Column, Decoder
from bridge.layout.reader import NoLayoutError, read_layout
from bridge.layout.types import Kind, Leaf, Type, as_record, leaves
from bridge.resources import bpf_directory, bpf_source
from tests.integration.kernel_support import BPFFS, needs, no_descriptor_leaks, unique_name

SHAPES = Path(__file__).with_name("programs") / "shapes.bpf.c"
ROWS = 16
WRAPPERS = ("TYPEDEF", "CONST", "VOLATILE", "RESTRICT", "TYPE_TAG")

pytestmark = needs(Capability.CAP_BPF, Capability.CAP_NET_ADMIN, Capability.CAP_SYS_ADMIN)

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


@dataclass(frozen=True, slots=True)
class Place:
    path: str
    bit_offset: int
    bits: int


@contextmanager
def program(name: str, tmp_path: Path) -> Iterator[LoadedObject]:
    source = SHAPES if name == "shapes" else bpf_source(f"examples/{name}.bpf.c")
    compiled = compile_object(source, include=[bpf_directory()], cache=tmp_path)
    with load_object(compiled, BPFFS / unique_name("layout")) as loaded:
        yield loaded


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
        members = self.strip(type_id)["members"]
        assert isinstance(members, list)
        for member in members:
            assert isinstance(member, dict)
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

    def size(self, type_id: Json) -> int:
        size = self.strip(type_id)["size"]
        assert isinstance(size, int)
        return size


@pytest.mark.parametrize(
    ("name", "map_name", "key_fields", "value_fields"),
    [
        ("conntrack", "ct", 5, 9),
        ("churn", "churn", 2, 3),
        ("churn", "churn_writers", 1, 10),
        ("shapes", "shapes", 5, 38),
    ],
)
def test_fields_are_where_bpftool_finds_them(
    tmp_path: Path, name: str, map_name: str, key_fields: int, value_fields: int
) -> None:
    with program(name, tmp_path) as loaded:
        opened = loaded.map(map_name)
        shown = bpftool("map", "show", "id", str(opened.info.id))
        types, layout = map_types(opened), read_layout(opened)
        assert types is not None
        assert isinstance(shown, dict)
        assert isinstance(shown["btf_id"], int)
        theirs = Types(shown["btf_id"])
    sides = ((layout.key, types.key_id, key_fields), (layout.value, types.value_id, value_fields))
    for found, type_id, count in sides:
        assert found.size == theirs.size(type_id)
        ours = [Place(x.path, x.bit_offset, x.field.bits) for x in leaves(as_record(found, "x"))]
        assert len(ours) == count
        if found.is_record:
            assert ours == list(theirs.places(type_id))


@pytest.mark.parametrize(
    ("name", "map_name"),
    [("conntrack", "ct"), ("churn", "churn"), ("shapes", "shapes"), ("shapes", "plain")],
)
def test_values_are_what_bpftool_prints(tmp_path: Path, name: str, map_name: str) -> None:
    random = np.random.default_rng(1009)
    with program(name, tmp_path) as loaded:
        opened = loaded.map(map_name)
        layout = read_layout(opened)
        fill(opened, random)
        dump = bpftool("map", "dump", "id", str(opened.info.id))
        keys, values = (np.concatenate(part) for part in zip(*opened.scan(), strict=True))
    assert isinstance(dump, list)
    theirs = {}
    for entry in dump:
        assert isinstance(entry, dict)
        formatted = entry.get("formatted", entry)
        assert isinstance(formatted, dict)
        theirs[key_bytes(entry, layout.key)] = formatted
    assert len(theirs) == len(keys) == (4 if map_name == "plain" else ROWS)
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


BCC_TOOL = """
struct ipv4_key_t { u32 pid; u32 saddr; u32 daddr; u16 lport; u16 dport; char comm[16]; };
struct val_t { u64 bytes; u64 ts; struct { u8 tries; u8 seen : 3; } more[2]; };
BPF_HASH(ipv4_send, struct ipv4_key_t, struct val_t, 64);
int count(struct __sk_buff *packet) {
  struct ipv4_key_t key = {};
  struct val_t value = {};
  ipv4_send.update(&key, &value);
  return 0;
}
"""


def test_a_map_that_bcc_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the manner of BCC's tcptop; BCC describes its maps in BTF of its own making."""
    bcc = pytest.importorskip("bcc")
    folder = prepare_headers(tmp_path)
    if folder is not None:
        monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(folder))
    made = bcc.BPF(text=BCC_TOOL.encode())
    try:
        made.load_func(b"count", bcc.BPF.SCHED_CLS)
        with open_map_id(map_id_of(made[b"ipv4_send"].map_fd)) as opened:
            shown = bpftool("map", "show", "id", str(opened.info.id))
            types, layout = map_types(opened), read_layout(opened)
        assert types is not None
        assert isinstance(shown, dict)
        assert isinstance(shown["btf_id"], int)
        theirs = Types(shown["btf_id"])
    finally:
        made.cleanup()
    for found, type_id, count in (
        (layout.key, types.key_id, 6),
        (layout.value, types.value_id, 4),
    ):
        ours = [Place(x.path, x.bit_offset, x.field.bits) for x in leaves(found)]
        assert len(ours) == count
        assert ours == list(theirs.places(type_id))


def map_id_of(fd: int) -> int:
    """The kernel tells it beside the descriptor."""
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("map_id:"))


def test_a_map_without_types_says_so() -> None:
    with create_map(MapType.HASH, 4, 8, 7, name="layout_none") as made, no_descriptor_leaks():
        assert map_types(made) is None
        with pytest.raises(NoLayoutError, match=r"layout_none \(id \d+\): has no BTF"):
            read_layout(made)


def test_a_data_section_has_its_variables_as_fields(tmp_path: Path) -> None:
    with program("conntrack", tmp_path) as loaded:
        names = [path.name for path in (loaded.directory / "maps").iterdir()]
        (section,) = [name for name in names if name.endswith("bss")]
        opened = loaded.map(section)
        with no_descriptor_leaks():
            layout = read_layout(opened)
    assert [(x.path, x.bit_offset, x.field.size) for x in leaves(layout.value)] == [
        ("ct_untracked", 0, 8)
    ]
