"""The tests of writes by bpf(2) once more, in a guest, where the function part is there too."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bridge.capture.probes import ProbeCapture
from bridge.capture.source import Mode
from tests.capture_kit import SLOTS
from tests.integration.test_capture_watching import *  # noqa: F403
from tests.integration.test_syscall_capture import *  # noqa: F403
from tests.vm.features import FEATURE, require_feature

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module", params=[Mode.FENTRY, Mode.KPROBE])
def capture(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ProbeCapture]:
    """All of a mode, so that a change which both of its parts report would come twice."""
    require_feature(FEATURE[request.param])
    probes = ProbeCapture.start(request.param, slots=SLOTS, cache=tmp_path_factory.mktemp("cache"))
    yield probes
    probes.close()
