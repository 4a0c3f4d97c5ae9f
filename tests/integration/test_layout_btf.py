"""Layouts of real maps against bpftool's reading of the same: every field, every value."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from bridge.kernel.features import Capability
from bridge.kernel.headers import ENVIRONMENT_VARIABLE, prepare_headers
from bridge.kernel.map_btf import map_types
from bridge.kernel.maps import create_map, open_map_id
from bridge.kernel.maptypes import MapType
from bridge.kernel.objects import LoadedObject, compile_object, load_object
from bridge.layout.reader import NoLayoutError, read_layout
from bridge.layout.types import leaves
from bridge.resources import bpf_directory, bpf_source
from tests.integration.bpftool_kit import ROWS, fields_agree, fill, map_id_of, values_agree
from tests.integration.kernel_support import BPFFS, needs, no_descriptor_leaks, unique_name

SHAPES = Path(__file__).with_name("programs") / "shapes.bpf.c"

pytestmark = needs(Capability.CAP_BPF, Capability.CAP_NET_ADMIN, Capability.CAP_SYS_ADMIN)


@contextmanager
def program(name: str, tmp_path: Path) -> Iterator[LoadedObject]:
    source = SHAPES if name == "shapes" else bpf_source(f"examples/{name}.bpf.c")
    compiled = compile_object(source, include=[bpf_directory()], cache=tmp_path)
    with load_object(compiled, BPFFS / unique_name("layout")) as loaded:
        yield loaded


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
        fields_agree(loaded.map(map_name), key_fields, value_fields)


@pytest.mark.parametrize(
    ("name", "map_name"),
    [("conntrack", "ct"), ("churn", "churn"), ("shapes", "shapes"), ("shapes", "plain")],
)
def test_values_are_what_bpftool_prints(tmp_path: Path, name: str, map_name: str) -> None:
    random = np.random.default_rng(1009)
    with program(name, tmp_path) as loaded:
        opened = loaded.map(map_name)
        fill(opened, random)
        assert values_agree(opened) == (4 if map_name == "plain" else ROWS)


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
            fields_agree(opened, 6, 4)
    finally:
        made.cleanup()


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
