"""Messages to systemd, as sd_notify(3) sends them: datagrams to the socket that it names.

Outside of systemd nothing is sent. A message that cannot be sent is dropped and counted: the
supervisor's limits then decide, and no waiting for it ever holds up the bridge.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

_STATUS_LENGTH_MAX = 500


class Notifier:
    """Owns the socket. Methods never block and never raise."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self.lost = 0
        self._socket: socket.socket | None = None
        address = environment.get("NOTIFY_SOCKET", "")
        if not address.startswith(("/", "@")):
            return
        sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        sender.setblocking(False)
        try:
            # An @ stands for the zero byte of the abstract name space (unix(7)).
            sender.connect("\0" + address[1:] if address.startswith("@") else address)
        except OSError:
            self.lost += 1
            sender.close()
            return
        self._socket = sender

    @property
    def active(self) -> bool:
        return self._socket is not None

    def status(self, text: str) -> None:
        """What `systemctl status` shows."""
        self._send("STATUS=" + " ".join(text.split())[:_STATUS_LENGTH_MAX])

    def ready(self, text: str) -> None:
        self._send(f"READY=1\nSTATUS={text}")

    def reloading(self, text: str) -> None:
        """A new configuration is being read; ``ready`` ends it, whatever became of it."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={now}\nSTATUS={text}")

    def watchdog(self) -> None:
        self._send("WATCHDOG=1")

    def extend(self, seconds: float) -> None:
        """Ask for so much more time to start or stop, counted from now."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def stopping(self, text: str) -> None:
        self._send(f"STOPPING=1\nSTATUS={text}")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, message: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.send(message.encode())
        except OSError:
            self.lost += 1
