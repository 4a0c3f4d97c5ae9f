"""Ten wrong configurations: what a person is told of each. The files say it at their beginning."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from bridge.cli.main import cli
from bridge.errors import Exit

FILES = sorted(Path(__file__).with_name("wrong").glob("*.toml"))
EXPECTED, UNSAID = "#! ", "without "


def test_there_are_ten() -> None:
    assert len(FILES) == 10


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_path_value_place_and_what_to_do_are_told(file: Path) -> None:
    done = CliRunner().invoke(cli, ["check", "--no-environment", "-c", str(file)])
    assert (done.exit_code, done.stdout) == (Exit.CONFIG, "")
    lines = file.read_text().splitlines()
    expected = [one.removeprefix(EXPECTED) for one in lines if one.startswith(EXPECTED)]
    assert expected
    for text in expected:
        if text.startswith(UNSAID):
            assert text.removeprefix(UNSAID) not in done.stderr
        else:
            assert text in done.stderr
    assert f"Error: {file}: " in done.stderr
    assert "\nTry: " in done.stderr
