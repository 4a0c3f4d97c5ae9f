"""The Dockerfile copies what the wheel is made of, and only what there is."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPY = re.compile(r"^COPY (?!--from)(.+) \S+$", re.MULTILINE)


def copied() -> set[str]:
    text = (ROOT / "Dockerfile").read_text()
    return {source for sources in COPY.findall(text) for source in sources.split()}


def test_the_wheels_sources_are_copied() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    wheel = build["targets"]["wheel"]
    needed = {*wheel["packages"], *wheel["force-include"], "pyproject.toml", "README.md"}
    needed.add(build["hooks"]["custom"]["path"].split("/")[0])
    assert needed - copied() == set()


def test_what_is_copied_is_there() -> None:
    assert [source for source in copied() if not (ROOT / source).exists()] == []
