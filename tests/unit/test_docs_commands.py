"""Every call of ``mapbridge`` in the docs names a command and options that there are."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from bridge.cli.main import cli
from tests.unit.test_docs import PAGES, ROOT

CALL = re.compile(r"(?:^|[\s`$#\"'(=/])mapbridge ((?:[a-z][a-z-]*)(?: [^`\n|&;#>]*)?)")
BLOCK = re.compile(r"^(?P<mark>```|~~~)[^\n]*\n(?P<text>.*?)^(?P=mark)", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`(mapbridge [^`\n]+)`")
INDENTED = re.compile(r"^ {4}(mapbridge [^\n]+)$", re.MULTILINE)
OUTPUT = {"can run here"}  # what `doctor` ends with


def calls(text: str) -> Iterator[str]:
    """What stands behind ``mapbridge`` wherever a page shows it as something to type."""
    shown = [match["text"] for match in BLOCK.finditer(text)]
    shown += SPAN.findall(text) + INDENTED.findall(text)
    for part in shown:
        for line in part.replace("\\\n", " ").splitlines():
            for match in CALL.finditer(f" {line}"):
                call = match[1].strip()
                if call.count('"') % 2:
                    call = call.rstrip('"')  # the call itself stands in quotes
                if call not in OUTPUT:
                    yield call


def wrong(call: str) -> str:
    """Why a call would be refused before it does anything; empty: it would not."""
    try:
        words = shlex.split(call, comments=True)
    except ValueError as error:
        return str(error)
    context, command = click.Context(cli), cli.get_command(click.Context(cli), words[0])
    if command is None:
        return f"no command {words[0]}"
    rest = words[1:]
    while isinstance(command, click.Group) and rest:
        inner = command.get_command(context, rest[0])
        if inner is None:
            return f"no command {words[0]} {rest[0]}"
        command, rest = inner, rest[1:]
    known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)} | {
        "--help",
        "-h",
    }
    for word in rest:
        name = word.partition("=")[0]
        if name.startswith("--") and name not in known:
            return f"no option {name}"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_calls_are_understood(page: Path) -> None:
    found = {call: wrong(call) for call in calls(page.read_text())}
    assert {call: reason for call, reason in found.items() if reason} == {}


def test_calls_are_found_and_judged() -> None:
    text = "Try `mapbridge status --nodes`.\n\n    mapbridge nothing\n\n"
    text += "```\n# mapbridge run --fast\n```\n"
    assert [wrong(call) for call in calls(text)] == ["no option --fast", "", "no command nothing"]
