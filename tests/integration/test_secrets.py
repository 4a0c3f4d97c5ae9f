"""Planted secrets are looked for in everything that a node and its commands say."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.model import Role
from bridge.rig.broker import ServerThread
from bridge.rig.nodes import CLUSTER
from tests.access_kit import Operator, user_key, write_secret
from tests.integration.kernel_support import pin_folder
from tests.node_kit import Rig, fill, mapbridge, until

SECRET = "pl4nted-s3cret"


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Rig]:
    config = f'authorization {{ user: "bridge", password: "{SECRET}" }}'
    with (
        pin_folder() as pins,
        ServerThread(tmp_path / "nats", extra_config=config) as server,
    ):
        rig = Rig(tmp_path, pins, server)
        try:
            yield rig
        finally:
            rig.close()


def test_a_password_in_the_url_is_nowhere_to_be_seen(guarded: Rig) -> None:
    made = guarded.map("a")
    url = guarded.server.url.replace("nats://", f"nats://bridge:{SECRET}@")
    socket = guarded.directory / "http.sock"
    node = guarded.node(
        "a", guarded.entry("m", "a", Role.REPLICATE), url=url,
        more=f'[http]\nlisten = "unix:{socket}"',
    )  # fmt: skip
    fill(made, range(13), 1)
    until(lambda: bool(node.map_status()), "a status is written")
    config = str(node.config_path)
    said = [json.dumps(node.status())]
    for command in (
        ["config", "show", "-c", config],
        ["config", "show", "-c", config, "--json"],
        ["check", "-c", config],
        ["status", "-c", config, "--json"],
        ["status", "--nodes", "-c", config],
        ["verify", "m", "-c", config, "--json"],
        ["nats-permissions", "-c", config],
        ["nats-permissions", "-c", config, "--json"],
    ):
        ended = mapbridge(*command)
        said.append(ended.stdout + ended.stderr)
    said += [_get(socket, path) for path in ("status", "metrics", "readyz", "livez")]
    wrong = node.config_path.with_name("wrong.toml")
    write_secret(wrong, node.config_path.read_text().replace(SECRET, f"{SECRET}-wrong"))
    for command in (["check"], ["status", "--nodes"], ["verify", "m"], ["watch", "m"], ["run"]):
        ended = mapbridge(*command, "-c", str(wrong))
        assert ended.returncode != 0, command
        said.append(ended.stdout + ended.stderr)
    node.process.send_signal(signal.SIGTERM)
    node.process.wait(30)
    said.append(node.log_path.read_text())
    said += [path.read_text(errors="replace") for path in _written(node.state_directory)]
    assert all(said[-2:])
    for text in said:
        assert SECRET not in text, text[max(0, text.find(SECRET) - 300) :][:700]


@pytest.mark.parametrize("broken", ["seed", "jwt"])
def test_credentials_that_are_damaged_are_not_quoted(tmp_path: Path, broken: str) -> None:
    user = user_key()
    text = Operator().creds(user)
    token = next(line for line in text.splitlines() if line.startswith("eyJ"))
    secret = user.seed if broken == "seed" else token
    path = write_secret(tmp_path / "n.creds", text.replace(secret, f"{secret[:-9]}!{secret[-8:]}"))
    config = tmp_path / "n.toml"
    with ServerThread(tmp_path / "nats", extra_config=Operator().server_config()) as server:
        config.write_text(
            f'[node]\nname = "n"\ncluster = "{CLUSTER}"\nstate_dir = "{tmp_path}/state"\n'
            f'[broker]\nurl = "{server.url}"\ncreds = "{path}"\n'
        )
        ended = mapbridge("check", "-c", str(config))
    said = ended.stdout + ended.stderr
    assert ended.returncode == 78, said
    assert "Traceback" not in said
    assert secret[10:40] not in said


def _written(directory: Path) -> list[Path]:
    own = {"mapbridge.toml", "wrong.toml"}
    return [p for p in directory.rglob("*") if p.is_file() and p.name not in own]


def _get(socket: Path, path: str) -> str:
    import http.client
    import socket as sockets

    connection = http.client.HTTPConnection("localhost")
    connection.sock = sockets.socket(sockets.AF_UNIX)
    connection.sock.connect(str(socket))
    connection.request("GET", f"/{path}")
    return connection.getresponse().read().decode()
