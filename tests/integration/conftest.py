"""A server for a module's tests, and whole nodes on it. A module that needs others has its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.rig.broker import ServerThread
from tests.integration.kernel_support import pin_folder
from tests.node_kit import Rig


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerThread]:
    with ServerThread(tmp_path_factory.mktemp("nats")) as running:
        yield running


@pytest.fixture
def rig(tmp_path: Path, server: ServerThread) -> Iterator[Rig]:
    with pin_folder() as pins:
        made = Rig(tmp_path, pins, server)
        try:
            yield made
        finally:
            made.close()
