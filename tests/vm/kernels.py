"""Gets a Debian kernel with its modules into ``build/vm/kernels/VERSION/``, without installing it.

apt runs with sources, lists and caches of its own below ``build/vm/``: the system's sources and
installed packages stay as they are. A kernel that was unpacked once is used again without network.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bridge.errors import UnavailableError
from tests.vm.mirror import Mirror, find_mirror

CHECKOUT: Final = Path(__file__).resolve().parents[2]
BUILD: Final = CHECKOUT / "build" / "vm"

_DOWNLOAD_TRIES = 3
_APT_SECONDS_MAX = 300.0
_PACKAGE_NAME = re.compile(r"linux-(?:image|binary|modules|base)-[0-9][A-Za-z0-9.+~-]*")


@dataclass(frozen=True, slots=True)
class Suite:
    """Where a kernel version comes from."""

    codename: str
    has_security: bool


SUITES: Final[dict[str, Suite]] = {
    "5.10": Suite("bullseye", has_security=True),
    "6.1": Suite("bookworm", has_security=True),
    "6.12": Suite("trixie", has_security=True),
    "7.2": Suite("forky", has_security=False),
}


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel on disk. ``modules`` is the folder named after ``release`` (as in ``uname -r``)."""

    version: str
    release: str
    image: Path
    modules: Path


def fetch_kernel(version: str, build: Path = BUILD) -> Kernel:
    """The kernel ``version`` (a key of SUITES), downloaded when it is not there yet.

    Raises UnavailableError when the version is unknown, the download fails or the package does not
    have the expected shape.
    """
    if version not in SUITES:
        raise UnavailableError(
            f"kernel {version}: unknown version",
            hint=f"choose one of {', '.join(SUITES)}",
        )
    home = build / "kernels" / version
    home.parent.mkdir(parents=True, exist_ok=True)
    with (build / "kernels" / f".{version}.lock").open("w") as lock:
        # Two runs side by side: one downloads, the other waits and finds it done.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not home.is_dir():
            _install(version, build, home)
    return _locate(version, home)


def _install(version: str, build: Path, home: Path) -> None:
    _require_tools()
    partial = build / "kernels" / f".{version}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    packages = _download(version, build)
    for package in packages:
        _run(["dpkg", "-x", str(package), str(partial)])
    _run(["depmod", "-b", str(partial), _locate(version, partial).release])
    # The rename comes last: a folder under the final name is always complete.
    partial.rename(home)
    for package in packages:
        package.unlink()


def _require_tools() -> None:
    packages = {"apt-get": "apt", "dpkg": "dpkg", "depmod": "kmod"}
    missing = [package for tool, package in packages.items() if _which(tool) is None]
    if missing:
        raise UnavailableError(
            f"kernel download: tools missing (of the packages {', '.join(missing)})",
            hint=f"apt-get install {' '.join(missing)}",
        )


def _which(tool: str) -> str | None:
    # depmod lies in sbin, which an ordinary user's PATH may not have.
    return shutil.which(tool) or shutil.which(tool, path="/usr/sbin:/sbin")


def _locate(version: str, home: Path) -> Kernel:
    usr_modules = home / "usr" / "lib" / "modules"
    if usr_modules.is_dir() and not (home / "lib").exists():
        # depmod and modprobe of older distributions look below lib/ only.
        (home / "lib").symlink_to("usr/lib")
    folders = sorted(path for path in home.glob("lib/modules/*") if path.is_dir())
    if len(folders) != 1:
        raise UnavailableError(
            f"kernel {version}: expected one modules folder (got {len(folders)})",
            hint=f"remove {home} and run again",
        )
    modules = folders[0]
    release = modules.name
    # Since 7.x the image lies beside the modules, no longer in boot/.
    for image in (home / "boot" / f"vmlinuz-{release}", modules / "vmlinuz"):
        if image.is_file():
            return Kernel(version, release, image, modules)
    raise UnavailableError(
        f"kernel {version}: no vmlinuz in the package", hint=f"remove {home} and run again"
    )


def _download(version: str, build: Path) -> list[Path]:
    suite = SUITES[version]
    mirror = find_mirror(_codename())
    work = build / "apt" / suite.codename
    for folder in ("lists/partial", "cache/archives/partial", "packages"):
        (work / folder).mkdir(parents=True, exist_ok=True)
    (work / "status").touch()
    options = _apt_options(work)
    _refresh(suite, mirror, work, options)
    names = _resolve(version, options)
    packages = work / "packages"
    for old in packages.glob("*.deb"):
        old.unlink()
    _retry(["apt-get", *options, "--quiet", "download", *names], cwd=packages)
    files = sorted(packages.glob("*.deb"))
    if len(files) != len(names):
        raise UnavailableError(
            f"kernel {version}: expected {len(names)} packages (got {len(files)})",
            hint=f"remove {work} and run again",
        )
    return files


def _codename() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        name, _, value = line.partition("=")
        if name == "VERSION_CODENAME":
            return value.strip('"')
    return "unknown"


def _apt_options(work: Path) -> list[str]:
    settings = {
        "Dir::Etc::SourceList": str(work / "kernel.sources"),
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": str(work / "lists"),
        "Dir::State::status": str(work / "status"),
        "Dir::Cache": str(work / "cache"),
        "Acquire::Retries": "3",
        "Acquire::http::Timeout": "30",
        "APT::Update::Error-Mode": "any",
        # The unprivileged user of apt may not be able to write below the checkout.
        "APT::Sandbox::User": "",
    }
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def _refresh(suite: Suite, mirror: Mirror, work: Path, options: Sequence[str]) -> None:
    sources = work / "kernel.sources"
    sources.write_text(mirror.sources_list(suite.codename, with_security=suite.has_security))
    update = ["apt-get", *options, "--quiet", "update"]
    if not suite.has_security:
        _retry(update, cwd=work)
        return
    try:
        _retry(update, cwd=work)
    except UnavailableError:
        # A suite past its end of life loses its security archive before its main one.
        sources.write_text(mirror.sources_list(suite.codename, with_security=False))
        _retry(update, cwd=work)


def _resolve(version: str, options: Sequence[str]) -> list[str]:
    """The packages to unpack: the newest image and, where it is split, its parts."""
    wanted: list[str] = []
    pending = [f"linux-image-{_architecture()}"]
    while pending:
        name = pending.pop()
        shown = _run(["apt-cache", *options, "show", "--no-all-versions", name])
        depends = re.search(r"^Depends: (.*)$", shown, re.MULTILINE)
        for match in _PACKAGE_NAME.findall(depends.group(1) if depends else ""):
            if match not in wanted:
                wanted.append(match)
                pending.append(match)
    prefix = re.compile(rf"linux-[a-z]+-{re.escape(version)}(?![0-9])")
    if not wanted or not all(prefix.match(name) for name in wanted):
        raise UnavailableError(
            f"kernel {version}: {SUITES[version].codename} has no such kernel "
            f"(got {', '.join(wanted) or 'nothing'})",
            hint=f"choose another of {', '.join(SUITES)}",
        )
    return wanted


def _architecture() -> str:
    return _run(["dpkg", "--print-architecture"]).strip()


def _retry(command: Sequence[str], *, cwd: Path) -> None:
    for attempt in range(1, _DOWNLOAD_TRIES + 1):
        try:
            _run(command, cwd=cwd)
        except UnavailableError:
            if attempt == _DOWNLOAD_TRIES:
                raise
            time.sleep(attempt)
        else:
            return


def _run(command: Sequence[str], *, cwd: Path | None = None) -> str:
    tool = _which(command[0]) or command[0]
    try:
        done = subprocess.run(
            [tool, *command[1:]],
            cwd=cwd,
            check=False,
            capture_output=True,
            text=True,
            timeout=_APT_SECONDS_MAX,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(
            f"kernel download: {command[0]} did not end within {_APT_SECONDS_MAX:.0f} s"
        ) from error
    if done.returncode != 0:
        last = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise UnavailableError(
            f"kernel download: {command[0]} failed (got {done.returncode}): {' | '.join(last)}",
            hint="look at the network and at the machine's apt sources",
        )
    return done.stdout
