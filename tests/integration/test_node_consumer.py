"""The consumer in Node.js reads what Python reads, from the same feed."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToDict

from bridge.bus.connection import BusSettings
from bridge.bus.nats_bus import open_bus
from bridge.feed.reading import message_classes
from bridge.resources import schema
from tests.integration.test_cli_feed import configure, feed, finished, stored
from tests.integration.test_cli_schema import SECONDS_MAX
from tests.integration.test_cli_watch import LAYOUT, MESSAGES, ROWS, log

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "node-consumer"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with its packages, in a directory of its own."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("node and npm are not installed")
    directory = tmp_path_factory.mktemp("node") / "consumer"
    shutil.copytree(EXAMPLE, directory)
    done = subprocess.run(
        [npm, "install", "--no-audit", "--no-fund", "--silent"],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"npm cannot install the example's packages: {done.stderr.strip()[:200]}")
    return directory


async def test_node_and_python_read_the_same(installed: Path, tmp_path: Path) -> None:
    async with log(tmp_path) as (url, _):
        await finished(feed(configure(tmp_path, url), "--kind", "typed", "--once"))
        bus = await open_bus(BusSettings("reader", (url,)))
        try:
            messages = await stored(bus, "mapbridge.c.feed.typed.flows")
        finally:
            await bus.close()
        changes = message_classes("flows", LAYOUT)["Changes"]
        expected = [
            MessageToDict(
                change,
                preserving_proto_field_name=True,
                always_print_fields_with_no_presence=True,
            )
            for message in messages
            for change in changes.FromString(message.data).change  # type: ignore[attr-defined]
        ]
        assert len(expected) == MESSAGES * ROWS
        arguments = [
            url,
            "c",
            "flows",
            str(schema("mapbridge/v1/schema.proto")),
            str(len(expected)),
        ]
        done = await asyncio.to_thread(
            subprocess.run,
            ["node", "consumer.js", *arguments],
            cwd=installed,
            capture_output=True,
            text=True,
            timeout=SECONDS_MAX,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        read = [json.loads(line) for line in done.stdout.splitlines()]
        for change in read:
            if change.get("value") is None:  # protobuf's JSON leaves out what is not there
                change.pop("value", None)
        assert read == expected
        assert read[0]["value"]["state"] == "CT_ESTABLISHED"
