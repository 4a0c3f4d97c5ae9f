"""Tests marked ``vm`` run in a guest only, and no test of a guest is skipped without a reason."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from bridge.rig.broker import ServerThread
from tests.integration.kernel_support import pin_folder
from tests.node_kit import Rig
from tests.vm.features import IN_GUEST, SKIP_PREFIX

_REASON = "needs kprobes: run by make test-vm"


@pytest.fixture
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    """Whole nodes that capture in the mode that a test names, by ``indirect``."""
    with pin_folder() as pins, ServerThread(tmp_path / "nats") as server:
        made = Rig(tmp_path, pins, server, capture=request.param)
        try:
            yield made
        finally:
            made.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if IN_GUEST:
        return
    for item in items:
        if item.get_closest_marker("vm") is not None:
            item.add_marker(pytest.mark.skip(reason=_REASON))


def _forbid_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not IN_GUEST or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
    if SKIP_PREFIX not in reason:
        report.outcome = "failed"
        report.longrepr = f"a guest's test may only skip through require_feature (got {reason})"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _forbid_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _forbid_skip(report)
    return report
