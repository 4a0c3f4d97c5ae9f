"""What ``mapbridge doctor`` looks at on this machine, besides the canary."""

from __future__ import annotations

import enum
import importlib
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from bridge.config import Config
from bridge.errors import BridgeError, Exit
from bridge.kernel.features import Answer, Feature, probe_all

TOOL_SECONDS_MAX = 10.0
# Without these nothing works; without any other the bridge works in another mode, or a command not.
_NEEDED = frozenset({"kernel version", "CAP_BPF", "CAP_SYS_ADMIN"})


class State(enum.StrEnum):
    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report. ``fix`` is empty where there is nothing to mend."""

    name: str
    state: State
    detail: str
    why: str
    fix: str = ""
    needed: bool = False
    exit_code: Exit = Exit.UNAVAILABLE  # of the command, when this is needed and ``NO``


def look_around(config: Config | None) -> Iterator[Check]:
    """All checks, in the order in which a reader wants them. May take some seconds."""
    for feature in probe_all():
        yield _of_feature(feature)
    yield _bcc()
    yield _tool(
        "clang",
        ["clang", "--version"],
        "compiles the example program of `mapbridge demo`",
        "apt install clang",
    )
    yield _tool(
        "bpftool",
        ["bpftool", "version"],
        "loads the example program of `mapbridge demo`",
        "apt install bpftool (Ubuntu: linux-tools-generic)",
    )
    yield _server(needed=config is not None and config.broker.embedded)
    if config is not None:
        yield _broker(config)


def exit_code(checks: list[Check]) -> Exit:
    """A missing privilege comes first, because it may be why other things seem to be missing."""
    failed = {check.exit_code for check in checks if check.needed and check.state is State.NO}
    if Exit.PRIVILEGE in failed:
        return Exit.PRIVILEGE
    return Exit.UNAVAILABLE if failed else Exit.OK


def _of_feature(feature: Feature) -> Check:
    state = {Answer.YES: State.YES, Answer.NO: State.NO, Answer.UNKNOWN: State.UNKNOWN}
    return Check(
        feature.name,
        state[feature.answer],
        feature.reason,
        feature.why_it_matters,
        feature.mend,
        needed=feature.name in _NEEDED,
        exit_code=Exit.PRIVILEGE if feature.name.startswith("CAP_") else Exit.UNAVAILABLE,
    )


def _bcc() -> Check:
    why = "compiles and attaches the probes; without it there are sweeps and emitting programs"
    fix = (
        "apt install python3-bpfcc, and make the virtual environment with "
        "/usr/bin/python3 -m venv --system-site-packages (PyPI's bcc is another thing)"
    )
    try:
        bcc = importlib.import_module("bcc")
    except ImportError as error:
        return Check("BCC", State.NO, str(error).lower(), why, fix)
    except OSError as error:  # the bindings are there, the library that they load is not
        return Check("BCC", State.NO, f"libbcc cannot be loaded: {error}", why, fix)
    if not hasattr(bcc, "BPF"):
        return Check("BCC", State.NO, f"{bcc.__file__} is another package", why, fix)
    return Check("BCC", State.YES, getattr(bcc, "__version__", "version not told"), why)


def _tool(name: str, arguments: list[str], why: str, fix: str) -> Check:
    path = shutil.which(arguments[0])
    if path is None:
        return Check(name, State.NO, "not on PATH", why, fix)
    try:
        said = subprocess.run(
            [path, *arguments[1:]],
            capture_output=True,
            text=True,
            timeout=TOOL_SECONDS_MAX,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Check(name, State.UNKNOWN, f"{path}: {error}", why, fix)
    return Check(name, State.YES, said.stdout.partition("\n")[0], why)


def _server(*, needed: bool) -> Check:
    from bridge.bus.server_binary import find_server

    why = "a node without broker.url starts it"
    try:
        found = find_server()
    except BridgeError as error:
        return Check("nats-server", State.NO, str(error), why, error.hint, needed=needed)
    detail = f"{'.'.join(map(str, found.version))}, {found.path}"
    return Check("nats-server", State.YES, detail, why, needed=needed)


def _broker(config: Config) -> Check:
    from bridge.cli.broker import look_at_broker

    why = "carries the changes between the nodes"
    try:
        state = look_at_broker(config)
    except BridgeError as error:
        return Check("broker", State.NO, str(error), why, error.hint, needed=True)
    if state is None:
        detail = f"embedded, will listen on {config.broker.listen}"
    else:
        detail = f"nats-server {state.server_version}, payload up to {state.max_payload} bytes"
    return Check("broker", State.YES, detail, why, needed=True)
