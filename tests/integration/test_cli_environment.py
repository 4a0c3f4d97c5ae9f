"""``maps``, ``check``, ``doctor`` against this machine: real maps, a real bpffs, real servers."""

from __future__ import annotations

import json
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from bridge.cli.main import cli
from bridge.cli.maps import find_pins, list_maps
from bridge.errors import Exit
from bridge.kernel.maps import KernelMap, create_map
from bridge.kernel.maptypes import MapType
from bridge.model import MapInfo
from tests.server_kit import bare_server

ENTRIES = 1009


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path("/sys/fs/bpf") / f"cli_{secrets.token_hex(4)}"
    path.mkdir()
    yield path
    for pin in path.iterdir():
        pin.unlink()
    path.rmdir()


@pytest.fixture
def pinned(folder: Path) -> Iterator[KernelMap]:
    with create_map(MapType.HASH, 13, 29, ENTRIES, name="cli_pinned") as made:
        made.pin(folder / "one")
        made.pin(folder / "two")
        yield made


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "node.toml"


def write(config: Path, broker: str, *maps: str) -> None:
    text = f'[node]\nname = "a"\nstate_dir = "{config.parent}/state"\n[broker]\n{broker}\n'
    text += "".join(f'[[maps]]\nname = "m{n}"\n{line}\n' for n, line in enumerate(maps))
    config.write_text(text)


def problems_of(config: Path) -> dict[str, str]:
    result = CliRunner().invoke(cli, ["check", "--json", "-c", str(config)])
    assert result.exit_code == Exit.CONFIG, result.output
    error = json.loads(result.stderr.splitlines()[-1])["error"]
    return {problem["path"]: problem["reason"] for problem in error["problems"]}


def test_maps_lists_a_map_with_its_shape_and_all_its_pins(pinned: KernelMap, folder: Path) -> None:
    (row,) = [row for row in list_maps(folder) if row.id == pinned.info.id]
    assert (row.name, row.type, row.supported, row.reason) == ("cli_pinned", "hash", "yes", "")
    assert (row.key_size, row.value_size, row.max_entries) == (13, 29, ENTRIES)
    assert row.pins == (f"{folder}/one", f"{folder}/two")


def test_maps_prints_rows_and_json(pinned: KernelMap, folder: Path) -> None:
    said = CliRunner().invoke(cli, ["maps"])
    assert said.exit_code == 0
    (line,) = [line for line in said.stdout.splitlines() if line.split()[0] == str(pinned.info.id)]
    assert line.split()[1:7] == ["cli_pinned", "hash", "13", "29", str(ENTRIES), "yes"]
    assert f"{folder}/one" in line
    document = json.loads(CliRunner().invoke(cli, ["maps", "--json"]).stdout)
    assert str(folder / "two") in next(
        row["pins"] for row in document["maps"] if row["id"] == pinned.info.id
    )


def test_maps_that_cannot_be_bridged_are_listed_with_the_reason_on_demand() -> None:
    with create_map(MapType.QUEUE, 0, 8, 7, name="cli_queue") as made:
        assert "cli_queue" not in CliRunner().invoke(cli, ["maps"]).stdout
        said = CliRunner().invoke(cli, ["maps", "--all"]).stdout
        (line,) = [line for line in said.splitlines() if line.split()[0] == str(made.info.id)]
        assert "no: it has no keys" in line


def test_sizes_of_per_cpu_maps_are_those_of_one_cpu() -> None:
    with create_map(MapType.PERCPU_HASH, 4, 12, 7, name="cli_percpu") as made:
        said = CliRunner().invoke(cli, ["maps"]).stdout
        (line,) = [line for line in said.splitlines() if line.split()[0] == str(made.info.id)]
    assert line.split()[2:6] == ["percpu_hash", "4", f"{made.info.cpus}x16", "7"]
    assert "publish only" in line


def test_pins_of_other_things_are_left_out(pinned: KernelMap, folder: Path) -> None:
    (folder / "empty").mkdir()
    try:
        assert set(find_pins(folder)) == {pinned.info.id}
    finally:
        (folder / "empty").rmdir()


def test_check_passes_with_maps_and_a_broker(pinned: KernelMap, folder: Path, config: Path) -> None:
    with bare_server(config.parent, "-js", "-sd", str(config.parent / "js")) as url:
        write(config, f'url = "{url}"', f'pin = "{folder}/one"')
        result = CliRunner().invoke(cli, ["check", "-c", str(config)])
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{config}: good (1 maps; maps and broker too)\n"


def test_check_tells_all_that_is_wrong_with_the_machine(
    pinned: KernelMap, folder: Path, config: Path
) -> None:
    with create_map(MapType.QUEUE, 0, 8, 7, name="cli_queue") as queue:
        write(
            config,
            'url = "nats://127.0.0.1:1"',
            f'pin = "{folder}/none"',
            f"id = {queue.info.id}",
            f'pin = "{folder}/one"\nemit = {{ id = {queue.info.id} }}\n'
            f"emit_losses = {{ id = {queue.info.id} }}",
            'map = "cli_no_such_map"',
        )
        found = problems_of(config)
    emit = ["maps[2].emit", "maps[2].emit_losses"]
    assert list(found) == ["maps[0]", "maps[1]", *emit, "maps[3]", "broker"]
    assert "nothing there" in found["maps[0]"]
    assert "cannot be bridged, it has no keys" in found["maps[1]"]
    assert "not a ring buffer (got queue)" in found["maps[2].emit"]
    assert "not an array of 8-byte counters" in found["maps[2].emit_losses"]
    assert "cannot connect" in found["broker"]


def test_check_tells_that_a_broker_has_no_jetstream(config: Path) -> None:
    with bare_server(config.parent) as url:
        write(config, f'url = "{url}"')
        assert "has no JetStream" in problems_of(config)["broker"]


def test_check_tells_that_the_embedded_servers_address_is_taken(config: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        write(config, f'listen = "127.0.0.1:{other.getsockname()[1]}"')
        assert "in use by another program" in problems_of(config)["broker"]


def test_doctor_reports_this_machine(config: Path) -> None:
    write(config, 'url = "nats://127.0.0.1:1"')
    well = CliRunner().invoke(cli, ["doctor", "--no-canary", "--json"])
    ill = CliRunner().invoke(cli, ["doctor", "--no-canary", "--json", "-c", str(config)])
    assert (well.exit_code, ill.exit_code) == (Exit.OK, Exit.UNAVAILABLE), ill.output
    checks = {check["name"]: check for check in json.loads(well.stdout)["checks"]}
    assert checks["batch commands"]["state"] == "yes"
    assert checks["BCC"]["state"] == "yes"
    assert {check["state"] for check in checks.values()} <= {"yes", "no", "unknown"}
    assert all(check["why"] for check in checks.values())
    assert [c["name"] for c in checks.values() if c["state"] == "no" and not c["fix"]] == []
    broker = json.loads(ill.stdout)["checks"][-1]
    assert (broker["name"], broker["state"]) == ("broker", "no")


def test_doctor_shows_what_the_probes_were_seen_to_report() -> None:
    document = json.loads(CliRunner().invoke(cli, ["doctor", "--json"]).stdout)
    reports = {report["mode"]: report for report in document["modes"]}
    kprobes = next(check["state"] for check in document["checks"] if check["name"] == "kprobes")
    # Kernels that have kprobes have what fentry needs; "syscall" works wherever tracepoints do.
    best = "fentry" if kprobes == "yes" else "syscall"
    assert reports[best]["proven"], reports
    assert document["automatic_mode"] == ("fentry" if best == "fentry" else "sweep")
    seen = {(w["writer"], w["operation"]): w["seen"] for w in reports[best]["writes"]}
    assert seen["system call", "update"] == "yes"
    assert seen["bpf program", "update"] == ("yes" if best == "fentry" else "no")


def test_doctor_for_people_has_a_line_each_and_a_verdict() -> None:
    said = CliRunner().invoke(cli, ["doctor"]).stdout.splitlines()
    assert said[-1] == "mapbridge can run here"
    assert any(line.startswith("yes      BCC ") for line in said)


def test_doctor_without_privileges_says_so() -> None:
    """A process of this test's own gives its capabilities up and asks."""
    command = Path(sys.executable).with_name("mapbridge")
    done = subprocess.run(
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all", str(command), "doctor", "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == Exit.PRIVILEGE, done.stderr
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["CAP_SYS_ADMIN"]["state"] == "no"
    assert checks["batch commands"]["state"] == "unknown"


def test_support_of_types_the_kernel_may_have_tomorrow() -> None:
    from bridge.kernel.support import Support, judge

    assert judge(MapInfo(1, "m", 250, 4, 4, 7)).support is Support.NO
    assert judge(MapInfo(1, "m", MapType.HASH, 513, 4, 7)).support is Support.NO
    assert [t.name for t in MapType if not judge(MapInfo(1, "m", t, 4, 4, 7)).support] == []
