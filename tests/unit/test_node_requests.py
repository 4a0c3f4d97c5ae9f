"""Asking a running bridge by files."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bridge.errors import BridgeError, UnavailableError
from bridge.node.requests import RequestFailedError, Requests, ask


async def asked(requests: Requests, state: Path, action: str) -> dict[str, object]:
    answer = asyncio.create_task(asyncio.to_thread(ask, state, action, "ct", 20.0))
    while not answer.done():
        requests.look()
        await asyncio.sleep(0.01)
    return answer.result()


async def handle(action: str, name: str) -> dict[str, object]:
    if action == "refuse":
        raise BridgeError("map ct: not now", hint="later")
    return {"did": action, "map": name}


async def test_what_is_asked_is_answered_once_and_leaves_nothing(tmp_path: Path) -> None:
    requests = Requests(tmp_path, handle)
    requests.clear()
    assert await asked(requests, tmp_path, "snapshot") == {"did": "snapshot", "map": "ct"}
    with pytest.raises(RequestFailedError, match="not now") as caught:
        await asked(requests, tmp_path, "refuse")
    assert caught.value.hint == "later"
    assert list((tmp_path / "requests").iterdir()) == []


async def test_what_cannot_be_read_is_refused_and_the_rest_goes_on(tmp_path: Path) -> None:
    requests = Requests(tmp_path, handle)
    requests.clear()
    (tmp_path / "requests" / "x.request").write_bytes(b"\xff")
    assert (await asked(requests, tmp_path, "snapshot"))["did"] == "snapshot"
    assert b"cannot be read" in (tmp_path / "requests" / "x.answer").read_bytes()
    requests.clear()
    assert list((tmp_path / "requests").iterdir()) == []


def test_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="no bridge runs here"):
        ask(tmp_path, "snapshot", "ct", 1.0)
    (tmp_path / "requests").mkdir()
    with pytest.raises(UnavailableError, match=r"did not answer within 0\.3 s"):
        ask(tmp_path, "snapshot", "ct", 0.3)
    assert list((tmp_path / "requests").iterdir()) == []
