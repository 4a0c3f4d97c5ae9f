"""NATS by nats-py, without batches: one JSON message for each change, and no storage.

A server drops what a slow subscriber does not take, so the sender asks for an answer behind each
window of messages and waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import threading
import time
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from benchmarks.peer import Change, Connect, Run, Serve, Target, main

SUBJECT = "benchmark.changes"
WINDOW = 4096
ANSWER_SECONDS_MAX = 60.0
T = TypeVar("T")


class Loop:
    """An event loop on a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def message_of(change: Change) -> bytes:
    add, key, value = change
    return json.dumps({"add": add, "key": key.hex(), "value": value.hex()}).encode()


@contextlib.contextmanager
def serve(target: Target) -> Iterator[str]:
    url = os.environ["NATS_URL"]
    loop = Loop()

    async def take(message: Msg) -> None:
        fields = json.loads(message.data)
        target.apply(fields["add"], bytes.fromhex(fields["key"]), bytes.fromhex(fields["value"]))
        if message.reply:
            await message.respond(b"")

    async def start() -> Client:
        client = await nats.connect(url)
        await client.subscribe(SUBJECT, cb=take)
        await client.flush()
        return client

    client = loop.run(start())
    yield url
    loop.run(client.close())
    loop.close()


@contextlib.contextmanager
def connect(address: str) -> Iterator[Run]:
    loop = Loop()
    client = loop.run(nats.connect(address))

    async def send(changes: Iterator[Change], until: float) -> int:
        count = 0
        while time.monotonic() < until:
            for change in itertools.islice(changes, WINDOW - 1):
                await client.publish(SUBJECT, message_of(change))
            last = message_of(next(changes))
            await client.request(SUBJECT, last, timeout=ANSWER_SECONDS_MAX)
            count += WINDOW
        return count

    yield lambda changes, until: loop.run(send(changes, until))
    loop.run(client.close())
    loop.close()


TRANSPORTS: dict[str, tuple[Serve, Connect]] = {"json": (serve, connect)}

if __name__ == "__main__":
    main(TRANSPORTS)
