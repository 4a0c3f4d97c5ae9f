"""Three nats-servers that form a cluster, each in a network namespace of its own.

The namespaces hang on a bridge in a fourth one, and this machine reaches them through it, so that a
server can be cut from clients and peers alike by taking its link down. Deleting the namespaces
removes every link, this machine's own end too. Each server stores on a small tmpfs that can be
filled.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from bridge.bus.server_binary import find_server
from bridge.rig import tools
from bridge.rig.claim import Claim

SERVERS = 3
STORE_BYTES = 2 << 30  # fifty rounds of the load need a third of it
START_SECONDS_MAX = 60.0
POLL_SECONDS = 0.1
CLIENT_PORT, ROUTE_PORT, MONITOR_PORT = 4222, 6222, 8222
_ROUTES = ", ".join(f'"nats://{{net}}.{n + 1}:{ROUTE_PORT}"' for n in range(SERVERS))


class Server:
    """One nats-server. It may be killed and started again; what it stored stays."""

    def __init__(self, number: int, directory: Path, namespace: str, network: str) -> None:
        self.number = number
        self.name = f"s{number + 1}"
        self.address = f"{network}.{number + 1}"
        self.store = directory / self.name / "store"
        self._directory = directory / self.name
        self._namespace = namespace
        self._network = network
        self._process: subprocess.Popen[bytes] | None = None
        self.store.mkdir(parents=True)
        tools.run(["mount", "-t", "tmpfs", "-o", f"size={STORE_BYTES}", "tmpfs", str(self.store)])

    @property
    def url(self) -> str:
        return f"nats://{self.address}:{CLIENT_PORT}"

    def start(self) -> None:
        assert self._process is None or self._process.poll() is not None, "runs already"
        path = self._directory / "nats-server.conf"
        path.write_text(self._config())
        command = ["nsenter", f"--net=/run/netns/{self._namespace}"]
        command += [str(find_server().path), "-c", str(path)]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        if number == signal.SIGKILL:
            self._process.wait()

    def link(self, *, up: bool) -> None:
        """Connect the server to the network, or cut it off."""
        set_link = ["ip", "-n", self._namespace, "link", "set", "eth0", "up" if up else "down"]
        tools.run(set_link)

    def fill(self) -> None:
        """Leave no room for what the server wants to store."""
        with contextlib.suppress(OSError), (self.store / "filler").open("wb") as file:
            while True:
                file.write(bytes(1 << 20))
                file.flush()

    def free(self) -> None:
        (self.store / "filler").unlink(missing_ok=True)

    def wipe(self) -> None:
        """Remove all that the server has stored; it must not run."""
        for entry in self.store.iterdir():
            shutil.rmtree(entry)

    def stored_bytes(self) -> int:
        """What lies in the store, of whatever kind."""
        found = os.statvfs(self.store)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def monitor(self, path: str) -> dict[str, object]:
        """An answer of the server's monitoring port; empty while it gives none."""
        request = f"GET {path} HTTP/1.0\r\n\r\n".encode()
        try:
            with socket.create_connection((self.address, MONITOR_PORT), timeout=1.0) as connection:
                connection.sendall(request)
                data = b""
                while chunk := connection.recv(1 << 16):
                    data += chunk
            answer = json.loads(data.partition(b"\r\n\r\n")[2])
        except (OSError, ValueError):
            return {}
        return answer if isinstance(answer, dict) else {}

    def stream(self, name: str) -> dict[str, Any]:
        """What the server itself says of a stream; empty while it says nothing."""
        details = self.monitor("/jsz?streams=true").get("account_details")
        for account in details if isinstance(details, list) else []:
            for found in account.get("stream_detail", []):
                if found.get("name") == name:
                    return dict(found)
        return {}

    def healthy(self) -> bool:
        return self.monitor("/healthz").get("status") == "ok"

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        tools.run(["umount", str(self.store)])

    def _config(self) -> str:
        return f"""
server_name: {self.name}
host: {self.address}
port: {CLIENT_PORT}
http: {self.address}:{MONITOR_PORT}
log_file: {json.dumps(str(self._directory / "nats-server.log"))}
jetstream {{ store_dir: {json.dumps(str(self.store))}, max_file: {STORE_BYTES} }}
cluster {{
  name: chaos
  host: {self.address}
  port: {ROUTE_PORT}
  routes: [{_ROUTES.format(net=self._network)}]
}}
"""


class ServerCluster:
    """Starts on entering and waits until all servers have joined; removes everything on leaving."""

    def __init__(self, claim: Claim, directory: Path) -> None:
        # Two runs at once must not share a network: 10.x.y.0/24 follows from the run's token.
        token = int(claim.token, 16)
        self._network = f"10.{100 + token % 100}.{token // 100 % 200}"
        self._claim = claim
        self._hub = claim.namespace("hub")
        self._host_link = f"mb{claim.token}"
        self._directory = directory
        self.servers: list[Server] = []

    @property
    def url(self) -> str:
        """All servers, as the configuration takes them."""
        return ",".join(server.url for server in self.servers)

    def leader(self, stream: str) -> Server | None:
        """The server that leads the stream; ``None`` while there is none."""
        for server in self.servers:
            name = server.stream(stream).get("cluster", {}).get("leader")
            if name:
                return next(s for s in self.servers if s.name == name)
        return None

    def part(self, *, apart: bool) -> None:
        """Keep the servers from each other, but not from their clients; or let them meet again."""
        for server in self.servers:
            port = ["ip", "-n", self._hub, "link", "set", "dev", server.name]
            tools.run([*port, "type", "bridge_slave", "isolated", "on" if apart else "off"])

    def await_healthy(self) -> None:
        deadline = time.monotonic() + START_SECONDS_MAX
        while not all(server.healthy() for server in self.servers):
            if time.monotonic() > deadline:
                raise tools.CommandError(f"nats-servers: not ready in {START_SECONDS_MAX:.0f} s")
            time.sleep(POLL_SECONDS)

    def __enter__(self) -> ServerCluster:
        with contextlib.ExitStack() as undo:
            undo.callback(self._close)
            self._lay_network()
            for number in range(SERVERS):
                namespace = self._claim.namespace(f"s{number + 1}")
                server = Server(number, self._directory, namespace, self._network)
                self.servers.append(server)
            for server in self.servers:
                server.start()
            self.await_healthy()
            undo.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        for server in self.servers:
            server.close()

    def _lay_network(self) -> None:
        hub = ["ip", "-n", self._hub]
        tools.run(["ip", "netns", "add", self._hub])
        tools.run([*hub, "link", "add", "br0", "type", "bridge"])
        tools.run([*hub, "link", "set", "br0", "up"])
        host = self._host_link
        tools.run(
            ["ip", "link", "add", host, "type", "veth", "peer", "name", "host", "netns", self._hub]
        )
        tools.run([*hub, "link", "set", "host", "master", "br0", "up"])
        tools.run(["ip", "addr", "add", f"{self._network}.254/24", "dev", host])
        tools.run(["ip", "link", "set", host, "up"])
        for number in range(SERVERS):
            self._join(self._claim.namespace(f"s{number + 1}"), number)

    def _join(self, namespace: str, number: int) -> None:
        port = f"s{number + 1}"
        tools.run(["ip", "netns", "add", namespace])
        inside = ["ip", "-n", namespace]
        link = ["link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", self._hub]
        tools.run([*inside, *link])
        tools.run(["ip", "-n", self._hub, "link", "set", port, "master", "br0", "up"])
        tools.run([*inside, "addr", "add", f"{self._network}.{number + 1}/24", "dev", "eth0"])
        tools.run([*inside, "link", "set", "eth0", "up"])
        tools.run([*inside, "link", "set", "lo", "up"])
