"""What the probes of each mode see on this kernel, shown by writing a canary map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bridge.capture.canary import Finding, prove
from bridge.capture.modes import AUTO_ORDER
from bridge.capture.probes import ProbeCapture
from bridge.capture.source import Mode
from bridge.errors import BridgeError

# The richer first: what it sees, the next sees less of.
PROBE_MODES = (Mode.FENTRY, Mode.KPROBE, Mode.SYSCALL)


@dataclass(frozen=True, slots=True)
class ModeReport:
    """What came of one mode. ``error`` is set when its probes could not be attached at all."""

    mode: Mode
    proven: bool
    writes: tuple[Finding, ...] = ()
    error: str = ""
    hint: str = ""


def probe_modes() -> list[ModeReport]:
    """Try the probe modes until one is proven. Takes seconds: the programs are compiled here."""
    reports: list[ModeReport] = []
    for mode in PROBE_MODES:
        reports.append(_probe(mode))
        if reports[-1].proven:
            break
    return reports


def automatic_mode(reports: Sequence[ModeReport]) -> Mode:
    """What ``mode = "auto"`` would take."""
    proven = {report.mode for report in reports if report.proven}
    return next((mode for mode in AUTO_ORDER if mode in proven), Mode.SWEEP)


def _probe(mode: Mode) -> ModeReport:
    try:
        capture = ProbeCapture.start(mode)
    except BridgeError as error:
        return ModeReport(mode, proven=False, error=str(error), hint=error.hint)
    try:
        coverage = prove(capture)
    except BridgeError as error:
        return ModeReport(mode, proven=False, error=str(error), hint=error.hint)
    finally:
        capture.close()
    return ModeReport(mode, coverage.proven, coverage.findings)
