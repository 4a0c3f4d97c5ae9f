"""``feed --otlp`` against a receiver that speaks OTLP over HTTP with OpenTelemetry's messages."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from bridge.bus.connection import BusSettings
from bridge.bus.nats_bus import open_bus
from bridge.bus.protocol import Received
from bridge.feed.otlp import RECORDS_MAX, EndpointError, endpoint_of, log_records
from bridge.layout.fingerprint import fingerprint
from bridge.model import Delta, DeltaBatch, Op, Origin
from tests.bus_kit import eventually
from tests.integration.test_cli_history import call
from tests.integration.test_cli_schema import SECONDS_MAX
from tests.integration.test_cli_watch import LAYOUT, MESSAGES, ROWS, log


class Receiver:
    """What came. The first ``refuse`` requests are answered with 400, and those after ``takes``."""

    def __init__(self, url: str, refuse: int, takes: int) -> None:
        self.url = url
        self.refuse = refuse
        self.takes = takes
        self.refused = 0
        self.paths: set[str] = set()
        self.headers: set[str | None] = set()
        self.requests: list[ExportLogsServiceRequest] = []

    @property
    def records(self) -> list[LogRecord]:
        return [
            record
            for request in self.requests
            for resource in request.resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]


@contextmanager
def receiver(*, refuse: int = 0, takes: int = 1 << 20) -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            found.paths.add(self.path)
            found.headers.add(self.headers["x-key"])
            if found.refused < found.refuse or len(found.requests) >= found.takes:
                found.refused += 1
                self.send_error(400, "not yet")
                return
            request = ExportLogsServiceRequest()
            request.ParseFromString(data)
            found.requests.append(request)
            answer = ExportLogsServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found = Receiver(f"http://127.0.0.1:{server.server_port}", refuse, takes)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()


def plain(value: AnyValue) -> Any:  # noqa: ANN401
    match value.WhichOneof("value"):
        case "kvlist_value":
            return {each.key: plain(each.value) for each in value.kvlist_value.values}
        case "array_value":
            return [plain(each) for each in value.array_value.values]
        case None:
            return None
        case kind:
            return getattr(value, kind)


def line_of(record: LogRecord) -> dict[str, Any]:
    """A record as the JSON feed would have it, without the time."""
    told = {each.key.removeprefix("mapbridge."): plain(each.value) for each in record.attributes}
    body = plain(record.body)
    assert isinstance(body, dict)
    return told | body


async def test_records_are_what_the_json_lines_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=secret")
    async with log(tmp_path) as (url, _):
        lines, _ = await call(url, tmp_path, "replay", "flows")
        with receiver(refuse=2) as collector:
            arguments = ("feed", "flows", "--once", "--json", "--otlp", collector.url)
            said, errors = await call(url, tmp_path, *arguments)
            (counters,) = json.loads("".join(said))["feeds"].values()
            assert (counters["changes"], counters["refused"]) == (MESSAGES * ROWS, 2)
            assert counters["position"] == MESSAGES
            assert errors.count("not taken, trying again") == 1
            assert "400" in errors
            assert (collector.paths, collector.headers) == ({"/v1/logs"}, {"secret"})
            records = list(collector.records)
            told = [json.loads(line) for line in lines]
            for record, line in zip(records, told, strict=True):
                seconds = datetime.fromisoformat(line.pop("time")).timestamp()
                assert record.time_unix_nano == pytest.approx(seconds * 1e9, abs=1000)
                assert record.event_name == "mapbridge.change"
                assert line_of(record) == line
            resource = collector.requests[0].resource_logs[0].resource
            attributes = {each.key: plain(each.value) for each in resource.attributes}
            assert attributes == {"service.name": "mapbridge", "mapbridge.cluster": "c"}
            await call(url, tmp_path, *arguments)
            assert len(collector.records) == len(records), "sent a second time"


async def test_a_feed_that_ends_within_a_message_goes_on_there(tmp_path: Path) -> None:
    """The collector takes the small messages and one request of the large one, then no more."""
    rows = 2 * RECORDS_MAX + 101
    async with log(tmp_path) as (url, _):
        bus = await open_bus(BusSettings("t", (url,)))
        try:
            origin = Origin("c", "flows", "c", 7)
            keys = np.zeros((rows, LAYOUT.key.size), np.uint8)
            values = np.zeros((rows, LAYOUT.value.size), np.uint8)
            values[:, :8] = np.arange(rows, dtype=np.uint64).view(np.uint8).reshape(-1, 8)
            large = DeltaBatch.of_entries(Op.UPDATE, keys, values, 1)
            publisher = await bus.publisher(origin)
            await publisher.publish(Delta(origin, 1, large, layout=fingerprint(LAYOUT)))
        finally:
            await bus.close()
        await call(url, tmp_path, "at", "1", "flows")  # writes the configuration
        command = [
            sys.executable,
            "-m",
            "bridge.cli.main",
            "feed",
            "-c",
            str(tmp_path / "node.toml"),
        ]
        with receiver(takes=MESSAGES + 1) as collector:
            process = await asyncio.create_subprocess_exec(
                *command, "--otlp", collector.url, stdout=subprocess.DEVNULL
            )
            try:

                async def refused() -> bool:
                    return collector.refused > 0

                await eventually(refused)
            finally:
                process.send_signal(signal.SIGTERM)
                assert await asyncio.wait_for(process.wait(), SECONDS_MAX) == 0
            assert len(collector.records) == MESSAGES * ROWS + RECORDS_MAX
            collector.takes = 1 << 20
            await call(url, tmp_path, "feed", "--once", "--otlp", collector.url)
            told = [line_of(record) for record in collector.records[MESSAGES * ROWS :]]
            assert [each["value"]["packets"] for each in told] == list(range(rows))


async def test_what_is_asked_wrongly(tmp_path: Path) -> None:
    async with log(tmp_path) as (url, _):
        for options, said in (
            (("--otlp", "localhost:4318"), "must be an address by HTTP"),
            (("--otlp", "http://a:b@localhost"), "credentials do not belong into the address"),
            (("--otlp", "http://localhost", "--kind", "json"), "--kind and --otlp: choose one"),
        ):
            _, errors = await call(url, tmp_path, "feed", "flows", *options, code=2)
            assert said in errors


def test_addresses_of_collectors() -> None:
    assert endpoint_of("http://c:4318") == "http://c:4318/v1/logs"
    assert endpoint_of("https://c/otlp/v1/logs") == "https://c/otlp/v1/logs"
    with pytest.raises(EndpointError):
        endpoint_of("grpc://c:4317")


def test_bytes_without_a_layout_and_many_records() -> None:
    rows = RECORDS_MAX + 7
    keys = np.arange(4 * rows, dtype=np.uint32).view(np.uint8).reshape(rows, -1)
    made = DeltaBatch.of_entries(Op.UPDATE, keys, keys, 5)
    item = Received(3, 11, Delta(Origin("c", "m", "a", 7), 1, made, clock_offset=100))
    records = list(log_records(item, None, np.arange(rows)))
    assert [record.body["key_hex"] for record in records] == [row.tobytes().hex() for row in keys]
    assert {(record.timestamp, record.observed_timestamp) for record in records} == {(105, 11)}


def test_without_the_sdk_the_extra_is_named(tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text(
        '[node]\nname = "r"\n[broker]\nurl = "nats://127.0.0.1:1"\n'
        '[[maps]]\nname = "flows"\npin = "/sys/fs/bpf/is_not_here"\n'
    )
    arguments = ["mapbridge", "feed", "-c", str(config), "--otlp", "http://127.0.0.1:4318"]
    script = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        f"sys.argv = {arguments!r}\n"
        "from bridge.cli.main import main\nmain()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 69, done.stderr
    assert "pip install 'mapbridge[otlp]'" in done.stderr
    assert "Traceback" not in done.stderr
