"""The tests of the system-call part once more, in a guest, with kprobes on the call's entry."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bridge.capture.probes import ProbeCapture
from bridge.capture.source import Mode
from tests.integration import test_syscall_capture as host
from tests.integration.test_syscall_capture import *  # noqa: F403
from tests.vm.features import require_feature

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")  # type: ignore[no-redef]
def capture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProbeCapture]:
    """All of mode kprobe, so that a change which both parts report would come twice."""
    require_feature("kprobes")
    probes = ProbeCapture.start(
        Mode.KPROBE, slots=host.SLOTS, cache=tmp_path_factory.mktemp("cache")
    )
    yield probes
    probes.close()
