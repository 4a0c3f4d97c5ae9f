"""The HTTP server against clients that are slow, wrong, many, or gone."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from bridge.config.settings import ListenAddress
from bridge.errors import BridgeError
from bridge.health.http import (
    CONNECTIONS_MAX,
    HEAD_BYTES_MAX,
    Answer,
    HttpServer,
    Request,
    json_answer,
)

REQUEST_SECONDS = 0.5
DEADLINE_SECONDS = 10.0


def pages(request: Request) -> Answer:
    if request.path == "/fault":
        raise ZeroDivisionError("a fault")
    return json_answer(HTTPStatus.OK, {"path": request.path, "query": request.query})


FREE = ListenAddress(port=0)


@contextmanager
def serving(listen: ListenAddress | Path = FREE) -> Iterator[HttpServer]:
    server = HttpServer(listen, pages, troubles.append, request_seconds=REQUEST_SECONDS)
    try:
        yield server
    finally:
        server.close()
        troubles.clear()


troubles: list[Exception] = []


def connect(server: HttpServer) -> socket.socket:
    if server.url.startswith("unix:"):
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(DEADLINE_SECONDS)
        client.connect(server.url.removeprefix("unix:"))
        return client
    parts = urlsplit(server.url)
    return socket.create_connection((parts.hostname, parts.port), DEADLINE_SECONDS)


def read(client: socket.socket) -> bytes:
    answer = b""
    while part := client.recv(1 << 16):
        answer += part
    return answer


def ask(server: HttpServer, sent: bytes) -> tuple[int, dict[str, object]]:
    """The code and the JSON of the answer to these bytes."""
    with connect(server) as client:
        client.sendall(sent)
        head, _, body = read(client).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body) if body else {}


def get(server: HttpServer, target: str) -> tuple[int, dict[str, object]]:
    return ask(server, f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


def test_a_request_gets_its_page() -> None:
    with serving() as server:
        assert get(server, "/a?b=c") == (200, {"path": "/a", "query": "b=c"})
        assert ask(server, b"HEAD /a HTTP/1.0\r\n\r\n") == (200, {})
        assert server.statistics.as_dict() == {"answers": {"200": 2}, "turned_away": 0}


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"\r\n\r\n", 400),
        (b"GET\r\n\r\n", 400),
        (b"GET / HTTP/x\r\n\r\n", 400),
        (b"GET / x HTTP/1.1\r\n\r\n", 400),
        (b"GET http://[ HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"POST /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"FETCH /a HTTP/1.1\r\n\r\n", 405),
        (b"GET /a HTTP/1.1\r\n" + b"h: 1\r\n" * 101 + b"\r\n", 431),
        (b"GET /a HTTP/1.1\r\nh: " + b"x" * HEAD_BYTES_MAX + b"\r\n\r\n", 431),
        (b"GET /" + b"x" * (20 * HEAD_BYTES_MAX), 431),
    ],
)
def test_bad_requests_are_told_so(sent: bytes, code: int) -> None:
    with serving() as server:
        got, answer = ask(server, sent)
        assert got == code
        assert "error" in answer
        assert get(server, "/a")[0] == 200


def test_a_head_has_a_time_limit_however_it_trickles() -> None:
    with serving() as server, connect(server) as client:
        began = time.monotonic()

        def trickle() -> None:
            try:
                while time.monotonic() - began < DEADLINE_SECONDS:
                    client.sendall(b"G")
                    time.sleep(0.02)
            except OSError:
                pass

        sender = threading.Thread(target=trickle)
        sender.start()
        try:
            assert b" 408 " in client.recv(1 << 10)
        finally:
            client.close()
            sender.join()
        assert time.monotonic() - began < DEADLINE_SECONDS / 2


def test_more_connections_than_there_is_room_for_are_turned_away() -> None:
    with serving() as server:
        waiting = [connect(server) for _ in range(CONNECTIONS_MAX)]
        try:
            with connect(server) as late:
                assert read(late).startswith(b"HTTP/1.0 503")
        finally:
            for client in waiting:
                client.close()
        assert server.statistics.turned_away == 1
        deadline = time.monotonic() + DEADLINE_SECONDS
        while get(server, "/a")[0] != 200:
            assert time.monotonic() < deadline, "the places are free again"


def test_a_page_that_fails_is_reported() -> None:
    with serving() as server:
        assert get(server, "/fault")[0] == 500
        assert [type(one) for one in troubles] == [ZeroDivisionError]
        assert get(server, "/a")[0] == 200


def test_a_unix_socket_is_for_owner_and_group(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with serving(path) as server:
        assert get(server, "/a")[0] == 200
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        with pytest.raises(BridgeError, match="already in use"):
            HttpServer(path, pages, troubles.append)
        assert get(server, "/a")[0] == 200
    assert not path.exists()


def test_what_a_killed_bridge_left_is_taken_over_and_a_file_is_not(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with serving(path) as server:
        assert get(server, "/a")[0] == 200
    path.write_text("kept")
    with pytest.raises(BridgeError, match="cannot listen there"):
        HttpServer(path, pages, troubles.append)
    assert path.read_text() == "kept"


@pytest.mark.parametrize("host", ["nowhere.invalid", "a..b", "x" * 64])
def test_a_host_that_is_none_is_an_error(host: str) -> None:
    with pytest.raises(BridgeError, match=r"cannot listen there, [a-z]"):
        HttpServer(ListenAddress(host, 0), pages, troubles.append)


def test_an_address_in_use_is_an_error_and_nothing_stays_open() -> None:
    with serving() as server:
        port = urlsplit(server.url).port
        assert port is not None
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counting only
        with pytest.raises(BridgeError, match=f"already in use .got 127.0.0.1:{port}"):
            HttpServer(ListenAddress(port=port), pages, troubles.append)
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
