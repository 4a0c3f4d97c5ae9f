"""One lane of traffic: a process that holds both ends of its share of the connections.

It listens in the server's namespace and connects from the client's: a socket belongs to the
namespace in which it was made, so one thread that changes namespaces in between can hold both ends.
Started by ``traffic.py`` as ``python -m bridge.demo.traffic_worker``; it speaks JSON lines:

    stdin   first line: the fields of ``LaneConfig``; then {"open": n}, {"close": n, "reset": b} or
            {"talk": true}: each open session's client sends a byte, and the server sends it back
            the end of stdin, also by the parent's death, ends the process
    stdout  the fields of ``LaneReport``, whenever they changed, at most every 50 ms

This module imports the standard library only: tens of lanes start at once.
"""

from __future__ import annotations

import collections
import ctypes
import errno
import json
import os
import resource
import select
import socket
import struct
import sys
import time
from dataclasses import asdict, dataclass, field

_CLONE_NEWNET = 0x40000000  # <sched.h>; os.setns exists from Python 3.12 on
_IP_BIND_ADDRESS_NO_PORT = 24  # <linux/in.h>; choose the port at connect, by the whole 4-tuple
_SYN_RETRIES = 3  # 1 + 2 + 4 + 8 s, then ETIMEDOUT: what bounds the time of each connect
_BACKLOG = 4096
_REPORT_SECONDS = 0.05
_LINGER_RESET = struct.pack("ii", 1, 0)  # close() sends RST
_STDIN = 0
_WORD = b"."
_WORDS_MAX = 4096


@dataclass(frozen=True, slots=True)
class LaneConfig:
    """What a lane is told.

    ipv6_every  10: each tenth session uses IPv6; 0: none
    capacity    sessions that fit into the process's descriptors; more wait until others have ended
    window      sessions that may be on their way, opening or closing, at one time
    """

    client_namespace: str
    server_namespace: str
    port: int
    server_ipv4: str
    server_ipv6: str
    client_ipv4: list[str]
    client_ipv6: list[str]
    ipv6_every: int
    capacity: int
    window: int


@dataclass(slots=True)
class LaneReport:
    """What a lane has done so far. A session is open when both of its ends are."""

    open: int = 0
    closed: int = 0  # ended on request, on both ends
    failed: int = 0  # never came about
    lost: int = 0  # ended without request
    answers: int = 0  # bytes that came back to clients
    fatal: str = ""
    errors: dict[str, int] = field(default_factory=dict)


def enter_namespace(name: str) -> None:
    """Moves this thread into a named network namespace (setns(2)). Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(fd, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"setns: {os.strerror(number)}", name)
    finally:
        os.close(fd)


class Lane:
    """Non-blocking sockets of both ends around one epoll; at most ``window`` on their way."""

    def __init__(self, config: LaneConfig) -> None:
        self.config = config
        self.report = LaneReport()
        self._to_open = 0
        self._to_close: collections.deque[bool] = collections.deque()  # one ``reset`` per session
        self._begun = 0
        self._asked_to_end = 0
        self._ended = 0
        self._connecting: dict[int, socket.socket] = {}
        self._clients: collections.deque[socket.socket] = collections.deque()  # open, oldest first
        self._talking: dict[int, socket.socket] = {}  # those of them that have sent
        self._to_talk: collections.deque[socket.socket] = collections.deque()
        self._said = 0
        self._accepted: dict[int, socket.socket] = {}
        self._commands = b""
        self._epoll = select.epoll()
        self._epoll.register(_STDIN, select.EPOLLIN)
        enter_namespace(config.server_namespace)
        self._listeners: dict[int, socket.socket] = {}
        self._listen(socket.AF_INET, config.server_ipv4)
        if config.ipv6_every:
            self._listen(socket.AF_INET6, config.server_ipv6)
        enter_namespace(config.client_namespace)

    def run(self) -> None:
        """Serves until stdin ends."""
        reported, due = "", 0.0
        while True:
            self._connect_some()
            self._close_some()
            self._talk_some()
            now = time.monotonic()
            self.report.open = min(len(self._clients), len(self._accepted))
            text = json.dumps(asdict(self.report))
            if text != reported and now >= due:
                print(text, flush=True)
                reported, due = text, now + _REPORT_SECONDS
            wait = 0.0 if self._can_go_on() else -1.0 if text == reported else _REPORT_SECONDS
            for fd, _ in self._epoll.poll(wait):
                if not self._serve(fd):
                    return

    def _listen(self, family: socket.AddressFamily, address: str) -> None:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setblocking(False)
        listener.bind((address, self.config.port))
        listener.listen(_BACKLOG)
        self._listeners[listener.fileno()] = listener
        self._epoll.register(listener.fileno(), select.EPOLLIN)

    def _serve(self, fd: int) -> bool:
        if fd in self._listeners:
            self._accept_all(self._listeners[fd])
        elif fd in self._connecting:
            self._finish_connect(fd)
        elif fd in self._accepted:
            self._hear(fd)
        elif fd in self._talking:
            self._hear_answer(fd)
        elif fd == _STDIN:
            return self._read_commands()
        return True

    def _read_commands(self) -> bool:
        piece = os.read(_STDIN, 65536)
        if not piece:
            return False
        *lines, self._commands = (self._commands + piece).split(b"\n")
        for line in lines:
            command = json.loads(line)
            self._to_open += command.get("open", 0)
            if command.get("talk"):
                self._to_talk.extend(self._clients)
            self._to_close.extend([command.get("reset", False)] * command.get("close", 0))
        return True

    def _can_go_on(self) -> bool:
        return self._may_connect() or self._may_close() or self._may_talk()

    def _may_connect(self) -> bool:
        held = len(self._clients) + len(self._connecting)
        in_window = len(self._connecting) < self.config.window
        return self._to_open > 0 and in_window and held < self.config.capacity

    def _may_close(self) -> bool:
        in_window = self._asked_to_end - self._ended < self.config.window
        return len(self._to_close) > 0 and len(self._clients) > 0 and in_window

    def _connect_some(self) -> None:
        while self._may_connect():
            self._to_open -= 1
            try:
                self._connect_one()
            except OSError as error:
                self._count_failure("connect", error.errno)

    def _connect_one(self) -> None:
        config, number = self.config, self._begun
        self._begun += 1
        every = config.ipv6_every
        use_ipv6 = every > 0 and number % every == every - 1
        sources = config.client_ipv6 if use_ipv6 else config.client_ipv4
        source = sources[(number // every if use_ipv6 else number) % len(sources)]
        client = socket.socket(socket.AF_INET6 if use_ipv6 else socket.AF_INET, socket.SOCK_STREAM)
        try:
            client.setblocking(False)
            client.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, _SYN_RETRIES)
            client.bind((source, 0))
            server = config.server_ipv6 if use_ipv6 else config.server_ipv4
            answer = client.connect_ex((server, config.port))
            if answer not in (0, errno.EINPROGRESS):
                raise OSError(answer, os.strerror(answer))
        except OSError:
            client.close()
            raise
        self._connecting[client.fileno()] = client
        self._epoll.register(client.fileno(), select.EPOLLOUT)

    def _finish_connect(self, fd: int) -> None:
        client = self._connecting.pop(fd)
        self._epoll.unregister(fd)
        problem = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if problem:
            self._count_failure("connect", problem)
            client.close()
        else:
            self._clients.append(client)

    def _count_failure(self, what: str, number: int | None) -> None:
        self.report.failed += 1
        reason = f"{what}: {os.strerror(number or 0)}"
        self.report.errors[reason] = self.report.errors.get(reason, 0) + 1

    def _accept_all(self, listener: socket.socket) -> None:
        while True:
            try:
                accepted, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            accepted.setblocking(False)
            self._accepted[accepted.fileno()] = accepted
            self._epoll.register(accepted.fileno(), select.EPOLLIN | select.EPOLLRDHUP)

    def _close_some(self) -> None:
        while self._may_close():
            client = self._clients.popleft()
            if self._to_close.popleft():
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            self._asked_to_end += 1
            self._talking.pop(client.fileno(), None)
            client.close()

    def _may_talk(self) -> bool:
        """All at once would overflow the queues on the way, and be sent again much later."""
        return bool(self._to_talk) and self._said - self.report.answers < self.config.window

    def _talk_some(self) -> None:
        while self._may_talk():
            client = self._to_talk.popleft()
            fd = client.fileno()
            if fd < 0:
                continue  # closed meanwhile
            if fd not in self._talking:
                self._talking[fd] = client
                self._epoll.register(fd, select.EPOLLIN)
            client.send(_WORD)
            self._said += 1

    def _hear(self, fd: int) -> None:
        """The client sent, finished or reset."""
        try:
            words = self._accepted[fd].recv(_WORDS_MAX)
            if words:
                self._accepted[fd].send(words)
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._end_accepted(fd)

    def _hear_answer(self, fd: int) -> None:
        try:
            words = self._talking[fd].recv(_WORDS_MAX)
        except BlockingIOError:
            return
        except OSError:
            words = b""
        self.report.answers += len(words)
        if not words:  # the other end is gone; it is what counts the session as lost
            self._epoll.unregister(fd)
            del self._talking[fd]

    def _end_accepted(self, fd: int) -> None:
        self._epoll.unregister(fd)
        self._accepted.pop(fd).close()
        self._ended += 1
        self.report.closed = min(self._ended, self._asked_to_end)
        self.report.lost = self._ended - self.report.closed


def raise_descriptor_limit() -> None:
    """To the hard limit, as far as the system lets us; the parent reckons with the hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> int:
    # byte by byte, so that no command behind the first line is swallowed by a buffer
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(_STDIN, 1)
        if not byte:
            return 0
        line += byte
    try:
        raise_descriptor_limit()
        Lane(LaneConfig(**json.loads(line))).run()
    except BrokenPipeError:  # nobody listens any more
        return 0
    except OSError as error:
        name = f" {error.filename}" if error.filename else ""
        print(json.dumps(asdict(LaneReport(fatal=f"{error.strerror}{name}"))), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
