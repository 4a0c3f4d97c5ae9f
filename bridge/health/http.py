"""A small HTTP/1.0 server for machines that ask how the daemon is, in threads of its own.

Bounds: ``CONNECTIONS_MAX`` at a time, others are told to come back; a head of ``HEAD_BYTES_MAX`` in
``REQUEST_SECONDS``, however it trickles in; as long again for the answer to be taken. No body is
read, one request a connection. All of it is counted.
"""

from __future__ import annotations

import contextlib
import http.server
import io
import os
import socket
import socketserver
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

import orjson

from bridge.config.settings import ListenAddress
from bridge.errors import BridgeError

CONNECTIONS_MAX = 16
HEAD_BYTES_MAX = 8 << 10
REQUEST_SECONDS = 5.0
LINGER_SECONDS = 0.5  # for what a refused client still sends, or its answer would be cut off
LINGER_BYTES_MAX = 256 << 10
SOCKET_MODE = 0o660
_HEAD_END = b"\r\n\r\n"
_BUSY = b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request gets."""

    status: HTTPStatus
    body: bytes
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """``path`` and ``query`` as they were sent; ``accept``: the header."""

    path: str
    query: str
    accept: str


def json_answer(status: HTTPStatus, content: object) -> Answer:
    return Answer(status, orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n")


Pages = Callable[[Request], Answer]
Trouble = Callable[[Exception], None]


@dataclass(slots=True)
class HttpStatistics:
    """Answers by code; connections turned away; both only grow."""

    answers: Counter[int] = field(default_factory=Counter)
    turned_away: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answered(self, code: int) -> None:
        with self._lock:
            self.answers[code] += 1

    def as_dict(self) -> dict[str, object]:
        with self._lock:
            answers = {str(code): count for code, count in sorted(self.answers.items())}
        return {"answers": answers, "turned_away": self.turned_away}


class HttpServer:
    """Listens from its making to ``close``. ``trouble`` gets what a page raised; it may be called
    from any thread.
    """

    def __init__(
        self,
        listen: ListenAddress | Path,
        pages: Pages,
        trouble: Trouble,
        *,
        request_seconds: float = REQUEST_SECONDS,
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        """``begin`` is called by the server's thread, before it makes others.

        Raises ``BridgeError`` when the address cannot be had.
        """
        self.statistics = HttpStatistics()
        self._path = listen if isinstance(listen, Path) else None
        try:
            self._server = _Server(_listener(listen), pages, trouble, self.statistics)
        except (OSError, UnicodeError) as error:
            raise BridgeError(
                f"http.listen: cannot listen there, {_reason(error)} (got {listen})",
                hint="give http.listen another address, or end what uses this one",
            ) from error
        self._server.request_seconds = request_seconds
        self._inode = _inode(self._path) if self._path is not None else None
        self._begin = begin
        self._thread = threading.Thread(target=self._serve, name="http", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        self._begin()
        self._server.serve_forever(0.1)

    @property
    def url(self) -> str:
        if self._path is not None:
            return f"unix:{self._path}"
        host, port = self._server.socket.getsockname()[:2]
        return f"http://{ListenAddress(host, port)}"

    def close(self) -> None:
        """Stop listening. Answers under way are not waited for; ``REQUEST_SECONDS`` ends them."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        # Not the socket of a bridge that has taken the place meanwhile.
        if self._path is not None and _inode(self._path) == self._inode:
            self._path.unlink(missing_ok=True)


class _Server(socketserver.ThreadingMixIn, socketserver.BaseServer):
    daemon_threads = True
    block_on_close = False
    request_seconds = REQUEST_SECONDS

    def __init__(
        self, listener: socket.socket, pages: Pages, trouble: Trouble, statistics: HttpStatistics
    ) -> None:
        super().__init__(listener.getsockname(), _Handler)
        self.socket = listener
        self.pages, self.trouble, self.statistics = pages, trouble, statistics
        self._room = threading.BoundedSemaphore(CONNECTIONS_MAX)

    def fileno(self) -> int:
        return self.socket.fileno()

    def get_request(self) -> tuple[socket.socket, object]:
        return self.socket.accept()

    def server_close(self) -> None:
        self.socket.close()

    def process_request(self, request: object, client_address: object) -> None:
        assert isinstance(request, socket.socket)
        if self._room.acquire(blocking=False):
            try:
                super().process_request(request, client_address)
            except RuntimeError:  # no thread to be had
                self._room.release()
                self._turn_away(request)
        else:
            self._turn_away(request)

    def process_request_thread(self, request: object, client_address: object) -> None:
        try:
            super().process_request_thread(request, client_address)  # type: ignore[arg-type]
        finally:
            self._room.release()

    def _turn_away(self, request: socket.socket) -> None:
        self.statistics.turned_away += 1
        with contextlib.suppress(OSError):
            request.setblocking(False)
            request.send(_BUSY)
        request.close()

    def shutdown_request(self, request: object) -> None:
        """Close without cutting off the answer that a client which still sends is to read."""
        assert isinstance(request, socket.socket)
        deadline, left = time.monotonic() + LINGER_SECONDS, LINGER_BYTES_MAX
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_WR)
            while left > 0 and (seconds := deadline - time.monotonic()) > 0:
                request.settimeout(seconds)
                got = len(request.recv(1 << 14))
                if not got:
                    break
                left -= got
        request.close()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away in the middle is its own affair."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    # Answers to a request without a version get a status line too.
    default_request_version = "HTTP/1.0"

    def setup(self) -> None:
        self.connection = self.request
        self.wfile = io.BytesIO()
        self.close_connection = True

    def finish(self) -> None:
        self.connection.settimeout(self.server.request_seconds)
        self.connection.sendall(self.wfile.getvalue())  # type: ignore[attr-defined]

    def handle(self) -> None:
        self.requestline, self.command = "", ""
        self.request_version = self.default_request_version
        head, fault = self._read_head()
        if fault is not None:
            self.send_error(fault)
            return
        if not head:
            return
        self.rfile = io.BufferedReader(io.BytesIO(head))
        self.raw_requestline = self.rfile.readline()
        if self.parse_request():
            self._answer(self._page())
        elif not self.wfile.getbuffer():  # type: ignore[attr-defined]
            self.send_error(HTTPStatus.BAD_REQUEST)

    def _read_head(self) -> tuple[bytes, HTTPStatus | None]:
        """Everything up to the empty line, or what is wrong with it; nothing: nothing came."""
        deadline, head = time.monotonic() + self.server.request_seconds, bytearray()
        while (end := head.find(_HEAD_END)) < 0:
            if len(head) >= HEAD_BYTES_MAX:
                return b"", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            seconds = deadline - time.monotonic()
            try:
                self.connection.settimeout(max(seconds, 0.001))
                part = self.connection.recv(HEAD_BYTES_MAX - len(head))
            except TimeoutError:
                return b"", HTTPStatus.REQUEST_TIMEOUT
            if not part:
                return b"", HTTPStatus.BAD_REQUEST if head else None
            head += part
        return bytes(head[: end + len(_HEAD_END)]), None

    def _page(self) -> Answer:
        if self.command not in ("GET", "HEAD"):
            return json_answer(
                HTTPStatus.METHOD_NOT_ALLOWED, {"error": "only GET and HEAD are answered"}
            )
        try:
            parts = urlsplit(self.path)
        except ValueError:
            return json_answer(HTTPStatus.BAD_REQUEST, {"error": "path: cannot be read"})
        try:
            accept = str(self.headers.get("Accept", ""))
            return self.server.pages(Request(parts.path, parts.query, accept))
        except Exception as error:  # noqa: BLE001 - reported; an asking client must not end the thread
            self.server.trouble(error)
            return json_answer(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": "a fault of the bridge"})

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class finds wrong with a request."""
        del explain
        status = HTTPStatus(code)
        self._answer(json_answer(status, {"error": (message or status.phrase).lower()[:200]}))

    def _answer(self, answer: Answer) -> None:
        self.server.statistics.answered(int(answer.status))
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("Cache-Control", "no-store")
        for name, value in answer.headers:
            self.send_header(name, value)
        if answer.status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def version_string(self) -> str:
        return "mapbridge"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Silent: answers are counted."""


def _reason(error: OSError | UnicodeError) -> str:
    if isinstance(error, UnicodeError):
        return "no such host name can be"
    if isinstance(error, socket.gaierror) or not error.errno:  # numbers of its own
        return (error.strerror or str(error)).lower()
    return os.strerror(error.errno).lower()


def _listener(listen: ListenAddress | Path) -> socket.socket:
    if isinstance(listen, Path):
        return _unix_listener(listen)
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    return socket.create_server((listen.host, listen.port), family=family, backlog=CONNECTIONS_MAX)


def _unix_listener(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_left_over(path)
        # In force from the first moment on, which a later chmod is not.
        old = os.umask(0o777 & ~SOCKET_MODE)
        try:
            listener.bind(str(path))
        finally:
            os.umask(old)
        listener.listen(CONNECTIONS_MAX)
    except OSError:
        listener.close()
        raise
    return listener


def _remove_left_over(path: Path) -> None:
    """A socket that nobody listens at was left by a bridge that was killed."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)


def _inode(path: Path) -> int | None:
    try:
        return path.lstat().st_ino
    except OSError:
        return None
