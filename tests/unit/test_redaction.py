"""What looks like a secret goes, and what a person needs stays."""

from __future__ import annotations

import json

import pytest

from bridge.redaction import redacted

SEED = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"
JWT = "eyJ0eXAiOiJKV1Qi.eyJqdGkiOiJYW.c2lnbmF0dXJl"
FORMS = (
    "nats://me:hunter2@h:1",
    "nats://hunter2/with/slash@h:1",
    "urls=('tls://hunter2@h:2', 'nats://x:hunter2@h:1')",
    f"-----BEGIN USER NKEY SEED-----\n{SEED}\n------END USER NKEY SEED------",
    f"jwt {JWT}",
    repr(f"a creds file:\n{JWT}\n---\n{SEED}\n"),
    '"password": "hunter2"',
    "{'password': 'hunter2', 'port': 1}",
    "token=hunter2",
    json.dumps('{"password": "hunter2"}'),
    "(nkeys_seed_str='hunter2')",
    "broker.password: hunter2",
)


@pytest.mark.parametrize("text", FORMS)
def test_secrets_go_and_the_address_stays(text: str) -> None:
    shown = redacted(text)
    assert not any(secret in shown for secret in ("hunter2", SEED, JWT)), shown
    assert "h:1" in shown or "h:1" not in text


@pytest.mark.parametrize(
    "text",
    [
        "broker nats://10.0.0.1:4222: cannot connect (connection refused)",
        "broker: cannot read /etc/mapbridge/token (no such file or directory)",
        "sealed: 3 position=7, pin /sys/fs/bpf/a@b",
        '"password_file": "/etc/mapbridge/password"',
    ],
)
def test_what_is_none_stays(text: str) -> None:
    assert redacted(text) == text
