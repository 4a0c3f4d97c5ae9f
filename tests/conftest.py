"""What all tests share: a machine with the file systems that systemd would have mounted."""

from __future__ import annotations

import os

import pytest

from bridge.rig.tools import mount_file_systems


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mapbridge")
    for name, what in (("repetitions", "how often"), ("rounds", "operations each time")):
        group.addoption(f"--order-{name}", type=int, default=0, help=f"tests of order: {what}")


@pytest.fixture(scope="session", autouse=True)
def file_systems() -> None:
    if os.geteuid() == 0:
        mount_file_systems()
