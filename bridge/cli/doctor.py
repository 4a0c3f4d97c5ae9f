"""``mapbridge doctor``: what this machine can do, and how to mend what it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bridge.cli import output
from bridge.cli.findings import Check, State, exit_code, look_around
from bridge.cli.options import optional_config_option
from bridge.config import load
from bridge.errors import Exit

if TYPE_CHECKING:
    from bridge.cli.coverage import ModeReport

_INDENT = " " * 9


@click.command("doctor")
@optional_config_option
@click.option("--no-canary", is_flag=True, help="Attach no probes and prove nothing (fast).")
@output.json_option
@click.pass_context
def command(ctx: click.Context, config_path: Path | None, no_canary: bool, as_json: bool) -> None:
    """Tell what this machine can do, and how to mend what it cannot.

    Each line says yes, no or unknown. Then probes are attached and a private map is written in
    every way, to show what they see on this kernel. Without --config the broker is not looked at.
    Exit code 69 when something is missing without which the bridge cannot run, 77 when it is a
    privilege.

    \b
    Examples:
      mapbridge doctor
      mapbridge doctor -c mapbridge.toml --json
    """
    config = load(config_path) if config_path is not None else None
    checks = list(look_around(config))
    code = exit_code(checks)
    canary = None if no_canary or code is Exit.PRIVILEGE else _try_modes()
    if as_json:
        document = {"ok": code is Exit.OK, "exit_code": int(code), "checks": checks}
        if canary is not None:
            reports, mode = canary
            document |= {"modes": reports, "automatic_mode": mode}
        output.print_json(document)
    else:
        _print_checks(checks)
        if canary is not None:
            _print_modes(*canary)
        _print_verdict(checks)
    ctx.exit(code)


def _try_modes() -> tuple[list[ModeReport], str]:
    from bridge.cli.coverage import automatic_mode, probe_modes

    reports = probe_modes()
    return reports, str(automatic_mode(reports))


def _print_checks(checks: list[Check]) -> None:
    width = max(len(check.name) for check in checks)
    for check in checks:
        state = output.mark(check.state.value) + " " * (9 - len(check.state))
        output.line(f"{state}{check.name.ljust(width)}  {check.detail}")
        if check.state is not State.YES:
            output.line(f"{_INDENT}  {'needed' if check.needed else 'why'}: {check.why}")
            if check.fix:
                output.line(f"{_INDENT}  try: {check.fix}")


def _print_modes(reports: list[ModeReport], automatic: str) -> None:
    from bridge.cli.coverage import summary

    for report in reports:
        output.line()
        if report.error:
            output.line(f"mode {report.mode}: cannot be used: {report.error}")
            if report.hint:
                output.line(f"  try: {report.hint}")
            continue
        verdict = "proven" if report.proven else "not proven"
        output.line(f"mode {report.mode}: {verdict}; a map was written, and the probes reported:")
        output.print_table(
            ("writer", "operation", "reported", "detail"),
            [
                (w.writer, w.operation, w.seen, w.detail)
                for w in report.writes
                if w.map_type == "hash"
            ],
        )
        output.line()
        output.print_table(
            ("type of map", "system call", "batch system call", "bpf program"), summary(report)
        )
        for map_type, reason in report.uncovered.items():
            output.line(f"{map_type} maps are swept here: {reason}")
    output.line()
    output.line(f'capture.mode = "auto" means "{automatic}" here')


def _print_verdict(checks: list[Check]) -> None:
    missing = [c.name for c in checks if c.needed and c.state is State.NO]
    output.line()
    if missing:
        output.line(f"mapbridge cannot run here: {', '.join(missing)}")
    else:
        output.line("mapbridge can run here")
