"""Manual pages: complete, and in roff that its readers take without a complaint."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from bridge.cli.main import ENTRIES, cli
from bridge.cli.man import command
from bridge.cli.roff import Page, render


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("man1")
    done = CliRunner().invoke(command, ["--output", str(made)])
    assert done.exit_code == 0, done.output
    return made


def test_every_command_has_a_page_with_its_options(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert {f"mapbridge-{name}.1" for name in ENTRIES} <= names
    assert {"mapbridge.1", "mapbridge-schema-diff.1", "mapbridge-bench-drops.1"} <= names
    status = (folder / "mapbridge-status.1").read_text()
    assert "\n.B \\-\\-wait\\-synced MAP\n" in status
    assert ".SH EXAMPLES\n.nf\nmapbridge status\n" in status
    assert "\b" not in "".join(path.read_text() for path in folder.iterdir())


def test_one_page_is_printed() -> None:
    done = CliRunner().invoke(cli, ["man", "schema", "diff"])
    assert done.exit_code == 0
    assert done.output.startswith('.TH "MAPBRIDGE-SCHEMA-DIFF" 1 ')


def test_readers_have_nothing_to_complain_of(folder: Path) -> None:
    if shutil.which("mandoc") is None:
        pytest.skip("mandoc is not installed")
    done = subprocess.run(
        ["mandoc", "-Tlint", "-Wwarning", *sorted(folder.iterdir())],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_text_that_would_be_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    odd = click.Command("odd", help="Odd.\n\n.TH is text, 'tis said\n\n\b\nExamples:\n  a -x C:\\d")
    assert render(Page(odd, click.Context(odd, info_name="odd"))).splitlines()[0].split()[2:4] == [
        "1",
        '"1970-01-02"',
    ]
    lines = render(Page(odd, click.Context(odd, info_name="odd"))).splitlines()
    assert "\\&.TH is text, 'tis said" in lines
    assert "a \\-x C:\\ed" in lines
