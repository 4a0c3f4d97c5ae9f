"""``mapbridge status``: what the bridge of this node says of itself, and a gate for scripts."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import click

from bridge.cli import output
from bridge.cli.alive import ask_livez
from bridge.cli.names import MAP, NODE
from bridge.cli.options import Duration, config_option
from bridge.config import Config, load
from bridge.errors import BridgeError, Exit
from bridge.node.instance import read_status

STALE_SECONDS = 3.0  # the bridge writes its status twice a second
POLL_SECONDS = 0.1


class NotRunningError(BridgeError):
    """No bridge runs with this state directory, or it does not answer any more."""

    exit_code = Exit.UNAVAILABLE


class NotSyncedError(BridgeError):
    """The map did not get synced in time."""

    exit_code = Exit.TEMPORARY


@click.command("status")
@config_option
@click.option(
    "--wait-synced",
    "awaited",
    metavar="MAP",
    type=MAP,
    help="Wait until this map is synced; `all`: all maps.",
)
@click.option(
    "--joined",
    "once_is_enough",
    is_flag=True,
    help="With --wait-synced: it is enough that the map has caught up once since it was opened.",
)
@click.option(
    "--alive",
    "whether_alive",
    is_flag=True,
    help="Tell only whether the bridge lives, for container engines.",
)
@click.option(
    "--nodes",
    "of_all_nodes",
    is_flag=True,
    help="All nodes of the cluster, as they tell the broker.",
)
@click.option(
    "--node",
    "of_node",
    metavar="NODE",
    type=NODE,
    help="With --wait-synced: another node, by what it tells the broker.",
)
@click.option(
    "--timeout",
    "timeout_seconds",
    type=Duration(),
    default="30s",
    show_default=True,
    help="How long to wait; 0 asks once.",
)
@output.json_option
def command(
    config_path: Path,
    awaited: str | None,
    once_is_enough: bool,
    whether_alive: bool,
    of_all_nodes: bool,
    of_node: str | None,
    timeout_seconds: float,
    as_json: bool,
) -> None:
    """Tell how this node's maps stand; wait until one is synced.

    A map is synced when everything that the stream held was written to it, the broker is there, and
    it is no more than 5 seconds behind (`lag` of the configuration). Exit code 0: so it is; 75: not
    within the timeout; 69: no bridge runs here.

    \b
    Examples:
      mapbridge status
      mapbridge status --wait-synced ct --timeout 30s
      mapbridge status --wait-synced all --timeout 0 --json
      mapbridge status --wait-synced all --joined --timeout 0
      mapbridge status --wait-synced ct --node lb-2
      mapbridge status --nodes
      mapbridge status --alive
    """
    config = load(config_path)
    if whether_alive:
        _print_alive(config, as_json=as_json)
        return
    if once_is_enough and (awaited is None or of_node is not None):
        raise click.UsageError("--joined: needs --wait-synced, and is for this node only")
    if of_all_nodes or of_node is not None:
        from bridge.cli import cluster  # NATS doubles the time that a script waits for its answer

        cluster.show(config, of_node, awaited, timeout_seconds, as_json=as_json)
        return
    if awaited is not None and awaited != "all" and not _has(config, awaited):
        names = ", ".join(entry.name for entry in config.maps)
        raise click.UsageError(
            f"--wait-synced: {awaited} is no map of {config_path} (maps: {names})"
        )
    directory = config.node.state_directory
    if awaited is None:
        _print(read_running(directory), as_json=as_json)
        return
    wanted = [awaited]
    if awaited == "all":
        wanted = [entry.name for entry in config.maps if not entry.selector.is_pattern]
    good = _has_joined if once_is_enough else _is_synced
    status = _await(directory, wanted, timeout_seconds, good, found_too=awaited == "all")
    _print(status, as_json=as_json)


def _print_alive(config: Config, *, as_json: bool) -> None:
    """Asks the daemon at `[http]`, or looks at how old its last word is; raises when it hangs."""
    if config.http.listen is not None:
        answer = ask_livez(config)
        phase, step = answer.get("phase"), answer.get("step")
    else:
        read_running(config.node.state_directory)
        phase, step = "running", ""
    if as_json:
        output.print_json({"alive": True, "phase": phase, "step": step})
    else:
        output.line(f"alive, {phase}{f': {step}' if step else ''}")


def _has(config: Config, name: str) -> bool:
    try:
        config.map(name)
    except KeyError:
        return False
    return True


def _is_synced(found: dict[str, object]) -> bool:
    return found.get("synced") is True


def _has_joined(found: dict[str, object]) -> bool:
    """It may have fallen behind since, or lost the broker."""
    return found.get("state") in ("running", "parked")


def _await(
    directory: Path,
    wanted: list[str],
    timeout_seconds: float,
    good: Callable[[dict[str, object]], bool],
    *,
    found_too: bool,
) -> dict[str, object]:
    """The status in which all of ``wanted`` are good, those that patterns found too."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        late = time.monotonic() >= deadline
        try:
            status = read_running(directory)
        except NotRunningError:
            if late:
                raise
        else:
            maps = status.get("maps")
            found = maps if found_too and isinstance(maps, dict) else {}
            names = dict.fromkeys([*wanted, *found])
            behind = [name for name in names if not good(_map(status, name))]
            if not behind:
                return status
            if late:
                raise _not_synced(behind[0], _map(status, behind[0]))
        time.sleep(min(POLL_SECONDS, max(deadline - time.monotonic(), 0.0)))


def _not_synced(name: str, found: dict[str, object]) -> NotSyncedError:
    state, behind = found.get("state", "unknown"), found.get("behind_seconds")
    told = f", {behind:.1f} s behind" if isinstance(behind, float) else ""
    return NotSyncedError(
        f"map {name}: not synced (state {state}{told})",
        hint="give it more time with --timeout, and see `mapbridge status` and the bridge's log",
    )


def read_running(directory: Path) -> dict[str, object]:
    """What the bridge with this state directory says; raises ``NotRunningError``."""
    status = read_status(directory)
    if status is None:
        raise NotRunningError(
            f"state directory {directory}: no bridge runs here", hint="start `mapbridge run`"
        )
    written = status.get("written")
    age = time.time() - written if isinstance(written, float) else float("inf")
    if age > STALE_SECONDS:
        raise NotRunningError(
            f"bridge (process {status.get('process')}): has said nothing for {age:.0f} s",
            hint="see whether it hangs or was stopped, its log, and whether the disk is full",
        )
    return status


def _map(status: dict[str, object], name: str) -> dict[str, object]:
    maps = status.get("maps")
    found = maps.get(name) if isinstance(maps, dict) else None
    return found if isinstance(found, dict) else {}


def _print(status: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        output.print_json(status)
        return
    broker, maps = status.get("broker"), status.get("maps")
    connected = isinstance(broker, dict) and broker.get("connected")
    where = broker.get("url") if isinstance(broker, dict) else ""
    output.line(
        f"node {status.get('node')}, cluster {status.get('cluster')}, "
        f"broker {'connected at ' + str(where) if connected else 'AWAY'}"
    )
    names = list(maps) if isinstance(maps, dict) else []
    if isinstance(broker, dict) and broker.get("trouble"):
        output.line(f"broker: {broker['trouble']}")
    for name in names:
        if trouble := _map(status, name).get("trouble"):
            output.line(f"map {name}: {trouble}")
    output.print_table(
        ["map", "role", "state", "synced", "behind s", "published", "applied", "lost", "repaired"],
        [_row(name, _map(status, name)) for name in names],
    )
    for name in names:
        if reason := _map(status, name).get("halted"):
            output.line(f"{name}: nothing is applied, {reason}; `mapbridge resume {name}` goes on")
    security = _section(status, "security")
    if security.get("dropped") and isinstance(kept := security.get("capabilities"), list):
        output.line(f"capabilities kept: {', '.join(map(str, kept)) or 'none'}")
    configuration = _section(status, "configuration")
    if configuration.get("trouble"):
        output.line(f"configuration: not taken, {configuration['trouble']}")
    if isinstance(keys := configuration.get("restart_needed"), list) and keys:
        output.line(f"as before until the bridge is restarted: {', '.join(map(str, keys))}")
    if status.get("dry_run"):
        output.line("dry run: no map is written, nothing is published")


def _row(name: str, found: dict[str, object]) -> list[object]:
    behind = found.get("behind_seconds")
    losses = _section(_section(found, "capture"), "losses")
    return [
        name,
        found.get("role"),
        "halted" if found.get("halted") else found.get("state"),
        "yes" if found.get("synced") else "no",
        f"{behind:.1f}" if isinstance(behind, float) else "-",
        _section(found, "published").get("changes", "-"),
        _section(found, "apply").get("changes", "-"),
        sum(count for count in losses.values() if isinstance(count, int)),
        _section(found, "capture").get("repaired", 0),
    ]


def _section(found: dict[str, object], name: str) -> dict[str, object]:
    section = found.get(name)
    return section if isinstance(section, dict) else {}
