"""What the probes of each mode see on this kernel, shown by writing canary maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bridge.capture.canary import Coverage, Finding, Seen, Writer
from bridge.capture.functions import PROBED_TYPES
from bridge.capture.modes import AUTO_ORDER, Selection
from bridge.capture.probes import ProbeCapture
from bridge.capture.source import Mode
from bridge.errors import BridgeError
from bridge.kernel.maptypes import MapType, type_name

# The richer first: what it sees, the next sees less of.
PROBE_MODES = (Mode.FENTRY, Mode.KPROBE, Mode.SYSCALL)


@dataclass(frozen=True, slots=True)
class ModeReport:
    """What came of one mode. ``error`` is set when its probes could not be attached at all.

    ``proven`` is said of plain hash maps; ``uncovered`` tells why other types of map are swept.
    """

    mode: Mode
    proven: bool
    writes: tuple[Finding, ...] = ()
    error: str = ""
    hint: str = ""
    uncovered: dict[str, str] = field(default_factory=dict)


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


def summary(report: ModeReport) -> list[tuple[str, ...]]:
    """For each type of map, and each writer in the order of ``Writer``, what is reported of it."""
    rows = []
    for map_type in dict.fromkeys(one.map_type for one in report.writes):
        of_type = [one for one in report.writes if one.map_type == map_type]
        cells = (_cell([one for one in of_type if one.writer is writer]) for writer in Writer)
        rows.append((map_type, *cells))
    return rows


def _cell(found: Sequence[Finding]) -> str:
    unseen = [one.operation for one in found if one.seen in (Seen.NO, Seen.WRONG)]
    absent = [one.operation for one in found if one.seen is Seen.UNSUPPORTED]
    if len(unseen) == sum(one.seen is not Seen.QUIET for one in found):
        return "no"
    parts = [f"but not: {', '.join(unseen)}"] if unseen else []
    parts += [f"no {', '.join(absent)} in this kernel"] if absent else []
    return "; ".join(("yes", *parts))


def _probe(mode: Mode) -> ModeReport:
    try:
        capture = ProbeCapture.start(mode)
    except BridgeError as error:
        return ModeReport(mode, proven=False, error=str(error), hint=error.hint)
    selection = Selection(mode, capture, Coverage(mode, ()))
    try:
        covered = {map_type: selection.covers(map_type) for map_type in PROBED_TYPES}
    finally:
        capture.close()
    uncovered = {type_name(number): why for number, why in selection.uncovered.items()}
    findings = selection.coverage.findings
    return ModeReport(mode, covered[MapType.HASH], findings, uncovered=uncovered)
