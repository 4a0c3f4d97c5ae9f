"""Boots the kernels one after the other, each with the suite in it, and writes down the answers."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence

from bridge.kernel.objects import compile_object, default_cache
from tests.vm.kernels import CHECKOUT, SUITES, fetch_kernel
from tests.vm.machine import GUEST_RESULTS, Outcome, run_in_guest
from tests.vm.matrix import page
from tests.vm.matrix.plan import Cell, State, Table
from tests.vm.matrix.suite import TIMER

ANSWER = "matrix.json"


def run_matrix(versions: Sequence[str], limit_seconds: float) -> int:
    """Runs the suite on each kernel; the exit code is 0 when all of all is as it should be.

    ``build/kernels.json`` keeps the answers of kernels that are not among ``versions``; the page is
    written when it has all kernels. Raises ``BridgeError`` when a guest cannot be started.
    """
    compile_object(TIMER, cache=default_cache())  # the guest finds it in the cache
    tables = page.load()
    code = 0
    for version in versions:
        table, outcome = _run(version, limit_seconds)
        if outcome.exit_code:
            code = code or outcome.exit_code
        print(f"vm: {outcome.explain()}", file=sys.stderr)
        for line in outcome.complaints:
            print(f"vm: kernel: {line}", file=sys.stderr)
        if table is None:
            continue
        tables[version] = table
        _show(table)
    tables = {version: tables[version] for version in SUITES if version in tables}
    page.save(tables)
    if len(tables) == len(SUITES):
        page.PAGE.write_text(page.render(tables))
    return code


def _run(version: str, limit_seconds: float) -> tuple[Table | None, Outcome]:
    kernel = fetch_kernel(version)
    print(f"vm: kernel {kernel.release}", file=sys.stderr)
    command = [sys.executable, "-m", "tests.vm.matrix.suite", f"{GUEST_RESULTS}/{ANSWER}"]
    outcome = run_in_guest(kernel, command, limit_seconds=limit_seconds, cwd=CHECKOUT)
    answer = outcome.folder / ANSWER
    if not answer.exists():
        return None, outcome
    return page.table_of(json.loads(answer.read_text())), outcome


def _show(table: Table) -> None:
    """The cells of one kernel, for a person: the same ones of several kinds and modes in a line."""
    for c in table.cells:
        if c.state is not State.REFUSED:
            print(_line(c))
    refused = sorted({(c.kind, c.mode, c.reason) for c in table.cells if c.state is State.REFUSED})
    for kind, mode, reason in refused:
        print(f"{mode:<8} {kind:<24} refused: {reason}")
    counts = Counter(str(c.state) for c in table.cells)
    told = ", ".join(f"{number} {state}" for state, number in counts.items())
    print(f"{table.version} ({table.release}), {table.seconds:.0f} s: {told}")


def _line(c: Cell) -> str:
    found = "" if c.repaired is None else f", {c.repaired} by comparing"
    return (
        f"{c.mode:<8} {c.kind:<24} {c.writer:<24} {c.operation:<22} "
        f"{c.seen:>5}/{c.expected:<5} {c.state}{found}{': ' if c.reason else ''}{c.reason}"
    )
