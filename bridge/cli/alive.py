"""Whether the bridge of this node lives, for container engines and other supervisors.

With `[http]` the daemon is asked what a supervisor would ask, `/livez`: it answers from its first
moment on, while it still waits for a broker too. Without, the age of what it last wrote says it.
"""

from __future__ import annotations

import http.client
import socket
from pathlib import Path

import orjson

from bridge.config import Config, ListenAddress
from bridge.errors import BridgeError, Exit

ANSWER_SECONDS_MAX = 5.0
ANSWER_BYTES_MAX = 64 << 10
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # listens everywhere: ask on this machine
_HINT = "see whether it runs, and its log"


class NotAliveError(BridgeError):
    """The daemon does not answer, or says that it hangs."""

    exit_code = Exit.UNAVAILABLE


def ask_livez(config: Config) -> dict[str, object]:
    """The answer of `/livez`. Raises ``NotAliveError``; needs ``config.http.listen``."""
    status, body = get(config, "/livez")
    try:
        answer = orjson.loads(body)
    except ValueError:
        answer = body[:80]
    if status != http.HTTPStatus.OK or not isinstance(answer, dict):
        raise NotAliveError(
            f"bridge at {config.http.listen}: does not live (got {answer})", hint=_HINT
        )
    return answer


def get(config: Config, path: str, bytes_max: int = ANSWER_BYTES_MAX) -> tuple[int, bytes]:
    """What the daemon answers on a path. Raises ``NotAliveError``; needs ``config.http.listen``."""
    listen = config.http.listen
    assert listen is not None, "the caller looks first"
    connection = _Connection(listen)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read(bytes_max)
    except (OSError, http.client.HTTPException) as error:
        reason = str(error).lower() or type(error).__name__
        raise NotAliveError(f"bridge at {listen}: no answer ({reason})", hint=_HINT) from error
    finally:
        connection.close()


class _Connection(http.client.HTTPConnection):
    """To a TCP address or to a Unix socket."""

    def __init__(self, listen: ListenAddress | Path) -> None:
        self._path = listen if isinstance(listen, Path) else None
        host, port = ("localhost", 80) if isinstance(listen, Path) else (listen.host, listen.port)
        super().__init__(_ANY.get(host, host), port, timeout=ANSWER_SECONDS_MAX)

    def connect(self) -> None:
        if self._path is None:
            super().connect()
            return
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
