"""What a reader is told when a configuration file says something wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.config import (
    ConfigError,
    load,
    parse,
)
from tests.config_kit import problems_of, several, with_map


@pytest.mark.parametrize("ignore", ["'1:2'", "[1]", "['2:2']", "['x:y']", "['0:65537']", "['']"])
def test_what_cannot_be_ignored(ignore: str) -> None:
    assert "must" in problems_of(with_map(f"id = 1\nignore = {ignore}"))["maps[0].ignore"].reason


def test_all_problems_are_told_at_once() -> None:
    found = problems_of(
        """
        [node]
        name = "a.b"
        [broker]
        storage = "tape"
        replicas = 2
        [capture]
        mode = "probes"
        ring = "15MiB"
        [[maps]]
        name = "x"
        pin = "/a"
        id = 3
        role = "both"
        """
    )
    assert set(found) == {
        "node.name",
        "broker.storage",
        "broker.replicas",
        "capture.mode",
        "capture.ring",
        "maps[0]",
        "maps[0].role",
    }
    assert found["maps[0]"].got == "pin and id"


def test_a_message_has_file_path_reason_and_value(tmp_path: Path) -> None:
    file = tmp_path / "bridge.toml"
    file.write_text(with_map('pin = "/a"\nrole = "both"'))
    with pytest.raises(ConfigError) as caught:
        load(file)
    expected = (
        "maps[0].role: must be one of publish, apply, replicate (got 'both' in bridge.toml:6)"
    )
    assert str(caught.value) == f"{file}: {expected}"
    assert "mapbridge config init" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "path", "hint"),
    [
        ('[node]\nname = "a"\nclustr = "x"', "node.clustr", "did you mean 'cluster'?"),
        ('[node]\nname = "a"\nsweep = "1s"', "node.sweep", "did you mean 'sweep' of capture?"),
        ('[node]\nname = "a"\n[[map]]\nid = 1', "map", "did you mean 'maps'?"),
        (with_map('id = 1\nrolle = "apply"'), "maps[0].rolle", "did you mean 'role'?"),
        (
            with_map("id = 1\nemit_losses = '/l'\nemit = { pinn = '/a' }"),
            "maps[0].emit.pinn",
            "did you mean 'pin'?",
        ),
        ('[node]\nname = "a"\nzzz = 1', "node.zzz", ""),
    ],
)
def test_an_unknown_key_names_the_nearest(text: str, path: str, hint: str) -> None:
    problem = problems_of(text)[path]
    assert (problem.reason, problem.hint) == ("unknown key", hint)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("", "node.name"),
        ("[node]", "node.name"),
        ("[node]\nname = 5", "node.name"),
        (f'[node]\nname = "{"a" * 65}"', "node.name"),
        ('[node]\nname = "a"\ncluster = "x y"', "node.cluster"),
        ('[node]\nname = "a"\nstate_dir = "var"', "node.state_dir"),
        ('node = "a"', "node"),
        ('maps = "a"\n[node]\nname = "a"', "maps"),
        ('[node]\nname = "a"\n[broker]\nurl = "10.0.0.1"', "broker.url"),
        ('[node]\nname = "a"\n[broker]\nurl = "nats://h:99999"', "broker.url"),
        ('[node]\nname = "a"\n[broker]\nurl = ""', "broker.url"),
        ('[node]\nname = "a"\n[broker]\nlisten = "4222"', "broker.listen"),
        ('[node]\nname = "a"\n[broker]\nlisten = "h:66000"', "broker.listen"),
        ('[node]\nname = "a"\n[broker]\nreplicas = true', "broker.replicas"),
        ('[node]\nname = "a"\n[broker]\nreplicas = 3', "broker.replicas"),
        ('[node]\nname = "a"\n[broker]\nurl = "nats://h"\nlisten = "h:1"', "broker.listen"),
        ('[node]\nname = "a"\n[capture]\nsweep = 250', "capture.sweep"),
        ('[node]\nname = "a"\n[capture]\nsweep = "1ms"', "capture.sweep"),
        ('[node]\nname = "a"\n[capture]\nsweep = "soon"', "capture.sweep"),
        ('[node]\nname = "a"\n[capture]\nring = "1KiB"', "capture.ring"),
        ('[node]\nname = "a"\n[capture]\nring = "3MiB"', "capture.ring"),
        ('[node]\nname = "a"\n[capture]\ntransport = "pipe"', "capture.transport"),
        ('[node]\nname = "a"\n[capture]\nperf_pages = 8', "capture.perf_pages"),
        ('[node]\nname = "a"\n[capture]\nperf_pages = 96', "capture.perf_pages"),
        ('[node]\nname = "a"\n[capture]\nperf_pages = 131072', "capture.perf_pages"),
        ('[node]\nname = "a"\n[capture]\nperf_pages = "2MiB"', "capture.perf_pages"),
        ('[node]\nname = "a"\n[limits]\noutbox = "64MB"', "limits.outbox"),
        ('[node]\nname = "a"\n[limits]\ninbox = "0.3B"', "limits.inbox"),
        ('[node]\nname = "a"\n[http]\nlisten = "9475"', "http.listen"),
        ('[node]\nname = "a"\n[http]\nlisten = "unix:run/s"', "http.listen"),
        ('[node]\nname = "a"\n[http]\nlisten = "unix:/a\\u0000b"', "http.listen"),
        (f'[node]\nname = "a"\n[http]\nlisten = "unix:/{"a" * 107}"', "http.listen"),
        (with_map(""), "maps[0]"),
        (with_map("id = 0"), "maps[0].id"),
        (with_map("id = true"), "maps[0].id"),
        (with_map('map = "longer_than_15_b"'), "maps[0].map"),
        (with_map('map = "a-b"'), "maps[0].map"),
        (with_map('pin = "ct"'), "maps[0].pin"),
        (with_map("id = 1\nemit_losses = '/l'\nemit = {}"), "maps[0].emit"),
        (with_map("id = 1\nemit_losses = '/l'\nemit = 5"), "maps[0].emit"),
        (with_map("id = 1\nemit = '/ring'"), "maps[0].emit"),
        (with_map("id = 1\nemit_losses = '/l'"), "maps[0].emit_losses"),
        (with_map("id = 1").replace('"m"', '"m*"'), "maps[0].name"),
        (with_map('id = 1\n[[maps]]\nname = "m"\nid = 2'), "maps[1].name"),
        (with_map('id = 1\n[[maps]]\nname = "n"\nid = 1'), "maps[1].id"),
        (with_map('pin = "/a"\n[[maps]]\nname = "n"\npin = "/a"'), "maps[1].pin"),
    ],
)
def test_what_is_refused(text: str, path: str) -> None:
    assert list(problems_of(text)) == [path]


def test_problems_stand_in_the_order_of_the_maps() -> None:
    text = '[node]\nname = "a"\n' + "".join(f'[[maps]]\nname = "m{i}"\n' for i in range(12))
    assert list(problems_of(text)) == [f"maps[{i}]" for i in range(12)]


def test_too_many_maps() -> None:
    text = '[node]\nname = "a"\n'
    text += "".join(f'[[maps]]\nname = "m{i}"\nid = {i}\n' for i in range(1, 1002))
    assert problems_of(text)["maps"].reason == "at most 1000 maps"


@pytest.mark.parametrize(
    ("lines", "path", "reason"),
    [
        ('pin = "/b/*"\nname = "lb"', "maps[0].name", "needs a '*'"),
        ('pin = "/b/m"\nname = "lb-*"', "maps[0].name", "needs a pattern in pin or map"),
        ('pin = "/b/m"', "maps[0].name", "is required"),
        ('pin = "/b/*"\nname = "a*b*"', "maps[0].name", "must be"),
        ('pin = "/b/*/m"\nname = "*"', "maps[0].pin", "last part of the path only"),
        ('map = "ct *"', "maps[0].map", "must be a pattern"),
        ('map = "ct*"\nemit = "/b/e"\nemit_losses = "/b/l"', "maps[0].emit", "a pattern"),
        ('pin = "/b/*"\n[[maps]]\npin = "/b/*"', "maps[1].pin", "already used"),
    ],
)
def test_patterns_that_are_refused(lines: str, path: str, reason: str) -> None:
    assert reason in problems_of(several(lines))[path].reason


def test_a_password_is_not_repeated() -> None:
    text = '[node]\nname = "a"\n[broker]\nurl = "http://user:secret@host"'
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert "host" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "user" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[node", "is not TOML"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"#" * ((1 << 20) + 1), "is too large"),
        (None, "cannot be read: no such file"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, content: bytes | None, reason: str) -> None:
    file = tmp_path / "bridge.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=reason):
        load(file)


@pytest.mark.parametrize("password", ["hunter2/x", "hunter2#x", "x?hunter2", "[hunter2"])
@pytest.mark.parametrize(
    "form", ["nats://me:{}@h:1", "nats://{}@h:1", "me:{}@h:1", "tls://a:1,b:{}@c"]
)
def test_an_address_with_an_unescaped_password_is_refused_without_it(
    form: str, password: str
) -> None:
    """What ends the host for a parser is not the end of the secret."""
    broker = f'\n[broker]\nurl = "{form.format(password)}"\n'
    problem = problems_of(with_map("id = 1") + broker)["broker.url"]
    assert "hunter2" not in str(problem)


def test_an_address_with_a_password_is_not_shown_whole() -> None:
    broker = '\n[broker]\nurl = "nats://me:hun@hunter2@h:1"\n'
    config = parse(with_map("id = 1") + broker)
    assert "hunter2" in config.broker.urls[0]
    assert "hunter2" not in repr(config)


def test_what_has_an_at_sign_and_is_no_address_is_shown() -> None:
    found = problems_of(with_map('pin = "a@b"'))
    assert any("a@b" in problem.got for problem in found.values()), found
