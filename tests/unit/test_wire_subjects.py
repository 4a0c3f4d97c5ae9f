"""Names in the log, and the generated code that stands for the schema."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bridge.model import Origin
from bridge.wire.subjects import (
    DeltaSubject,
    SubjectError,
    cluster_filter,
    delta_subject,
    escape,
    map_filter,
    message_id,
    parse_subject,
    stream_name,
    unescape,
)
from tests.bus_kit import numbered_delta, origin

ROOT = Path(__file__).resolve().parents[2]


def test_names_of_an_origin() -> None:
    of = Origin("prod", "a.b_c", "lb-1", 255)
    assert delta_subject(of) == "mapbridge.prod.delta.a_2eb_5fc.lb-1"
    assert parse_subject(delta_subject(of)) == DeltaSubject("prod", "a.b_c", "lb-1")
    assert map_filter("prod", "a.b_c") == "mapbridge.prod.delta.a_2eb_5fc.*"
    assert cluster_filter("prod") == "mapbridge.prod.delta.*.*"
    assert stream_name("prod") == "MAPBRIDGE_prod"


def test_message_id_names_node_map_incarnation_and_sequence() -> None:
    assert message_id(numbered_delta(13, 2, origin())) == "n1:flows:0000000000000007:13"


@pytest.mark.parametrize(
    "name", ["conntrack", "a.b", "a_b", "_2e", "ein Käse", "*", ">", "\0", "🐝"]
)
def test_escaped_names_come_back(name: str) -> None:
    token = escape(name)
    assert not set(token) & set(".*> \0")
    assert token.isascii()
    assert unescape(token) == name


@pytest.mark.parametrize("name", ["", "x" * 65, "\ud800"])
def test_names_that_cannot_be_escaped(name: str) -> None:
    with pytest.raises(SubjectError):
        escape(name)


@pytest.mark.parametrize("token", ["", "_", "_2", "_2E", "_zz", "_61", "a.b", "_ff", "ä"])
def test_only_what_escape_gives_is_taken(token: str) -> None:
    with pytest.raises(SubjectError):
        unescape(token)


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "mapbridge",
        "mapbridge.c.delta.m",
        "mapbridge.c.delta.m.n.x",
        "mapbridge.c.snap.m.n",
        "other.c.delta.m.n",
        "mapbridge.c.delta._61.n",
        "mapbridge.c.delta.m.n!",
    ],
)
def test_foreign_subjects_are_refused(subject: str) -> None:
    with pytest.raises(SubjectError):
        parse_subject(subject)


@pytest.mark.parametrize("bad", [{"cluster": "a.b"}, {"node": "a b"}, {"node": "n" * 65}])
def test_names_that_are_no_tokens_are_refused(bad: dict[str, str]) -> None:
    names = {"cluster": "c", "map": "m", "node": "n"} | bad
    with pytest.raises(SubjectError):
        delta_subject(Origin(**names, incarnation=1))


def test_the_generated_code_is_what_the_schema_gives() -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools: generates the code to compare with")
    check = subprocess.run(
        [sys.executable, "schemas/generate.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert check.returncode == 0, check.stdout + check.stderr
