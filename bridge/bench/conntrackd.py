"""conntrackd, in reliable mode between two network namespaces, for comparison.

Each of two daemons of Debian's package follows the connections of its own namespace and keeps a
cache of the other's. They are asked over their sockets, as ``conntrackd -s`` and ``-e`` do.
"""

from __future__ import annotations

import re
import shutil
import socket
import struct
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bridge.bench.peers import cpu_seconds
from bridge.demo.topology import Topology, command_inside
from bridge.errors import BridgeError, UnavailableError
from bridge.rig import tools
from bridge.rig.claim import Claim

LINK = "sync"
ADDRESSES = ("198.18.1.1", "198.18.1.2")
START_SECONDS_MAX = 10.0
STOP_SECONDS_MAX = 10.0
ASK_SECONDS_MAX = 30.0
POLL_SECONDS = 0.02
HINT = "Debian: apt install conntrackd nftables; in a checkout: make benchmark-tools"
# conntrackd.h: DUMP_EXTERNAL and STATS, the numbers that its own command sends
_DUMP_EXTERNAL, _STATISTICS = 17, 21
_COUNTS = re.compile(r"^connections (created|updated|destroyed):\s+(\d+)", re.MULTILINE)
_ACTIVE = re.compile(r"^current active connections:\s+(\d+)", re.MULTILINE)

# Any rule that asks for the state makes the kernel track the connections of a namespace.
_RULES = """
table inet mapbridge {
    chain in { type filter hook input priority 0; ct state established accept; }
    chain out { type filter hook output priority 0; ct state established accept; }
}
"""
# After the package's example for FTFW; sizes as large as its manual suggests for busy machines.
_CONFIGURATION = """
Sync {{
    Mode FTFW {{
        ResendQueueSize 131072
        ACKWindowSize 300
    }}
    UDP {{
        IPv4_address {own}
        IPv4_Destination_Address {other}
        Port 3780
        Interface {link}
        SndSocketBuffer 24985600
        RcvSocketBuffer 24985600
        Checksum on
    }}
}}
General {{
    HashSize 65536
    HashLimit 1048576
    LogFile off
    LockFile {directory}/{name}.lock
    UNIX {{ Path {directory}/{name}.ctl }}
    NetlinkBufferSize 8388608
    NetlinkBufferSizeMaxGrowth 67108864
    Filter From Kernelspace {{ Protocol Accept {{ TCP }} }}
}}
"""


class ConntrackdError(BridgeError):
    """A daemon that was started here ended, or did not answer."""


def require_conntrackd() -> None:
    """Raises ``UnavailableError`` where the programs are missing."""
    for program in ("conntrackd", "nft"):
        if shutil.which(program) is None:
            raise UnavailableError(f"{program}: not found on PATH", hint=HINT)


@dataclass(frozen=True, slots=True)
class Cache:
    """What a daemon says of a cache."""

    active: int
    events: int  # created, updated and destroyed


class Daemon:
    """One conntrackd in a namespace. ``with`` stops it."""

    def __init__(self, name: str, namespace: str, directory: Path, own: str, other: str) -> None:
        self.name = name
        self._socket = directory / f"{name}.ctl"
        self._log = directory / f"{name}.log"
        configuration = directory / f"{name}.conf"
        configuration.write_text(
            _CONFIGURATION.format(own=own, other=other, link=LINK, directory=directory, name=name)
        )
        command = command_inside(namespace, "conntrackd", "-C", str(configuration))
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._await_ready()

    def internal(self) -> Cache:
        """Connections of its own namespace."""
        return self._cache("internal")

    def external(self) -> Cache:
        """Connections that the other daemon has told it of."""
        return self._cache("external")

    def external_established(self) -> int:
        """How many of the other's connections it lists as established."""
        return self._ask(_DUMP_EXTERNAL).count(b"ESTABLISHED")

    def cpu_seconds(self) -> float:
        return cpu_seconds(self.process.pid)

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        tools.end(self.process, STOP_SECONDS_MAX)

    def _await_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS_MAX
        while True:
            try:
                self._ask(_STATISTICS)
                return
            except OSError as error:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.__exit__()
                    said = self._log.read_text(errors="replace").strip().splitlines()[-1:]
                    raise ConntrackdError(
                        f"conntrackd {self.name}: not ready (got {said or error})", hint=HINT
                    ) from error
                time.sleep(POLL_SECONDS)

    def _cache(self, which: str) -> Cache:
        text = self._ask(_STATISTICS).decode()
        part = text.partition(f"cache {which}:")[2]
        active = _ACTIVE.search(part)
        if active is None:
            raise ConntrackdError(f"conntrackd {self.name}: no {which} cache in its answer")
        counts = [int(count) for _, count in _COUNTS.findall(part)[:3]]
        return Cache(int(active.group(1)), sum(counts))

    def _ask(self, number: int) -> bytes:
        answer = []
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asked:
            asked.settimeout(ASK_SECONDS_MAX)
            asked.connect(str(self._socket))
            asked.sendall(struct.pack("=i", number))
            while piece := asked.recv(1 << 16):
                answer.append(piece)
        return b"".join(answer)


class Pair:
    """A daemon beside the server of ``topology``, and its backup in a namespace of its own."""

    def __init__(self, claim: Claim, topology: Topology, directory: Path) -> None:
        self._namespaces = topology.server_namespace, claim.namespace("backup")
        self._directory = directory
        self._stack = ExitStack()

    def __enter__(self) -> tuple[Daemon, Daemon]:
        """Raises ``UnavailableError``, ``ConntrackdError``."""
        require_conntrackd()
        with self._stack:
            self._connect()
            pairs = zip(("primary", "backup"), self._namespaces, ADDRESSES, strict=True)
            first, second = (
                self._stack.enter_context(
                    Daemon(name, namespace, self._directory, own, *(set(ADDRESSES) - {own}))
                )
                for name, namespace, own in pairs
            )
            self._stack = self._stack.pop_all()
            return first, second

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _connect(self) -> None:
        primary, backup = self._namespaces
        tools.run(["ip", "netns", "add", backup])
        self._stack.callback(tools.run, ["ip", "netns", "delete", backup])
        argv = ["ip", "link", "add", LINK, "netns", primary, "type", "veth"]
        tools.run([*argv, "peer", "name", LINK, "netns", backup])
        for namespace, address in zip(self._namespaces, ADDRESSES, strict=True):
            lines = [f"address add {address}/30 dev {LINK}", "link set lo up"]
            lines += [f"link set {LINK} up", ""]
            inside = command_inside(namespace, "ip", "-batch", "-")
            tools.run(inside, input_text="\n".join(lines))
        rules = command_inside(primary, "nft", "-f", "-")
        tools.run(rules, input_text=_RULES)
