"""The Python interface, by the examples in its documentation and on its own."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

import bridge
from bridge.feed.where import WhereError
from tests.integration.test_cli_schema import SECONDS_MAX
from tests.integration.test_cli_watch import MESSAGES, ROWS, log

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "reference" / "python.md"


async def test_the_examples_of_the_documentation(tmp_path: Path) -> None:
    examples = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    numbers = [n for n in range(MESSAGES * ROWS) if n % ROWS != ROWS - 1]  # the others: deletes
    established = [f"{'ab'[n // ROWS % 2]} update 10.0.0.{n} {n}" for n in numbers if n % 3 == 0]
    async with log(tmp_path) as (url, _):
        said = []
        for number, example in enumerate(examples):
            here = example.replace("nats://127.0.0.1:4222", url)
            here = here.replace('cluster="default"', 'cluster="c"')
            here = here.replace("start=1,", 'cluster="c", start=1,')
            path = tmp_path / f"example{number}.py"
            path.write_text(here)
            done = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, str(path)],
                capture_output=True,
                text=True,
                timeout=SECONDS_MAX,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            said.append(done.stdout.splitlines())
    assert said == [established, [str(sum(numbers))]]


async def test_batches_have_a_column_per_field(tmp_path: Path) -> None:
    async with log(tmp_path) as (url, between):
        start = datetime.fromtimestamp(between[2] / 1e9, UTC)
        found = bridge.batches(["flows"], url=url, cluster="c", start=start, follow=False)
        batches = [batch async for batch in found]
        assert [batch.stream_sequence for batch in batches] == [3, 4, 5, 6, 7]
        columns = batches[0].columns()
        assert list(columns) == [
            *("op", "time", "writer", "sequence"),
            *("key.saddr", "key.port", "key.pad[0]", "key.pad[1]"),
            *("value.packets", "value.state"),
        ]
        assert all(column.shape == (ROWS,) for column in columns.values())
        assert columns["value.packets"][:3].tolist() == [22, 23, 24]
        assert columns["time"].dtype == np.dtype("datetime64[ns]")
        labels = batches[0].columns(labels=True)
        assert labels["op"].tolist() == ["update"] * (ROWS - 1) + ["delete"]
        assert labels["value.state"][:3].tolist() == ["CT_NEW", "CT_NEW", "CT_ESTABLISHED"]


async def test_what_comes_now_and_what_goes_wrong(tmp_path: Path) -> None:
    async with log(tmp_path) as (url, _):
        with pytest.raises(WhereError):
            async for _ in bridge.subscribe("flows", url=url, cluster="c", where="x == 1"):
                pass
        with pytest.raises(ValueError, match="start: must be"):
            async for _ in bridge.subscribe("flows", url=url, cluster="c", start="later"):
                pass
        now = bridge.subscribe("flows", url=url, cluster="c", follow=False)
        assert [change async for change in now] == []
        async with contextlib.aclosing(
            bridge.subscribe("flows", url=url, cluster="c", start=MESSAGES)
        ) as changes:
            async for change in changes:
                assert change.stream_sequence == MESSAGES
                assert change.key == {
                    "saddr": f"10.0.0.{(MESSAGES - 1) * ROWS}",
                    "port": 80,
                    "pad": [0, 0],
                }
                assert change.time == datetime.fromtimestamp(change.time_ns / 1e9, UTC)
                break
    with pytest.raises(AttributeError):
        _ = bridge.nothing  # type: ignore[attr-defined]
