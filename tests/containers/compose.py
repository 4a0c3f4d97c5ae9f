"""docker-compose.yml, really started: three servers, three bridges, traffic, Prometheus.

Images that are not here and cannot be pulled are left out and named, or replaced: with
``stand_ins`` the NATS servers run from mapbridge's own image, which has the same program, and
Prometheus is Debian's. Ports of the host stay closed, so that it runs beside others.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from tests.containers.engine import ROOT, Engine, EngineError
from tests.containers.image import BASE, IMAGES

FILE = ROOT / "docker-compose.yml"
PROJECT = "mapbridge-check"
BRIDGES = ("bridge-a", "bridge-b", "bridge-c")
WAIT_SECONDS_MAX = 120.0
PULL_SECONDS_MAX = 300.0
_NATS = f"""\
FROM {IMAGES["bridge"]}
HEALTHCHECK NONE
ENTRYPOINT ["/opt/mapbridge/bin/nats-server"]
CMD []
"""
_FETCH = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=9).read().decode())"


def check(engine: Engine, *, stand_ins: bool) -> None:
    _check_file()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "docker-compose.yml"
        path.write_text(yaml.safe_dump(_adapted(engine, stand_ins=stand_ins), sort_keys=False))
        project = Project(engine, path)
        try:
            project.up()
            _look(project)
        finally:
            project.down()


def _check_file() -> None:
    """As Docker's own tool reads it, where it is here."""
    if shutil.which("docker-compose"):
        command = ["docker-compose", "-f", str(FILE), "config", "--quiet"]
        subprocess.run(command, timeout=60, check=True)
        print("docker-compose config: no complaint")


def _adapted(engine: Engine, *, stand_ins: bool) -> dict[str, dict[str, dict[str, object]]]:
    content = yaml.safe_load(FILE.read_text())
    for name, service in list(content["services"].items()):
        if not _have(engine, service["image"], stand_ins=stand_ins):
            print(f"not started: {name}, its image {service['image']} cannot be had here")
            del content["services"][name]
            continue
        service.pop("ports", None)
        service.pop("build", None)
        volumes = service.get("volumes", [])
        service["volumes"] = [f"{ROOT}/{v[2:]}" if v.startswith("./") else v for v in volumes]
    return dict(content)


def _have(engine: Engine, image: str, *, stand_ins: bool) -> bool:
    if engine.has_image(image):
        return True
    if image in IMAGES.values():
        raise EngineError(f"image {image}: not built (make image)")
    if engine.try_run("pull", "-q", image, seconds_max=PULL_SECONDS_MAX).returncode == 0:
        return True
    if not stand_ins:
        return False
    if "/nats:" in image:
        engine.build("-t", image, context=ROOT / "deploy" / "compose", text=_NATS)
        return True
    prometheus = shutil.which("prometheus")
    if "/prometheus:" in image and prometheus:
        with tempfile.TemporaryDirectory() as directory:
            shutil.copy(prometheus, directory)
            file = Path(directory) / "Dockerfile"
            file.write_text(
                f'FROM {BASE}\nCOPY prometheus /bin/prometheus\nENTRYPOINT ["/bin/prometheus"]\n'
            )
            engine.build("-t", image, "-f", str(file), context=Path(directory))
        return True
    return False


class Project:
    """The services, up."""

    def __init__(self, engine: Engine, path: Path) -> None:
        self.engine = engine
        self._compose = [*engine.compose_command(), "-p", PROJECT, "-f", str(path)]

    def compose(self, *arguments: str) -> None:
        done = self.engine.run_tool([*self._compose, *arguments], seconds_max=300)
        if done.returncode:
            raise EngineError(f"compose {' '.join(arguments)}: {done.stderr[-800:]}")

    def up(self) -> None:
        self.compose("up", "-d", "--no-build")

    def down(self) -> None:
        # The pins outlive the containers, and belong to whoever loads.
        self.engine.try_run("stop", "-t", "30", self.container("tracker"))
        self.engine.try_run(
            *("run", "--rm", "--privileged", "-v", "/sys/fs/bpf:/sys/fs/bpf"),
            *(IMAGES["example"], "remove"),
        )
        self.compose("down", "-v")

    def container(self, service: str) -> str:
        between = "-" if self.engine.name == "docker" else "_"
        return f"{PROJECT}{between}{service}{between}1"

    def mapbridge(self, service: str, *arguments: str) -> str:
        return self.engine.run("exec", self.container(service), "mapbridge", *arguments)

    def status(self, service: str) -> dict[str, object]:
        found = json.loads(self.mapbridge(service, "status", "--json"))["maps"]["conntrack"]
        assert isinstance(found, dict)
        return found

    def applied(self, service: str) -> int:
        apply = self.status(service)["apply"]
        assert isinstance(apply, dict)
        return int(apply["changes"])

    def healthy(self, service: str) -> bool:
        name = self.container(service)
        if self.engine.name == "podman":
            return self.engine.try_run("healthcheck", "run", name).returncode == 0
        asked = self.engine.run("inspect", "--format", "{{.State.Health.Status}}", name)
        return asked.strip() == "healthy"

    def fetch(self, url: str) -> dict[str, object]:
        """Out of the containers' own network."""
        python = ("/opt/mapbridge/bin/python", "-c", _FETCH, url)
        found = json.loads(self.engine.run("exec", self.container("bridge-a"), *python))["data"]
        assert isinstance(found, dict)
        return found


def _look(project: Project) -> None:
    for bridge in BRIDGES:
        _until(lambda one=bridge: _is_synced(project, one), f"{bridge} is synced")  # type: ignore[misc]
    _until(lambda: project.applied("bridge-b") > 2_500, "changes arrive")
    print(project.mapbridge("bridge-c", "status", "--nodes"), end="")
    print(project.mapbridge("bridge-c", "verify", "conntrack"), end="")

    assert all(project.healthy(bridge) for bridge in BRIDGES)
    name = project.container("bridge-c")
    project.engine.run("kill", "--signal", "STOP", name)
    _until(lambda: not project.healthy("bridge-c"), "a bridge that hangs is seen")
    project.engine.run("kill", "--signal", "CONT", name)
    _until(lambda: project.healthy("bridge-c"), "and lives again")
    print("health: a bridge that was stopped was seen, and seen to live again")

    if project.engine.try_run("inspect", project.container("prometheus")).returncode == 0:
        _until(lambda: _targets(project) == ["up"] * 3, "three targets are up")
        groups = project.fetch("http://prometheus:9090/api/v1/rules")["groups"]
        assert isinstance(groups, list)
        rules = [rule for group in groups for rule in group["rules"]]
        _until(lambda: _firing(project) == [], "no alert")
        print(f"prometheus: 3 targets up, {len(rules)} rules, none fires")

    project.engine.run("kill", project.container("nats-2"))
    before = project.applied("bridge-b")
    _until(lambda: project.applied("bridge-b") > before + 500, "changes arrive without nats-2")
    print("nats-2 killed: changes go on")
    project.engine.run("stop", "-t", "30", project.container("tracker"))
    _until(lambda: _entries(project) == {0}, "the maps are empty when all connections are closed")
    print("tracker stopped: all connections closed, no entry left on any node")


def _is_synced(project: Project, service: str) -> bool:
    try:
        return project.status(service)["synced"] is True
    except (EngineError, KeyError):
        return False


def _targets(project: Project) -> list[str]:
    found = project.fetch("http://prometheus:9090/api/v1/targets")["activeTargets"]
    assert isinstance(found, list)
    return [str(target["health"]) for target in found]


def _firing(project: Project) -> list[object]:
    found = project.fetch("http://prometheus:9090/api/v1/alerts")["alerts"]
    assert isinstance(found, list)
    return [alert["labels"] for alert in found if alert["state"] == "firing"]


def _entries(project: Project) -> set[int]:
    try:
        told = json.loads(project.mapbridge("bridge-a", "verify", "conntrack", "--json"))
    except EngineError:
        return {-1}
    return set(told["nodes"].values())


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not condition():
        if time.monotonic() > deadline:
            raise EngineError(f"not in {WAIT_SECONDS_MAX:.0f} s: {what}")
        time.sleep(1.0)
