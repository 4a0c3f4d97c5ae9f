"""What stands around a content: HTTP requests to the daemon, and headers of messages."""

from __future__ import annotations

import asyncio
import base64
import functools
import socket
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from bridge.bus.consumer import OrderedConsumer
from bridge.bus.feeds import SourcePlace
from bridge.bus.link import Client, Link, stored_header
from bridge.health.http import HttpStatistics, _Handler, _Server
from bridge.wire.subjects import HEADER_SOURCE
from tests.unit.test_health_pages import SYNCED, Node

if TYPE_CHECKING:
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription as RawSubscription

INBOX = "_INBOX.n1"
HTTP_HEADERS = {
    *("Server", "Date", "Content-Type", "Content-Length", "Cache-Control", "Allow"),
    *("Content-Security-Policy", "X-Content-Type-Options", "Referrer-Policy"),
}
ANSWER_BYTES_MAX = 64 << 10


@functools.cache
def _server() -> _Server:
    def trouble(error: Exception) -> None:
        raise error  # no request may make a page fail

    made = SimpleNamespace(
        pages=Node(ct=SYNCED, lb=SYNCED).pages,
        trouble=trouble,
        statistics=HttpStatistics(),
        request_seconds=5.0,
    )
    return cast("_Server", made)


def request(data: bytes) -> None:
    """Whatever comes gets one well-formed answer, with headers that the daemon chose."""
    client, daemon = socket.socketpair()
    with client:
        with daemon:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            _Handler(daemon, "", _server())
        answer = b"".join(iter(lambda: client.recv(ANSWER_BYTES_MAX), b""))
    assert bool(answer) == bool(data)
    if not answer:
        return
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    version, code, _ = first.split(" ", 2)
    assert (version, len(code), code.isdecimal()) == ("HTTP/1.0", 3, True)
    headers = dict(line.split(": ", 1) for line in lines)
    assert headers.keys() <= HTTP_HEADERS
    assert len(body) in (int(headers["Content-Length"]), 0)


def requests() -> list[bytes]:
    accept = b"Accept: application/openmetrics-text; version=1.0.0; escaping=values; q=0.5\r\n"
    return [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"HEAD /livez HTTP/1.0\r\n\r\n",
        b"GET /readyz?lag=5s&map=ct&map=x%2d1 HTTP/1.1\r\nConnection: keep-alive\r\n\r\n",
        b"GET /metrics?name[]=x HTTP/1.1\r\n" + accept + b"\r\n",
        b"GET http://a:9/status HTTP/1.1\r\nAccept: text/plain\r\n folded\r\n\r\n",
        b"POST /cluster HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
    ]


async def _unheard(error: Exception) -> None:
    del error


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


def _consumer(link: Link) -> OrderedConsumer:
    consumer = OrderedConsumer(
        link, api="$JS.API", stream="S", name="c", filters=["f"],
        take=lambda raw: None, room=lambda: 1 << 20,
    )  # fmt: skip
    consumer._raw = cast("RawSubscription", SimpleNamespace())  # as if it listened
    return consumer


def headers(data: bytes) -> None:
    """A line with where an answer would go, and the headers, as a client and a store hold them."""
    reply, _, block = data.partition(b"\n")
    client = Client()
    client._error_cb = _unheard
    found = _loop().run_until_complete(client._process_headers(block))
    assert found is None or all(isinstance(each, str) for pair in found.items() for each in pair)
    for subject in (f"{INBOX}.1", "mapbridge.c.delta.m.n1"):
        link = SimpleNamespace(max_payload=1 << 20, new_inbox=lambda: INBOX)
        consumer = _consumer(cast("Link", link))
        message = SimpleNamespace(
            subject=subject, reply=reply.decode(errors="replace"), headers=found, data=b"x"
        )
        consumer._receive(cast("Msg", message))
        assert consumer.doubted == bool(consumer.reason)
    for stored in (base64.b64encode(block).decode(), block.decode(errors="replace")):
        SourcePlace.parse(stored_header(stored, HEADER_SOURCE))


def header_blocks() -> list[bytes]:
    place = b"$JS.ACK.S.c.1.7.1.1700000000000000000.0\n"
    domain = b"$JS.ACK.hub.account.S.c.1.7.1.1700000000000000000.0.x\n"
    return [
        place + b"NATS/1.0\r\nNats-Msg-Id: n1:m:0000000000000007:1\r\nMapbridge-Version: 1\r\n\r\n",
        domain + b"NATS/1.0\r\nMapbridge-Source: 7/3/2026-01-01T00:00:00Z\r\n\r\n",
        b"\nNATS/1.0 409 Message Size Exceeds MaxBytes\r\nNats-Pending-Messages: 1\r\n\r\n",
        b"\nNATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 3\r\n\r\n",
        b"\nNATS/1.0 404\r\n\r\n",
    ]
