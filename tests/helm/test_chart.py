"""The Helm chart: rendered by helm, held to Kubernetes' own schemas and to mapbridge's.

Run by ``make helm-check``, which finds a helm.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import bridge

CHART = Path(__file__).resolve().parents[2] / "deploy" / "helm" / "mapbridge"
HELM = os.environ.get("HELM", "helm")
VALUES = sorted((CHART / "ci").glob("*.yaml"))
VERSIONS = ("1.25", "1.29", "1.30", "1.33", "1.36")
UNKNOWN = {"ServiceMonitor"}  # of the Prometheus operator, no kind of Kubernetes' own
Manifest = dict[str, Any]


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [HELM, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def template(*arguments: str) -> dict[str, Manifest]:
    """The manifests by kind."""
    done = helm("template", "trial", str(CHART), "--namespace", "net", *arguments)
    assert done.returncode == 0, done.stderr
    found = [one for one in yaml.safe_load_all(done.stdout) if one]
    assert len({one["kind"] for one in found}) == len(found)
    return {one["kind"]: one for one in found}


def container(manifests: dict[str, Manifest]) -> Manifest:
    (found,) = manifests["DaemonSet"]["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_lint(values: Path) -> None:
    done = helm("lint", "--strict", str(CHART), "-f", str(values))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_kubernetes_knows_every_field(values: Path, version: str) -> None:
    manifests = template("-f", str(values), "--kube-version", f"v{version}.0")
    for kind, manifest in manifests.items():
        if kind not in UNKNOWN:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_the_schemas_do_refuse() -> None:
    manifest = template("-f", str(VALUES[0]))["DaemonSet"]
    manifest["spec"]["template"]["spec"]["hostPid"] = True
    with pytest.raises(kubernetes_validate.ValidationError, match="hostPid"):
        kubernetes_validate.validate(manifest, "1.33", strict=True)


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_the_bridge_takes_its_configuration(values: Path, tmp_path: Path) -> None:
    """The init container's own script fills in names that a TOML file could stumble over."""
    manifests = template("-f", str(values))
    (init,) = manifests["DaemonSet"]["spec"]["template"]["spec"]["initContainers"]
    source, target = tmp_path / "template.toml", tmp_path / "mapbridge.toml"
    source.write_text(manifests["Secret"]["stringData"]["mapbridge.toml"])
    script = init["command"][2].replace("/template/mapbridge.toml", str(source))
    script = script.replace("/etc/mapbridge/mapbridge.toml", str(target))
    environment = {"NODE": "ip-10-0-0-1.example", "BROKER": "nats://u:p%22@n:4222\n"}
    subprocess.run([sys.executable, "-c", script], env=environment, timeout=30, check=True)
    check = [sys.executable, "-m", "bridge.cli.main", "check", "--no-environment", "-c"]
    done = subprocess.run([*check, str(target)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 'name = "ip-10-0-0-1-example"' in target.read_text()
    assert "@" not in target.read_text().replace("u:p%22@n", "")
    port = container(manifests)["ports"][0]["containerPort"]
    assert f'listen = "0.0.0.0:{port}"' in target.read_text()


def test_capabilities_instead_of_privileges() -> None:
    unit = (CHART.parents[1] / "systemd" / "mapbridge.service").read_text()
    wanted = re.search(r"^CapabilityBoundingSet=(.*)$", unit, re.MULTILINE)
    assert wanted is not None
    context = container(template("-f", str(CHART / "ci" / "minimal-values.yaml")))[
        "securityContext"
    ]
    assert context["privileged"] is False
    assert context["capabilities"]["drop"] == ["ALL"]
    assert [f"CAP_{name}" for name in context["capabilities"]["add"]] == wanted[1].split()


@pytest.mark.parametrize(("version", "field"), [("v1.29.0", False), ("v1.30.0", True)])
def test_apparmor_is_asked_in_the_way_that_the_version_knows(version: str, field: bool) -> None:
    values = str(CHART / "ci" / "minimal-values.yaml")
    manifests = template("-f", values, "--kube-version", version)
    annotations = manifests["DaemonSet"]["spec"]["template"]["metadata"]["annotations"]
    assert ("appArmorProfile" in container(manifests)["securityContext"]) is field
    assert any("apparmor" in name for name in annotations) is not field


def test_another_configuration_starts_the_pods_again() -> None:
    values = str(CHART / "ci" / "minimal-values.yaml")

    def checksum(*arguments: str) -> str:
        spec = template("-f", values, *arguments)["DaemonSet"]["spec"]["template"]
        return str(spec["metadata"]["annotations"]["checksum/config"])

    assert checksum() == checksum() != checksum("--set", "cluster=other")


def test_versions_are_mapbridges() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == bridge.__version__
    image = container(template("-f", str(CHART / "ci" / "minimal-values.yaml")))["image"]
    assert image == f"mapbridge:{bridge.__version__}"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--set", "broker.url=nats://n:4222"], "maps"),
        (["--set", "maps[0].pin=/p"], "broker: needs url, or existingSecret.name"),
        (
            ["--set", "maps[0].pin=/p,broker.url=nats://n,broker.existingSecret.name=s"],
            "broker: needs one of url and existingSecret.name",
        ),
        (["--set", "maps[0].pin=p,broker.url=nats://n"], "pin"),
        (["--set", "maps[0].pin=/p,broker.url=http://n"], "url"),
        (["--set", "maps[0].pin=/p,broker.url=nats://n,broker.replicas=2"], "replicas"),
        (["--set", "maps[0].pin=/p,broker.url=nats://n,capture.mode=magic"], "mode"),
        (["--set", "maps[0].pin=/p,broker.url=nats://n,tolerance=1"], "tolerance"),
        (["--set", "maps[0].pin=/p,broker.url=nats://n,config.maps.x=1"], "config"),
        (["--set", "maps[0].name=n,broker.url=nats://n"], "maps"),
    ],
)
def test_values_that_cannot_work(arguments: list[str], reason: str) -> None:
    done = helm("template", "trial", str(CHART), *arguments)
    assert done.returncode != 0, done.stdout
    assert reason in done.stderr


def test_notes_name_maps_and_commands() -> None:
    values = str(CHART / "ci" / "everything-values.yaml")
    done = helm("install", "trial", str(CHART), "-f", values, "--dry-run=client", "-n", "net")
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:")[2]
    assert "for 2 maps:\n  lb-*  /sys/fs/bpf/lb/*\n  flows  flows\n" in notes
    assert "kubectl -n net rollout status daemonset/trial-mapbridge" in notes


def test_readme_names_every_value() -> None:
    text = (CHART / "README.md").read_text()
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert [name for name in values if f"`{name}" not in text] == []
