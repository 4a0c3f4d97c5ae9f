"""The unit under a real systemd: hardened as it is, the bridge must still capture by probes."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from bridge.kernel.maps import MapType, create_map

CONFIG = Path("/etc/mapbridge/mapbridge.toml")
PINS = Path("/sys/fs/bpf")
STATUS = Path("/var/lib/mapbridge/status.json")
LOG = Path("/var/trial/log")
ENTRIES = 211
WAIT_SECONDS_MAX = 300.0  # probes take a minute to compile where the machine is emulated


def main() -> None:
    maps = {}
    for name in ("first", "second"):
        maps[name] = create_map(MapType.HASH, 16, 24, 1_024, name=name)
        maps[name].pin(PINS / name)
    configure("first")
    systemctl("start", "mapbridge")
    told = properties("StatusText", "MainPID", "SubState")
    mode = section("capture").get("mode")
    assert mode == "fentry", status()["capture"]
    print(f"started: {told['StatusText']}, capture {mode}", flush=True)
    print(f"  {limits(int(told['MainPID']))}", flush=True)

    for number in range(ENTRIES):
        maps["first"].update(number.to_bytes(16, "big"), bytes(24))
    until(lambda: published("first") == ENTRIES, "changes by system calls are seen")
    print(f"captured: {ENTRIES} of {ENTRIES} changes", flush=True)

    configure("first", "second")
    systemctl("reload", "mapbridge")
    until(lambda: {"first", "second"} <= set(section("maps")), "a second map")
    CONFIG.write_text("[node]\nname = 'a b'\n")
    assert call("systemctl", "reload", "mapbridge") != 0, "a wrong configuration was taken"
    assert properties("SubState")["SubState"] == "running"
    print("reload: a map more; a wrong configuration refused, and the bridge runs on", flush=True)

    configure("first")
    call("kill", "-STOP", properties("MainPID")["MainPID"])
    until(lambda: properties("NRestarts")["NRestarts"] == "1", "the watchdog's restart")
    until(lambda: properties("SubState")["SubState"] == "running", "it runs again")
    print("watchdog: a bridge that hung was ended and started again", flush=True)

    systemctl("stop", "mapbridge")
    assert properties("Result")["Result"] == "success"
    CONFIG.write_text("[node]\nname = 'a b'\n")
    call("systemctl", "start", "mapbridge")
    time.sleep(5.0)  # more than RestartSec
    told = properties("SubState", "ExecMainStatus", "NRestarts")
    assert (told["SubState"], told["ExecMainStatus"], told["NRestarts"]) == ("failed", "78", "0")
    print("a wrong configuration: exit 78, not tried again", flush=True)


def configure(*names: str) -> None:
    maps = "".join(f'[[maps]]\nname = "{name}"\npin = "{PINS / name}"\n' for name in names)
    CONFIG.write_text(f'[node]\nname = "a"\n[broker]\nlisten = "127.0.0.1:4222"\n{maps}')


def call(*command: str) -> int:
    return subprocess.run(command, timeout=WAIT_SECONDS_MAX, check=False).returncode


def systemctl(*arguments: str) -> None:
    assert call("systemctl", *arguments) == 0, LOG.read_text()[-4_000:]


def properties(*names: str) -> dict[str, str]:
    command = ["systemctl", "show", "mapbridge", "-p", ",".join(names)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


def limits(process: int) -> str:
    text = Path(f"/proc/{process}/status").read_text()
    found = re.findall(r"^(CapEff|CapBnd|NoNewPrivs|Seccomp):\s*(\S+)$", text, re.MULTILINE)
    return ", ".join(f"{name} {value}" for name, value in found)


def status() -> dict[str, object]:
    try:
        found = json.loads(STATUS.read_text())
    except FileNotFoundError:
        return {}
    assert isinstance(found, dict)
    return found


def section(name: str) -> dict[str, object]:
    found = status().get(name)
    return found if isinstance(found, dict) else {}


def published(name: str) -> int:
    found = section("maps")[name]
    assert isinstance(found, dict)
    return int(found["published"]["changes"])


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}\n{LOG.read_text()[-4_000:]}"
        time.sleep(0.5)


if __name__ == "__main__":
    main()
