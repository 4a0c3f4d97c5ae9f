"""A server for a module's tests, whole nodes on it or on one of the test's own, and probes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bridge.capture.probes import ProbeCapture
from bridge.rig.broker import ServerThread
from bridge.rig.claim import Claim
from tests.capture_kit import started
from tests.chaos.servers import ServerCluster
from tests.integration.kernel_support import pin_folder
from tests.node_kit import Rig


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProbeCapture]:
    """One object for all tests of a module: compiling is what costs."""
    with started(tmp_path_factory.mktemp("cache")) as probes:
        yield probes


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerThread]:
    with ServerThread(tmp_path_factory.mktemp("nats")) as running:
        yield running


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ServerCluster]:
    """Three servers in network namespaces, which can be cut off and parted."""
    with Claim.take() as claim, ServerCluster(claim, tmp_path) as servers:
        yield servers


@pytest.fixture
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    """Whole nodes that sweep, or capture in the mode that a test names, by ``indirect``.

    A test marked ``own_server`` does with its log what others must not meet, or counts what is
    there.
    """
    with ExitStack() as stack:
        if request.node.get_closest_marker("own_server") is None:
            server = request.getfixturevalue("server")
        else:
            server = stack.enter_context(ServerThread(tmp_path / "nats"))
        pins = stack.enter_context(pin_folder())
        made = Rig(tmp_path, pins, server, capture=getattr(request, "param", "sweep"))
        stack.callback(made.close)
        yield made
