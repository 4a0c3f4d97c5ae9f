"""``schema`` and ``watch`` on a real map: its fields, its messages, its changes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

from bridge.bus.connection import BusSettings
from bridge.bus.embedded import EmbeddedServer
from bridge.bus.nats_bus import open_bus
from bridge.bus.streams import LogSettings
from bridge.cli.main import cli
from bridge.errors import Exit
from bridge.kernel.features import Capability
from bridge.kernel.maps import KernelMap, create_map
from bridge.kernel.maptypes import MapType
from bridge.kernel.objects import LoadedObject, compile_object, load_object
from bridge.model import U8, Delta, DeltaBatch, Op, Origin
from bridge.resources import bpf_source
from tests.integration.kernel_support import BPFFS, needs, unique_name

pytestmark = needs(Capability.CAP_BPF, Capability.CAP_NET_ADMIN, Capability.CAP_SYS_ADMIN)

SECONDS_MAX = 60.0
CHANGES = 5
IPV4 = bytes([198, 18, 0, 1]).ljust(16, b"\0") + bytes([198, 19, 0, 7]).ljust(16, b"\0")
IPV6 = bytes.fromhex("fd6d6270000000000000000000000001fd6d6270000100000000000000000007")
PORTS = (8000).to_bytes(2, "big") + (40_001).to_bytes(2, "big")
KEYS = [IPV4 + PORTS + bytes([4, 6, 0, 0]), IPV6 + PORTS + bytes([6, 6, 0, 0])]
VALUE = (10**12 + 7).to_bytes(8, "little") + bytes(24) + (3).to_bytes(4, "little") + b"\x03\0\x01\0"
KEY_FIELDS = {
    "address": ["198.18.0.1", "198.19.0.7"],
    "port": [8000, 40001],
    "family": 4,
    "protocol": 6,
    "zero": [0, 0],
}


@pytest.fixture(scope="module")
def conntrack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedObject]:
    cache = tmp_path_factory.mktemp("cache")
    compiled = compile_object(
        bpf_source("examples/conntrack.bpf.c"), defines=["CT_ENTRIES_MAX=1024"], cache=cache
    )
    with load_object(compiled, BPFFS / unique_name("schema")) as loaded:
        yield loaded


@pytest.fixture
def ct(conntrack: LoadedObject) -> KernelMap:
    return conntrack.map("ct")


def configure(directory: Path, map_id: int, broker: str = "") -> str:
    path = directory / "node.toml"
    path.write_text(
        f'[node]\nname = "a"\ncluster = "c"\nstate_dir = "{directory}/state"\n'
        f'[broker]\n{broker}\n[[maps]]\nname = "flows"\nid = {map_id}\n'
    )
    return str(path)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, [*arguments])


def test_show_lists_every_field(ct: KernelMap, tmp_path: Path) -> None:
    result = call("schema", "show", "flows", "-c", configure(tmp_path, ct.info.id))
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"map flows (id {ct.info.id}): hash, layout 0x")
    assert lines[2] == "key: struct ct_key, 40 bytes"
    assert lines[4].split() == ["address", "0", "32", "__be32[2][4]", "address"]
    assert lines[5].split() == ["port", "32", "4", "__be16[2]", "network", "order"]
    assert len(lines) == 2 + 2 + 5 + 1 + 2 + 9


def test_show_as_json(conntrack: LoadedObject, ct: KernelMap) -> None:
    by_id = json.loads(call("schema", "show", "--id", str(ct.info.id), "--json").stdout)
    by_pin = call("schema", "show", "--pin", str(conntrack.map_pin("ct")), "--json")
    assert json.loads(by_pin.stdout) == by_id
    assert (by_id["map"], by_id["id"], by_id["type"]) == ("ct", ct.info.id, "hash")
    assert len(by_id["fingerprint"]) == 16
    fields = {field["path"]: field for field in by_id["value"]["fields"]}
    assert fields["state"] == {
        "path": "state",
        "offset": 36,
        "size": 1,
        "bit_offset": 288,
        "bits": 0,
        "type": "enum ct_state",
        "kind": "enum",
        "dimensions": [],
        "typedefs": [],
        "signed": False,
        "network_order": False,
        "enumerators": {
            "CT_SYN_SENT": 1,
            "CT_SYN_RECEIVED": 2,
            "CT_ESTABLISHED": 3,
            "CT_FIN_WAIT": 4,
            "CT_CLOSING": 5,
        },
        "form": "plain",
    }


def test_proto_is_taken_by_protoc(ct: KernelMap, tmp_path: Path) -> None:
    source, out = tmp_path / "ct.proto", tmp_path / "ct.bin"
    said = call("schema", "proto", "--id", str(ct.info.id))
    assert (said.exit_code, said.stderr) == (0, "")
    source.write_text(said.stdout)
    include = resources.files("grpc_tools") / "_proto"
    arguments = ["protoc", f"--proto_path={tmp_path}", f"--proto_path={include}"]
    assert protoc.main([*arguments, f"--descriptor_set_out={out}", str(source)]) == 0
    (file,) = FileDescriptorSet.FromString(out.read_bytes()).file
    names = {message.name: [f.name for f in message.field] for message in file.message_type}
    assert names["Key"] == ["address", "port", "family", "protocol", "zero"]
    assert names["Value"][0] == "changed_ns"
    assert len(names["Value"]) == 9


@pytest.mark.parametrize("verb", ["show", "proto"])
def test_what_is_asked_wrongly(verb: str, tmp_path: Path) -> None:
    with create_map(MapType.HASH, 4, 8, 7, name="schema_none") as made:
        config = configure(tmp_path, made.info.id)
        without = call("schema", verb, "--id", str(made.info.id))
        assert without.exit_code == Exit.UNAVAILABLE
        assert "has no BTF" in without.stderr
        for arguments, reason in (
            ([], "name one map"),
            (["flows"], "give its file with -c"),
            (["flows", "--id", "1"], "name one map"),
            (["other", "-c", config], "it has: flows"),
        ):
            wrong = call("schema", verb, *arguments)
            assert (wrong.exit_code, reason in wrong.stderr) == (Exit.USAGE, True), wrong.stderr


def changes(map_name: str) -> Delta:
    """Two updates, a delete, and two updates more: a prime number of changes."""
    keys = np.frombuffer(b"".join(KEYS[row % 2] for row in range(CHANGES)), np.uint8)
    values = np.frombuffer(VALUE * CHANGES, np.uint8).reshape(CHANGES, -1).copy()
    ops = np.full(CHANGES, Op.UPDATE, np.uint8)
    ops[2] = Op.DELETE
    values[2] = 0
    times = np.arange(CHANGES, dtype=np.uint64) + np.uint64(1_000_000_000)
    none: U8 = keys.reshape(CHANGES, -1)
    batch = DeltaBatch(
        ops, none, values, np.zeros(CHANGES, np.uint64), times, np.zeros(CHANGES, np.uint32)
    )
    return Delta(Origin("c", map_name, "b", 7), 1, batch)


@asynccontextmanager
async def published(directory: Path) -> AsyncIterator[str]:
    """A server with the changes in its log; its address."""
    async with EmbeddedServer(directory / "server") as server:
        bus = await open_bus(BusSettings("b", (server.url,)))
        try:
            await bus.ensure_log("c", LogSettings())
            delta = changes("flows")
            await (await bus.publisher(delta.origin)).publish(delta)
            yield server.url
        finally:
            await bus.close()


async def watched(directory: Path, map_id: int, *options: str) -> tuple[list[str], str]:
    """What ``watch`` prints of the changes: lines, and standard error."""
    async with published(directory) as url:
        config = configure(directory, map_id, f'url = "{url}"')
        command = [sys.executable, "-m", "bridge.cli.main", "watch", "flows", "-c", config]
        done = await asyncio.to_thread(
            subprocess.run,
            [*command, "--from-start", "--count", str(CHANGES), *options],
            capture_output=True,
            text=True,
            timeout=SECONDS_MAX,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == CHANGES
    return lines, done.stderr


async def test_watch_shows_fields(ct: KernelMap, tmp_path: Path) -> None:
    lines, errors = await watched(tmp_path, ct.info.id)
    assert errors == ""
    value = (
        "changed_ns=1000000000007 bytes=[0, 0] isn=[0, 0] fin_end=[0, 0] changes=3 "
        "state=CT_ESTABLISHED flags=0 initiator=1"
    )
    key = "address=[198.18.0.1, 198.19.0.7] port=[8000, 40001] family=4 protocol=6"
    assert lines[0] == f"00:00:01.000000  b  update  {key}  ->  {value}"
    assert lines[2] == f"00:00:01.000000  b  delete  {key}"
    assert "address=[fd6d:6270::1, fd6d:6270:1::7] port=[8000, 40001] family=6" in lines[1]


async def test_watch_as_json_has_fields_beside_bytes(ct: KernelMap, tmp_path: Path) -> None:
    lines, errors = await watched(tmp_path, ct.info.id, "--json")
    assert errors == ""
    objects = [json.loads(line) for line in lines]
    assert [each["key"] for each in objects] == [KEYS[row % 2].hex() for row in range(CHANGES)]
    assert objects[0]["value"] == VALUE.hex()
    assert objects[0]["fields"]["key"] == KEY_FIELDS
    assert objects[0]["fields"]["value"]["state"] == "CT_ESTABLISHED"
    assert objects[2]["fields"] == {"key": KEY_FIELDS}


@pytest.mark.parametrize("options", [("--hex",), ("--hex", "--json")])
async def test_watch_in_hexadecimal(
    ct: KernelMap, tmp_path: Path, options: tuple[str, ...]
) -> None:
    lines, errors = await watched(tmp_path, ct.info.id, *options)
    assert errors == ""
    assert all(KEYS[row % 2].hex() in line for row, line in enumerate(lines))
    assert not any("198.18.0.1" in line for line in lines)


async def test_watch_without_types_falls_back_and_says_why(tmp_path: Path) -> None:
    with create_map(MapType.HASH, 40, 40, 7, name="schema_none") as made:
        lines, errors = await watched(tmp_path, made.info.id)
    assert errors.startswith("fields of this machine are not known: map schema_none")
    assert KEYS[0].hex() in lines[0]


async def test_watch_of_a_change_of_other_sizes_falls_back(
    conntrack: LoadedObject, tmp_path: Path
) -> None:
    (section,) = (p.name for p in (conntrack.directory / "maps").iterdir() if p.name != "ct")
    lines, errors = await watched(tmp_path, conntrack.map(section).info.id)
    assert errors == ""
    assert KEYS[0].hex() in lines[0]
