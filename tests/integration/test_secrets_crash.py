"""Crashes that are forced where secrets are at hand: nothing that is left of them shows any."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bridge.errors import Exit
from bridge.kernel.features import Capability
from bridge.model import Role
from bridge.rig.broker import ServerThread
from bridge.rig.nodes import CLUSTER
from tests.access_kit import Operator, user_key, write_secret
from tests.integration.kernel_support import needs, pin_folder
from tests.node_kit import Rig, fill, mapbridge, until

pytestmark = needs(Capability.CAP_BPF, Capability.CAP_SYS_ADMIN)

PLANTED = "pl4nted-s3cret"
# Python runs it first of all in the node's process. Each fault says everything that its place
# knows of the broker: the worst that a library could put into an exception.
FAULTS = """
import os, threading
from pathlib import Path
from bridge.bus import connection
from bridge.health.pages import Pages
from bridge.node.node import Node

known = {}

def fail():
    raise RuntimeError(f"forced: {known}")

def failing(where, place, name, fault):
    old = getattr(place, name)
    def patched(self, *arguments):
        if where == os.environ["FAULT"] and Path(os.environ["FAULT_HERE"]).exists():
            fault()
        return old(self, *arguments)
    setattr(place, name, patched)

def in_a_thread():
    threading.Thread(target=fail, name="forced").start()
    fail()

options = connection.connect_options

def remembered(access, url):
    known.update(url=url, access=access, **options(access, url))
    return options(access, url)

connection.connect_options = remembered
failing("connection", connection.Connection, "_dial", fail)
failing("task", Node, "_save_positions", fail)
failing("thread", Pages, "__call__", in_a_thread)
"""


@dataclass(frozen=True, slots=True)
class Identity:
    """A way to say who the bridge is.

    server    the part of the server's configuration
    said      how the node's environment says it
    secrets   what must not be seen
    address   what stands before the host
    """

    server: str
    secrets: tuple[str, ...]
    said: str = "UNUSED=1"
    address: str = ""


def identity(kind: str, directory: Path) -> Identity:
    user = user_key()
    if kind == "url":
        server = f'authorization {{ user: "bridge", password: "{PLANTED}" }}'
        return Identity(server, (PLANTED,), address=f"bridge:{PLANTED}@")
    if kind == "token":
        path = write_secret(directory / "token", PLANTED)
        server = f'authorization {{ token: "{PLANTED}" }}'
        return Identity(server, (PLANTED,), f"MAPBRIDGE_BROKER_TOKEN_FILE={path}")
    if kind == "nkey":
        path = write_secret(directory / "n.nk", user.seed)
        server = f"authorization {{ users: [ {{ nkey: {user.public} }} ] }}"
        return Identity(server, (user.seed,), f"MAPBRIDGE_BROKER_NKEY={path}")
    operator = Operator()
    text = operator.creds(user)
    token = next(line for line in text.splitlines() if line.startswith("eyJ"))
    path = write_secret(directory / "n.creds", text)
    return Identity(operator.server_config(), (user.seed, token), f"MAPBRIDGE_BROKER_CREDS={path}")


@contextmanager
def node_with(kind: str, directory: Path) -> Iterator[tuple[Rig, Identity, str]]:
    found = identity(kind, directory)
    with (
        pin_folder() as pins,
        ServerThread(directory / "nats", extra_config=found.server) as server,
    ):
        rig = Rig(directory, pins, server)
        try:
            yield rig, found, server.url.replace("nats://", f"nats://{found.address}")
        finally:
            rig.close()


@pytest.mark.parametrize("kind", ["url", "token", "nkey", "creds"])
def test_nothing_of_a_crash_shows_secrets(tmp_path: Path, kind: str) -> None:
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults" / "sitecustomize.py").write_text(FAULTS)
    with node_with(kind, tmp_path) as (rig, who, url):
        for where in ("thread", "task", "connection"):
            said = crashed(rig, who, url, where)
            assert "forced: {'url'" in said, "the fault was there, and was told"
            for secret in who.secrets:
                assert secret not in said, said[max(0, said.find(secret) - 300) :][:700]


def crashed(rig: Rig, who: Identity, url: str, where: str) -> str:
    """Everything that a node leaves which fails at one place."""
    here = rig.directory / f"{where}-now"
    made = rig.map(where)
    socket = rig.directory / f"{where}.sock"
    faults = [f"PYTHONPATH={rig.directory}/faults", f"FAULT={where}", f"FAULT_HERE={here}"]
    node = rig.node(
        where,
        rig.entry(where, where, Role.REPLICATE),
        url=url,
        more=f'[http]\nlisten = "unix:{socket}"',
        before=["env", who.said, *faults],
    )
    fill(made, range(13), 1)
    until(lambda: bool(node.map_status()), "a status is written")
    said = [json.dumps(node.status()), report(rig, who, node.config_path)]
    here.touch()
    if where == "connection":  # so that it has to be made again
        os.kill(rig.server.pid or 0, signal.SIGKILL)
    if where == "thread":
        until(lambda: "thread forced has ended" in visited(node.log_path, socket), "the fault")
        node.stop()
    else:
        assert node.process.wait(60) == Exit.INVARIANT
    said += [node.log_path.read_text(), report(rig, who, node.config_path)]
    own = node.state_directory.rglob("*")
    said += [each.read_text(errors="replace") for each in own if kept(each)]
    return "\n".join(said)


def kept(path: Path) -> bool:
    return path.is_file() and path.name != "mapbridge.toml"


def visited(log: Path, socket: Path) -> str:
    """The node's log, once its page was asked for."""
    call = ["curl", "-s", "--unix-socket", str(socket), "http://h/status"]
    subprocess.run(call, check=False, capture_output=True)
    return log.read_text()


def report(rig: Rig, who: Identity, config: Path) -> str:
    path = rig.directory / "report.tar.gz"
    call = ["bugreport", "-c", str(config), "-o", str(path), "--no-doctor"]
    done = mapbridge(*call, before=["env", who.said])
    assert done.returncode == 0, done.stderr
    with tarfile.open(path) as archive:
        files = [archive.extractfile(member) for member in archive.getmembers()]
        found = [file.read().decode() for file in files if file is not None]
    assert len(found) > 5
    return "\n".join([*found, done.stdout, done.stderr])


def test_a_command_that_nobody_foresaw_to_end_so(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "from bridge.cli import status\n"
        "def failing(*arguments): raise RuntimeError('cannot use nats://me:pl4nted@h:1')\n"
        "status.read_running = failing\n"
    )
    config = tmp_path / "n.toml"
    config.write_text(f'[node]\nname = "n"\ncluster = "{CLUSTER}"\nstate_dir = "{tmp_path}/s"\n')
    for options in ([], ["--json"]):
        ended = mapbridge(
            "status", "-c", str(config), *options, before=["env", f"PYTHONPATH={tmp_path}"]
        )
        assert ended.returncode == Exit.INVARIANT, ended.stderr
        assert "Traceback" in ended.stderr
        assert "cannot use nats://***@h:1" in ended.stderr
        assert "pl4nted" not in ended.stdout + ended.stderr
        assert "mapbridge bugreport" in ended.stderr
    error = json.loads(ended.stderr.splitlines()[-1])["error"]
    assert error["exit_code"] == Exit.INVARIANT
