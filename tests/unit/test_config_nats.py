"""Who the bridge is for the broker: the file, NATS's environment and its contexts."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from bridge.access import Secret
from bridge.config import (
    BrokerConfig,
    ConfigError,
    from_mapping,
)

BROKER = '[node]\nname = "n"\n[broker]\n'
CONTEXT = {"url": "nats://ctx:4222", "user": "cu", "password": "planted", "ca": "/ctx/ca.pem"}


def context(tmp_path: Path, **content: object) -> dict[str, str]:
    """An environment whose selected context says ``content``."""
    folder = tmp_path / "nats" / "context"
    folder.mkdir(parents=True)
    (folder / "prod.json").write_text(json.dumps(content))
    return {"XDG_CONFIG_HOME": str(tmp_path), "NATS_CONTEXT": "prod"}


def read(text: str, environ: dict[str, str]) -> BrokerConfig:
    return from_mapping(tomllib.loads(text), environ=environ).broker


def test_the_environment_of_nats_goes_before_its_context(tmp_path: Path) -> None:
    environ = context(tmp_path, **CONTEXT, inbox_prefix="_INBOX_x", tls_first=True)
    found = read(BROKER, environ)
    assert found.urls == ("nats://ctx:4222",)
    assert (found.access.user, found.access.password) == ("cu", Secret("planted"))
    assert (found.access.ca, found.access.tls_first) == (Path("/ctx/ca.pem"), True)
    assert found.inbox_prefix == "_INBOX_x"
    assert "planted" not in repr(found)
    more = {"NATS_URL": "tls://env:1", "NATS_CA": "/env/ca.pem", "NATS_USER": "only-a-token"}
    found = read(BROKER, environ | more)
    assert (found.urls, found.access.ca) == (("tls://env:1",), Path("/env/ca.pem"))
    assert found.access.token == Secret("only-a-token")


def test_the_file_goes_before_the_environment(tmp_path: Path) -> None:
    environ = context(tmp_path, **CONTEXT) | {"NATS_URL": "nats://env:1", "NATS_NKEY": "/env/seed"}
    found = read(BROKER + 'url = "nats://file:1"\ncreds = "/file/creds"', environ)
    assert found.urls == ("nats://file:1",)
    assert found.access.credentials == Path("/file/creds")
    assert (found.access.user, found.access.nkey_seed) == ("", None)
    assert read(BROKER + 'listen = "127.0.0.1:0"', environ).embedded


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"url": "nats://x:1", "nsc": "op/account"}', "nsc is not supported"),
        ('{"password": "planted", "user": 7, "url": "x"}', "user must be text"),
        ('{"password": "planted"', "no JSON"),
        ('["planted"]', "must be a JSON object"),
        ('{"creds": "op://vault/planted"}', "op:// are not supported"),
        (None, "cannot be read"),
    ],
)
def test_contexts_that_are_no_good(tmp_path: Path, content: str | None, told: str) -> None:
    environ = context(tmp_path, url="nats://x:1")
    path = tmp_path / "nats" / "context" / "prod.json"
    if content is None:
        path.rename(path.with_name("other.json"))
    else:
        path.write_text(content)
    with pytest.raises(ConfigError, match=told) as caught:
        read(BROKER, environ)
    assert "planted" not in str(caught.value)
    if content is None:
        assert "there are: other" in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ('url = "nats://x:1"\nuser = "u"', "needs password_file"),
        ('url = "nats://x:1"\ncreds = "/c"\nnkey = "/n"', "may have one of"),
        ('url = "nats://x:1"\ntls_cert = "/c"', "needs tls_key"),
        ('listen = "127.0.0.1:1"\ncreds = "/c"', "is for servers that broker.url names"),
        ('creds = "/c"', "but not where that is"),
        ('url = "nats://x:1"\ncreds = "relative"', "must be an absolute path"),
        ('url = "nats://x:1"\ntls_cafile = "/c"', "unknown key"),
        ('context = "../../etc/passwd"', "no name of a NATS context"),
    ],
)
def test_wrong_words_of_who_the_bridge_is(lines: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        read(BROKER + lines, {})
