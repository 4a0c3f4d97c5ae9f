"""What all tests share: a machine with the file systems that systemd would have mounted."""

from __future__ import annotations

import os

import pytest

from bridge.rig.tools import mount_file_systems


@pytest.fixture(scope="session", autouse=True)
def file_systems() -> None:
    if os.geteuid() == 0:
        mount_file_systems()
