"""Files, environment and settings on top of each other, and where each value came from."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from bridge.cli.main import cli
from bridge.config import ConfigError, Loaded, read
from bridge.config.places import lines_of
from bridge.errors import Exit

BASE = """[node]
name = "file"
cluster = "file"

[broker]
url = "nats://file"   # one
storage = "memory"

[[maps]]
name = "one"
pin = "/one"

[maps.layout]
types = \"\"\"
struct key
{ int a; };
\"\"\"
key = "struct key"
value = "int"

[[maps.metrics]]
name = "m"
help = \"\"\"
[not.a.table]
name = "nor this"\"\"\"
labels = {}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "bridge.toml"
    path.write_text(BASE)
    (tmp_path / "conf.d").mkdir()
    return path


def origins(loaded: Loaded) -> dict[str, tuple[object, str]]:
    return {key: (value, origin) for key, value, origin in loaded.values()}


def problems(path: Path, *settings: str, **environment: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(path, settings, environment)
    assert caught.value.exit_code is Exit.CONFIG
    return [str(one) for one in caught.value.problems]


def test_each_layer_wins_over_those_below(file: Path) -> None:
    (file.parent / "conf.d" / "20.toml").write_text('[broker]\nurl = "nats://twenty"\n')
    (file.parent / "conf.d" / "10.toml").write_text(
        '[node]\ncluster = "ten"\n[broker]\nurl = "nats://ten"\n'
        '[[maps]]\nname = "two"\npin = "/two"\n'
    )
    (file.parent / "conf.d" / "30.toml.off").write_text("not read")
    environment = {
        "MAPBRIDGE_NODE_CLUSTER": "env",
        "MAPBRIDGE_BROKER_REPLICAS": "3",
        "MAPBRIDGE_SECURITY_DROP_CAPABILITIES": "false",
        "MAPBRIDGE_LIMITS_OUTBOX": "2MiB",
        "PATH": "/bin",
    }
    loaded = read(file, ["node.cluster=set"], environment)
    config = loaded.config
    assert (config.node.name, config.node.cluster) == ("file", "set")
    assert config.broker.urls == ("nats://twenty",)
    assert (config.broker.replicas, config.security.drop_capabilities) == (3, False)
    assert [entry.name for entry in config.maps] == ["one", "two"]
    found = origins(loaded)
    assert found["node.name"] == ("file", f"{file}:2")
    assert found["node.cluster"] == ("set", "--set")
    assert found["broker.url"] == ("nats://twenty", f"{file.parent}/conf.d/20.toml:2")
    assert found["broker.storage"] == ("memory", f"{file}:7")
    assert found["broker.replicas"] == ("3", "MAPBRIDGE_BROKER_REPLICAS")
    assert found["limits.outbox"] == ("2MiB", "MAPBRIDGE_LIMITS_OUTBOX")
    assert found["limits.inbox"] == ("64MiB", "default")
    assert found["capture.sweep"] == ("250ms", "default")
    assert found["maps[0].layout.key"] == ("struct key", f"{file}:18")
    assert found["maps[0].metrics[0].name"] == ("m", f"{file}:22")
    assert found["maps[1].pin"] == ("/two", f"{file.parent}/conf.d/10.toml:7")


def test_a_name_of_digits_stays_text(file: Path) -> None:
    config = read(file, ["node.name=1"], {"MAPBRIDGE_NODE_CLUSTER": "true"}).config
    assert (config.node.name, config.node.cluster) == ("1", "true")


def test_what_is_wrong_is_told_with_where_it_stands(file: Path) -> None:
    (file.parent / "conf.d" / "10.toml").write_text(
        '\n[[maps]]\nname = "one"\npin = "/x"\nrol = 1\n'
    )
    assert problems(
        file,
        "broker.urll=x",
        "nothing",
        MAPBRIDGE_BROKER_STORAGE="disk",
        MAPBRIDGE_BROKER_URLL="x",
        MAPBRIDGE_NODENAME="x",
        MAPBRIDGE_HTTP_XYZZY="x",
    ) == [
        "MAPBRIDGE_BROKER_URLL: is no setting (in environment); did you mean MAPBRIDGE_BROKER_URL?",
        "MAPBRIDGE_HTTP_XYZZY: is no setting (in environment)",
        "MAPBRIDGE_NODENAME: is no setting (in environment); did you mean MAPBRIDGE_NODE_NAME?",
        "broker.storage: must be one of file, memory (got 'disk' in MAPBRIDGE_BROKER_STORAGE)",
        "broker.urll: unknown key (got 'broker.urll=x' in --set); did you mean broker.url?",
        "maps[1].name: is already used by maps[0] (got 'one' in conf.d/10.toml:3)",
        "maps[1].rol: unknown key (in conf.d/10.toml:5); did you mean 'role'?",
        "nothing: must be key=value, such as broker.url=nats://host (got 'nothing' in --set)",
    ]


def test_variables_of_others_are_only_mentioned(file: Path) -> None:
    environment = {
        "MAPBRIDGE_SERVICE_HOST": "x",
        "MAPBRIDGE_HTTP_PORT_80_TCP": "x",
        "MAPBRIDGE_CONFIG": "x",
    }
    warnings = read(file, (), environment).warnings
    assert warnings == (
        "MAPBRIDGE_HTTP_PORT_80_TCP: is no setting, and is not used",
        "MAPBRIDGE_SERVICE_HOST: is no setting, and is not used",
    )


def test_files_that_cannot_be_read_are_told_together(file: Path) -> None:
    (file.parent / "conf.d" / "10.toml").write_text("x = [1\n")
    (file.parent / "conf.d" / "20.toml").write_bytes(b"\xff")
    (file.parent / "conf.d" / "30.toml").mkdir()
    found = problems(file)
    assert [text.partition(".toml: ")[2].partition(":")[0] for text in found] == [
        "is not TOML",
        "is not UTF-8",
        "cannot be read",
    ]


def test_a_long_text_takes_no_time() -> None:
    text = '[a]\nb = """\n' + "x = [1]}\n" * 20_000 + '"""\nc = 1\n'
    began = time.process_time()
    assert lines_of(text) == {"a": 1, "a.b": 2, "a.c": 20_004}
    assert time.process_time() - began < 5


def test_show_tells_origins(file: Path) -> None:
    environment = {"MAPBRIDGE_BROKER_URL": "nats://u:secret@env"}
    done = CliRunner().invoke(
        cli,
        ["config", "show", "-c", str(file), "--origin", "--set", "node.name=x"],
        env=environment,
    )
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["node.name", "x", "--set"] in rows
    assert ["broker.url", "nats://***@env", "MAPBRIDGE_BROKER_URL"] in rows
    assert ["capture.ring", "16MiB", "default"] in rows
    assert ["maps[0].pin", "/one", f"{file}:11"] in rows
    assert "secret" not in done.output
