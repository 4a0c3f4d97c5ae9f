"""Clients and a server with two routers between them, of which one has the gateways' addresses.

    client namespace                    router namespaces                 server namespace
    lo     198.19.0.1 … .16             front 198.18.0.11   back 198.18.1.11
    front  198.18.0.2, a switch  <--->  front 198.18.0.12   back 198.18.1.12  <--->  back, a switch
                                        198.18.0.1 and 198.18.1.1, which move        198.18.1.2

Whichever router has the moving addresses carries the traffic of both directions. A router may be
lost, with its namespace and what is attached to it, and come back; the ends of the connections
notice nothing but silence. Address ranges: see ``topology``. IPv4 only.
"""

from __future__ import annotations

from types import TracebackType

from bridge.demo.topology import CLIENTS_IPV4, SOURCES, attach, command_inside, join, load_modules
from bridge.demo.tracker import TrackerPins
from bridge.errors import UnavailableError
from bridge.rig import tools
from bridge.rig.claim import Claim

FRONT, BACK = "front", "back"  # the names of links on each side
FRONT_GATEWAY, BACK_GATEWAY = "198.18.0.1", "198.18.1.1"  # what moves
CLIENT_SIDE, SERVER_SIDE = "198.18.0.2", "198.18.1.2"
FIRST_ROUTER = 11  # last part of the first router's own addresses
PREFIX = 24


class Routers:
    """The namespaces; each router is made by ``add`` and may be lost by ``lose``."""

    def __init__(self, claim: Claim, names: tuple[str, ...]) -> None:
        self.client_namespace = claim.namespace("client")
        self.server_namespace = claim.namespace("server")
        self.client_ipv4 = tuple(f"198.19.0.{i}" for i in range(1, SOURCES + 1))
        self.client_ipv6: tuple[str, ...] = ()
        self.server_ipv4, self.server_ipv6 = SERVER_SIDE, ""
        self.ipv6 = False
        self._claim = claim
        self._names = names
        self._created: list[str] = []

    def namespace(self, name: str) -> str:
        return self._claim.namespace(name)

    def add(self, name: str, pins: TrackerPins) -> None:
        """A router, with the pinned programs on what comes from clients and goes to them."""
        namespace, number = self.namespace(name), FIRST_ROUTER + self._names.index(name)
        self._add_namespace(namespace)
        for device, side, end in (
            (FRONT, self.client_namespace, CLIENT_SIDE),
            (BACK, self.server_namespace, SERVER_SIDE),
        ):
            join(namespace, device, side, name)
            tools.run(["ip", "-n", side, "link", "set", "dev", name, "master", device, "up"])
            own = f"{end.rpartition('.')[0]}.{number}/{PREFIX}"
            self._ip(namespace, f"address add {own} dev {device}", f"link set {device} up")
        self._ip(namespace, f"route add {CLIENTS_IPV4} via {CLIENT_SIDE}")
        self._forward(namespace)
        attach(namespace, FRONT, pins.ingress, pins.egress)

    def lose(self, name: str) -> None:
        """As if the machine had lost its power: links, addresses and programs are gone."""
        namespace = self.namespace(name)
        # The kernel takes its time to empty a namespace, and forwards until then.
        for side in (self.client_namespace, self.server_namespace):
            tools.run(["ip", "-n", side, "link", "delete", "dev", name])
        tools.run(["ip", "netns", "delete", namespace])
        self._created.remove(namespace)

    def holds_gateway(self, name: str) -> bool:
        """Whether the traffic goes through this router."""
        if self.namespace(name) not in self._created:
            return False
        shown = tools.run(["ip", "-n", self.namespace(name), "-o", "-4", "addr", "show"])
        return all(f"inet {address}/" in shown for address in (FRONT_GATEWAY, BACK_GATEWAY))

    def __enter__(self) -> Routers:
        tools.require_privileges()
        tools.require_tools("ip", "tc", "nsenter")
        load_modules()
        try:
            self._lay()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._remove()

    def _lay(self) -> None:
        for namespace, device, own in (
            (self.client_namespace, FRONT, CLIENT_SIDE),
            (self.server_namespace, BACK, SERVER_SIDE),
        ):
            self._add_namespace(namespace)
            self._ip(
                namespace,
                f"link add {device} type bridge forward_delay 0",
                f"address add {own}/{PREFIX} dev {device}",
                f"link set {device} up",
            )
        sources = [f"address add {address}/32 dev lo" for address in self.client_ipv4]
        back = f"{SERVER_SIDE.rpartition('.')[0]}.0/{PREFIX}"
        self._ip(self.client_namespace, *sources, f"route add {back} via {FRONT_GATEWAY}")
        self._ip(self.server_namespace, f"route add {CLIENTS_IPV4} via {BACK_GATEWAY}")

    def _add_namespace(self, namespace: str) -> None:
        tools.run(["ip", "netns", "add", namespace])
        self._created.append(namespace)
        self._ip(namespace, "link set lo up")

    def _forward(self, namespace: str) -> None:
        script = "echo 1 > /proc/sys/net/ipv4/ip_forward"
        try:
            tools.run(command_inside(namespace, "sh", "-c", script))
        except tools.CommandError as error:
            raise UnavailableError(
                "network namespace: may not forward (/proc/sys is read-only)",
                hint="run outside of a container, or in one with --privileged",
            ) from error

    def _remove(self) -> None:
        while self._created:
            tools.run(["ip", "netns", "delete", self._created[-1]])
            self._created.pop()

    @staticmethod
    def _ip(namespace: str, *commands: str) -> None:
        text = "\n".join([*commands, ""])
        tools.run(command_inside(namespace, "ip", "-batch", "-"), input_text=text)
