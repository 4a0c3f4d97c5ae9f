"""The images: built, and looked at as a user would."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import bridge
from tests.containers.engine import Engine, EngineError

BASE = "docker.io/library/debian:bookworm-slim"
SUITE = "bookworm"
IMAGES = {"bridge": "mapbridge", "example": "mapbridge-example"}  # by the Dockerfile's targets
MEGABYTES_MAX = 600  # a mistake in the Dockerfile, not a budget


def build(engine: Engine, *, bootstrap: bool) -> None:
    if bootstrap and not engine.has_image(BASE):
        _bootstrap(engine)
    for target, name in IMAGES.items():
        engine.build("--target", target, "-t", name)
    _check(engine)


def _check(engine: Engine) -> None:
    def inside(*command: str, options: tuple[str, ...] = ()) -> str:
        return engine.run("run", "--rm", "--network", "none", *options, *command)

    name = IMAGES["bridge"]
    found = json.loads(engine.run("image", "inspect", name))[0]
    labels = found["Config"]["Labels"]
    assert labels["org.opencontainers.image.title"] == "mapbridge", labels
    health = found.get("Healthcheck") or found["Config"].get("Healthcheck")
    assert health["Test"] == ["CMD", "mapbridge", "status", "--alive"], health
    assert inside(name, "--version") == f"mapbridge {bridge.__version__}\n"
    # Commands that only read need no root and no capability.
    nobody = ("--user", "65534", "--cap-drop", "ALL", "--read-only")
    assert "--where" in inside(name, "watch", "--help", options=nobody)
    doctor = engine.try_run("run", "--rm", "--network", "none", name, "doctor", "--json")
    states = {check["name"]: check["state"] for check in json.loads(doctor.stdout)["checks"]}
    assert (states["BCC"], states["nats-server"]) == ("yes", "yes"), states
    megabytes = found["Size"] / 1e6
    print(f"image {name}: {megabytes:.0f} MB, the base included")
    assert megabytes < MEGABYTES_MAX, megabytes


def _bootstrap(engine: Engine) -> None:
    """The base out of Debian's packages, for machines that reach no registry of images.

    It takes this machine's own certificates along, which its proxy may need.
    """
    if shutil.which("debootstrap") is None:
        raise EngineError("debootstrap: not found (apt install debootstrap)")
    with tempfile.TemporaryDirectory(prefix="mapbridge-base-") as directory:
        root = Path(directory) / "root"
        packages = ["--variant=minbase", "--include=ca-certificates"]
        subprocess.run(
            ["debootstrap", *packages, SUITE, str(root)],
            stdout=subprocess.DEVNULL,
            timeout=900,
            check=True,
        )
        for own in ("usr/local/share/ca-certificates", "etc/apt/sources.list.d"):
            if (Path("/") / own).is_dir():
                shutil.copytree(Path("/") / own, root / own, dirs_exist_ok=True)
        (root / "etc/pip.conf").write_text(
            "[global]\ncert = /etc/ssl/certs/ca-certificates.crt\ntimeout = 180\n"
        )
        for old in (root / "var/cache/apt").rglob("*"):
            if old.is_file():
                old.unlink()
        archive = Path(directory) / "base.tar"
        subprocess.run(["tar", "-C", str(root), "-cf", str(archive), "."], check=True)
        engine.run("import", str(archive), BASE, seconds_max=300)
