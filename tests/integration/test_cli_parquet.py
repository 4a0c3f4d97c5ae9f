"""``replay`` to Parquet, read again by pyarrow itself and compared with the JSON lines."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bridge.bus.connection import BusSettings
from bridge.bus.nats_bus import open_bus
from bridge.bus.protocol import Received
from bridge.bus.schemas import SchemaStore
from bridge.feed.parquet import ParquetFiles, schema_of
from bridge.feed.rows import FieldsOf
from bridge.feed.schema import MapSchema, encode_schema
from bridge.layout.declared import read_declared
from bridge.model import Delta, DeltaBatch, Op, Origin
from tests.integration.test_cli_history import call
from tests.integration.test_cli_watch import MESSAGES, ROWS, batch, log

RICH = """
enum mode { OFF = 1, ON = 5 };
struct inner { __u8 low : 3; __u8 high : 5; __s16 delta; };
struct k { __be32 saddr; __u8 mac[6]; __u16 n; };
struct v { __u64 most; __s32 least; enum mode modes[2]; struct inner inner[3]; char name[8];
  __u8 raw[4]; void *where; };
"""


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Times in microseconds, since Python's have no more."""
    table = pq.read_table(path)
    micro = table.column("time").cast(pa.timestamp("us", tz="UTC"), safe=False)
    rows: list[dict[str, Any]] = table.set_column(0, "time", micro).to_pylist()
    return rows


async def test_a_file_holds_what_the_lines_say(tmp_path: Path) -> None:
    file = tmp_path / "all.parquet"
    async with log(tmp_path) as (url, _):
        lines, _ = await call(url, tmp_path, "replay", "flows")
        _, errors = await call(url, tmp_path, "replay", "flows", "-o", str(file))
    assert f"{MESSAGES * ROWS} changes in {MESSAGES} messages" in errors
    table = pq.read_table(file)
    assert table.schema.field("key").type.field("saddr").type == pa.string()
    assert table.schema.field("key").type.field("port").type == pa.uint16()
    assert table.schema.field("value").type.field("packets").type == pa.uint64()
    told = [json.loads(line) for line in lines]
    for row, line in zip(rows_of(file), told, strict=True):
        assert row.pop("time") == datetime.fromisoformat(line.pop("time"))
        assert row == {"value": None, **line}


async def test_another_layout_gets_a_file_of_its_own(tmp_path: Path) -> None:
    other = read_declared(
        "struct k { __u64 a; }; struct v { __u64 b; __u64 c; };", "struct k", "struct v"
    )
    file = tmp_path / "some"
    async with log(tmp_path) as (url, _):
        bus = await open_bus(BusSettings("c", (url,)))
        try:
            schema = MapSchema.of("c", "flows", other)
            await SchemaStore(bus, "c").put("flows", schema.fingerprint, encode_schema(schema))
            publisher = await bus.publisher(Origin("c", "flows", "c", 7))
            origin = Origin("c", "flows", "c", 7)
            await publisher.publish(Delta(origin, 1, batch(0), layout=schema.fingerprint))
            await publisher.publish(Delta(origin, 1 + ROWS, batch(5), layout=0))
        finally:
            await bus.close()
        options = ("-o", str(file), "--format", "parquet")
        _, errors = await call(url, tmp_path, "replay", "flows", *options)
    assert f"another layout from message {MESSAGES + 1} on: to {file}.2" in errors
    assert pq.read_table(file).num_rows == MESSAGES * ROWS
    second = pq.read_table(f"{file}.2")
    assert second.num_rows == ROWS
    assert second.schema.field("value").type.names == ["b", "c"]
    third = rows_of(Path(f"{file}.3"))
    assert [row["key_hex"] for row in third] == [row.tobytes().hex() for row in batch(5).keys]


def test_every_kind_of_field_keeps_its_value(tmp_path: Path) -> None:
    layout = read_declared(RICH, "struct k", "struct v")
    random = np.random.default_rng(1019)
    keys = random.integers(0, 256, (101, layout.key.size), np.uint8)
    values = random.integers(0, 256, (101, layout.value.size), np.uint8)
    values[:7] %= 6
    made = DeltaBatch.of_entries(Op.UPDATE, keys, values, 1)
    files = ParquetFiles(tmp_path / "x.parquet")
    files.add(Received(1, 0, Delta(Origin("c", "m", "a", 7), 1, made)), layout)
    files.close()
    (path,) = files.paths
    fields = FieldsOf()(layout)
    assert fields is not None
    found = rows_of(path)
    assert [row["key"] for row in found] == list(fields.keys(keys))
    wanted = list(fields.values(values))
    for row in wanted:
        assert isinstance(row, dict)
        modes = row["modes"]
        assert isinstance(modes, list)
        row["modes"] = [str(mode) for mode in modes]
    assert [row["value"] for row in found] == wanted
    assert pq.read_schema(path) == schema_of(layout)
    assert all(isinstance(row["time"], datetime) for row in found)


async def test_what_is_asked_wrongly(tmp_path: Path) -> None:
    async with log(tmp_path) as (url, _):
        _, errors = await call(url, tmp_path, "replay", "flows", "--format", "parquet", code=2)
        assert "needs a file" in errors
        gone = str(tmp_path / "none" / "x.parquet")
        _, errors = await call(url, tmp_path, "replay", "flows", "-o", gone, code=1)
        assert "cannot be written" in errors


def test_without_pyarrow_the_extra_is_named(tmp_path: Path) -> None:
    """In an interpreter that cannot import it."""
    config = tmp_path / "node.toml"
    config.write_text(
        '[node]\nname = "r"\n[broker]\nurl = "nats://127.0.0.1:1"\n'
        '[[maps]]\nname = "flows"\npin = "/sys/fs/bpf/is_not_here"\n'
    )
    script = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from bridge.cli.main import main\n"
        f"sys.argv = ['mapbridge', 'replay', 'flows', '-c', {str(config)!r}, '-o', 'x.parquet']\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 69, done.stderr
    assert "Parquet needs pyarrow" in done.stderr
    assert "pip install 'mapbridge[parquet]'" in done.stderr
    assert "Traceback" not in done.stderr
