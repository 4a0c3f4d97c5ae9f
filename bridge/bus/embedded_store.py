"""Whether an embedded server can still store.

After a write that failed a nats-server refuses all later ones of that stream until it is started
again, also when the disk has room by then. It says so at ``/healthz`` of its monitoring port only;
clients get no answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import orjson

CHECK_SECONDS = 2.0
ROOM_BYTES = 1 << 20  # less than this is as good as full
_ANSWER_SECONDS = 5.0


async def await_stuck(port: int, directory: Path) -> str:
    """The server's words, once it does not store any more although the disk has room."""
    while True:
        await asyncio.sleep(CHECK_SECONDS)
        words = await _health(port)
        if "write error" in words and _has_room(directory):
            return words


def monitoring_port(ports_file: bytes) -> int:
    """Out of what the server writes of its ports. Raises ``ValueError`` or ``LookupError``."""
    return int(str(orjson.loads(ports_file)["monitoring"][0]).rpartition(":")[2])


async def _health(port: int) -> str:
    """What is wrong, empty when nothing is or the server gives no answer."""
    with contextlib.suppress(OSError, TimeoutError, orjson.JSONDecodeError, AttributeError):
        async with asyncio.timeout(_ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
                answer = await reader.read()  # to its end: the server closes
            finally:
                writer.transport.abort()
        return str(orjson.loads(answer.partition(b"\r\n\r\n")[2]).get("error", ""))
    return ""


def _has_room(directory: Path) -> bool:
    try:
        found = os.statvfs(directory)
    except OSError:
        return False
    return found.f_bavail * found.f_frsize >= ROOM_BYTES
