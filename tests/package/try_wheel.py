"""What a person does first with an installed mapbridge; run by that installation's own Python.

Two nodes keep a map equal, the server inside the first. Nothing of the checkout is imported.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import bridge
from bridge.kernel.maps import KernelMap, MapType, create_map
from bridge.rig.claim import Claim

DEADLINE_SECONDS = 60.0
ENTRIES = 1_009
PREFIX = Path(sys.prefix)
MAPBRIDGE = PREFIX / "bin" / "mapbridge"


def call(*arguments: str, codes: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run(
        [MAPBRIDGE, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode in codes, f"{arguments}: exit {done.returncode}\n{done.stderr}"
    return done.stdout


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.05)


def look_at_the_installation() -> None:
    assert PREFIX in Path(bridge.__file__).parents, f"not the installed package: {bridge.__file__}"
    assert call("--version") == f"mapbridge {bridge.__version__}\n"
    for place in (
        "man/man1/mapbridge-run.1",
        "bash-completion/completions/mapbridge",
        "zsh/site-functions/_mapbridge",
        "fish/vendor_completions.d/mapbridge.fish",
    ):
        assert (PREFIX / "share" / place).stat().st_size > 0, place
    found = json.loads(call("doctor", "--json", codes=(0, 69, 77)))
    states = {check["name"]: check["state"] for check in found["checks"]}
    assert (states["BCC"], states["nats-server"]) == ("yes", "yes"), states
    sample = Path("sample.toml")
    sample.write_text(call("config", "init"))
    call("check", "--no-environment", "-c", str(sample))


@contextlib.contextmanager
def node(name: str, pin: Path, broker: str) -> Iterator[Path]:
    path = Path(f"{name}.toml")
    path.write_text(
        f'[node]\nname = "{name}"\nstate_dir = "{Path.cwd() / name}"\n[broker]\n{broker}\n'
        f'[[maps]]\nname = "conntrack"\npin = "{pin}"\n'
    )
    with (
        Path(f"{name}.log").open("wb") as log,
        subprocess.Popen([MAPBRIDGE, "run", "-c", str(path)], stdout=log, stderr=log) as process,
    ):
        try:
            yield path
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE_SECONDS) == 0, Path(f"{name}.log").read_text()


def two_nodes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with contextlib.ExitStack() as stack:
        pins = stack.enter_context(Claim.take()).pin_directory
        pins.mkdir()
        maps = []
        for name in ("a", "b"):
            made = stack.enter_context(create_map(MapType.HASH, 16, 24, 4_096, name="try_wheel"))
            made.pin(pins / name)
            maps.append(made)
        first = stack.enter_context(node("a", pins / "a", f'listen = "127.0.0.1:{port}"'))
        call("status", "-c", str(first), "--wait-synced", "all", "--timeout", "60s")
        second = stack.enter_context(node("b", pins / "b", f'url = "nats://127.0.0.1:{port}"'))
        call("status", "-c", str(second), "--wait-synced", "all", "--timeout", "60s")
        for number in range(ENTRIES):
            maps[0].update(number.to_bytes(16, "big"), os.urandom(24))
        until(lambda: entries(maps[1]) == entries(maps[0]), "the entries on node b")
        told = json.loads(call("verify", "conntrack", "-c", str(second), "--json"))
        assert told["equal"] is True
        print(f"two nodes: {ENTRIES} entries equal, {call('status', '-c', str(second))}", end="")


def entries(kernel_map: KernelMap) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for keys, values in kernel_map.scan():
        found |= {k.tobytes(): v.tobytes() for k, v in zip(keys, values, strict=True)}
    return found


def main() -> None:
    look_at_the_installation()
    two_nodes()


if __name__ == "__main__":
    main()
