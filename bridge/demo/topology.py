"""Two network namespaces joined by a veth pair: clients on one side, a server on the other.

    client namespace                                    server namespace
    lo    198.19.0.1 … .16, fd6d:6270:1::1 … ::10       wire 198.18.0.1, fd6d:6270::1
    wire  198.18.0.2, fd6d:6270::2  <--- veth --->      clsact: the connection tracker

The clients' addresses stand on ``lo`` behind one gateway address, and both gateways' link addresses
are fixed, so that a burst of new connections waits for no ARP or neighbour discovery. The address
ranges are those reserved for benchmarks (RFC 2544) and for private use (RFC 4193); they exist in
the namespaces only.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType

from bridge.errors import UnavailableError
from bridge.rig import tools
from bridge.rig.claim import Claim

DEVICE = "wire"
SOURCES = 16
SERVER_IPV4, GATEWAY_IPV4 = "198.18.0.1", "198.18.0.2"
SERVER_IPV6, GATEWAY_IPV6 = "fd6d:6270::1", "fd6d:6270::2"
CLIENTS_IPV4, CLIENTS_IPV6 = "198.19.0.0/16", "fd6d:6270:1::/64"
SERVER_MAC, CLIENT_MAC = "02:6d:62:00:00:01", "02:6d:62:00:00:02"
LINK_SECONDS_MAX = 10.0
_POLL_SECONDS = 0.01


class Topology:
    """The two namespaces. ``create`` first, then ``attach`` the tracker's pinned programs."""

    device = DEVICE

    def __init__(self, claim: Claim, *, sources: int = SOURCES) -> None:
        if not 1 <= sources <= 250:
            raise ValueError(f"sources: must be 1 to 250 (got {sources})")
        self.client_namespace = claim.namespace("client")
        self.server_namespace = claim.namespace("server")
        self.client_ipv4 = tuple(f"198.19.0.{i}" for i in range(1, sources + 1))
        self.client_ipv6 = tuple(f"fd6d:6270:1::{i:x}" for i in range(1, sources + 1))
        self.server_ipv4 = SERVER_IPV4
        self.server_ipv6 = SERVER_IPV6
        self.ipv6 = Path("/proc/sys/net/ipv6").exists()
        self._created: list[str] = []

    def create(self) -> None:
        """Raises PrivilegeError, UnavailableError (tool or kernel feature) or CommandError."""
        tools.require_privileges()
        tools.require_tools("ip", "tc", "nsenter")
        load_modules()
        try:
            for namespace in (self.client_namespace, self.server_namespace):
                tools.run(["ip", "netns", "add", namespace])
                self._created.append(namespace)
            self._join()
            if self.ipv6:
                self._enable_ipv6()
            self._configure(self.client_namespace, self._client_commands())
            self._configure(self.server_namespace, self._server_commands())
            self._await_link()
        except BaseException:
            self.remove()
            raise

    def attach(self, ingress: Path, egress: Path) -> None:
        """Runs the pinned tc programs on what enters and leaves the server's end of the wire."""
        attach(self.server_namespace, DEVICE, ingress, egress)

    def detach(self) -> None:
        """Takes the tracker's programs off again; the map stays as it is."""
        _tc(self.server_namespace, "qdisc", "del", "dev", DEVICE, "clsact")

    def remove(self) -> None:
        """Deletes both namespaces, and with them the wire and what is attached to it."""
        while self._created:
            tools.run(["ip", "netns", "delete", self._created[-1]])
            self._created.pop()

    def __enter__(self) -> Topology:
        self.create()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def _join(self) -> None:
        join(self.client_namespace, DEVICE, self.server_namespace, DEVICE, CLIENT_MAC, SERVER_MAC)

    def _configure(self, namespace: str, commands: list[str]) -> None:
        text = "\n".join(["link set lo up", f"link set {DEVICE} up", *commands, ""])
        tools.run(command_inside(namespace, "ip", "-batch", "-"), input_text=text)

    def _client_commands(self) -> list[str]:
        commands = [f"address add {GATEWAY_IPV4}/30 dev {DEVICE}"]
        commands += [f"address add {address}/32 dev lo" for address in self.client_ipv4]
        commands += [f"neighbor add {SERVER_IPV4} lladdr {SERVER_MAC} dev {DEVICE} nud permanent"]
        if self.ipv6:
            commands += [f"address add {GATEWAY_IPV6}/126 dev {DEVICE} nodad"]
            commands += [f"address add {address}/128 dev lo nodad" for address in self.client_ipv6]
            commands += [
                f"neighbor add {SERVER_IPV6} lladdr {SERVER_MAC} dev {DEVICE} nud permanent"
            ]
        return commands

    def _server_commands(self) -> list[str]:
        commands = [
            f"address add {SERVER_IPV4}/30 dev {DEVICE}",
            f"neighbor add {GATEWAY_IPV4} lladdr {CLIENT_MAC} dev {DEVICE} nud permanent",
            f"route add {CLIENTS_IPV4} via {GATEWAY_IPV4}",
        ]
        if self.ipv6:
            commands += [
                f"address add {SERVER_IPV6}/126 dev {DEVICE} nodad",
                f"neighbor add {GATEWAY_IPV6} lladdr {CLIENT_MAC} dev {DEVICE} nud permanent",
                f"route add {CLIENTS_IPV6} via {GATEWAY_IPV6}",
            ]
        return commands

    def _enable_ipv6(self) -> None:
        """Hosts and container engines may give new namespaces IPv6 switched off."""
        script = 'for f in /proc/sys/net/ipv6/conf/*/disable_ipv6; do echo 0 > "$f" || exit 1; done'
        for namespace in (self.client_namespace, self.server_namespace):
            try:
                tools.run(command_inside(namespace, "sh", "-c", script))
            except tools.CommandError:
                # /proc/sys is read-only in some containers; IPv4 alone serves as well
                self.ipv6 = False

    def _await_link(self) -> None:
        deadline = time.monotonic() + LINK_SECONDS_MAX
        for namespace in (self.client_namespace, self.server_namespace):
            shown = command_inside(namespace, "ip", "link", "show", DEVICE)
            while "state UP" not in tools.run(shown):
                if time.monotonic() > deadline:
                    raise tools.CommandError(f"{DEVICE}: link not up (got {LINK_SECONDS_MAX:g} s)")
                time.sleep(_POLL_SECONDS)


def join(
    namespace: str,
    device: str,
    other: str,
    other_device: str,
    address: str = "",
    other_address: str = "",
) -> None:
    """A veth pair between two namespaces; with link addresses of one's own where they are given."""
    argv = ["ip", "link", "add", device, "netns", namespace]
    argv += ["address", address] * bool(address)
    argv += ["type", "veth", "peer", "name", other_device, "netns", other]
    argv += ["address", other_address] * bool(other_address)
    try:
        tools.run(argv)
    except tools.CommandError as error:
        if "Unknown device type" in str(error) or "not supported" in str(error):
            raise UnavailableError(
                "kernel: no veth devices", hint="modprobe veth, or a kernel with CONFIG_VETH"
            ) from error
        raise


def attach(namespace: str, device: str, ingress: Path, egress: Path) -> None:
    """Runs the pinned tc programs on what enters and leaves the device."""
    _tc(namespace, "qdisc", "replace", "dev", device, "clsact")
    for hook, pin in (("ingress", ingress), ("egress", egress)):
        program = ("bpf", "direct-action", "object-pinned", str(pin))
        _tc(namespace, "filter", "add", "dev", device, hook, *program)


def command_inside(namespace: str, *argv: str) -> list[str]:
    """A command line that runs ``argv`` in the namespace.

    Not ``-netns`` or ``ip netns exec``: these mount a sysfs of their own over /sys, so that the
    pins under /sys/fs/bpf are out of sight, and they refuse to work in a chroot.
    """
    return ["nsenter", f"--net=/run/netns/{namespace}", *argv]


def load_modules() -> None:
    """Where the kernel does not load them by itself; built-in ones make this do nothing."""
    if shutil.which("modprobe") is None:
        return
    for module in ("veth", "bridge", "sch_ingress", "cls_bpf"):
        # the answer says nothing: modprobe also fails for what is built in and unlisted
        subprocess.run(["modprobe", "-q", module], check=False, capture_output=True, timeout=30)


def _tc(namespace: str, *arguments: str) -> None:
    try:
        tools.run(command_inside(namespace, "tc", *arguments))
    except tools.CommandError as error:
        if "qdisc kind is unknown" in str(error):
            raise UnavailableError(
                "kernel: no clsact qdisc",
                hint="modprobe sch_ingress cls_bpf, or a kernel with CONFIG_NET_CLS_BPF",
            ) from error
        raise
