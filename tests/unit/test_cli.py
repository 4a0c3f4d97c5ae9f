"""The command's frame: help, lazy loading, errors and exit codes, tables and JSON."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from bridge import __version__, resources
from bridge.cli import main, output
from bridge.config import parse, sample
from bridge.errors import BridgeError, Exit, PrivilegeError

ROOT = Path(__file__).resolve().parents[2]
GOOD = '[node]\nname = "a"\n'
BAD = '[node]\nname = "a.b"\n[broker]\nstorage = "disk"\n'


@pytest.fixture
def runner() -> CliRunner:
    return CliRunner()


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, BaseException]]:
    """A real group with one more command, which raises what the test puts under ``error``."""
    raised: dict[str, BaseException] = {}

    @click.command("fail")
    @output.json_option
    def command(as_json: bool) -> None:
        raise raised["error"]

    original = main.LazyGroup.get_command

    def get_command(
        group: main.LazyGroup, ctx: click.Context, cmd_name: str
    ) -> click.Command | None:
        return command if cmd_name == "fail" else original(group, ctx, cmd_name)

    monkeypatch.setattr(main.LazyGroup, "get_command", get_command)
    yield raised
    raised.clear()


def test_version(runner: CliRunner) -> None:
    result = runner.invoke(main.cli, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"mapbridge {__version__}\n")


def test_help_lists_every_command_with_the_first_line_of_its_own_help(runner: CliRunner) -> None:
    listed = runner.invoke(main.cli, ["--help"]).stdout
    context = click.Context(main.cli)
    names = main.cli.list_commands(context)
    assert {"check", "config", "doctor", "maps"} <= set(names)
    for name in names:
        command = main.cli.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert f"  {name} " in listed
        own = runner.invoke(main.cli, [name, "--help"])
        assert own.exit_code == 0
        if not isinstance(command, click.Group):
            assert "Examples:" in own.stdout, f"{name} --help has no examples"


def test_unknown_command_is_a_usage_error(runner: CliRunner) -> None:
    assert runner.invoke(main.cli, ["chekc"]).exit_code == Exit.USAGE


def test_help_imports_no_command_and_is_fast() -> None:
    code = (
        "import sys; from bridge.cli.main import cli\n"
        "try: cli(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('pydantic', 'numpy', 'nats', 'rich', 'google', 'bcc')"
        " if m in sys.modules], file=sys.stderr)"
    )
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
        )
        seconds.append(time.perf_counter() - began)
        assert done.stderr.splitlines()[-1] == "[]"
    assert min(seconds) < 1.0  # 0.07 s on an idle machine


def test_an_error_becomes_error_and_try(
    runner: CliRunner, failing: dict[str, BaseException]
) -> None:
    failing["error"] = PrivilegeError("map 7: missing CAP_BPF", hint="run as root")
    result = runner.invoke(main.cli, ["fail"])
    assert result.exit_code == Exit.PRIVILEGE
    assert result.stdout == ""
    assert result.stderr == "Error: map 7: missing CAP_BPF\nTry: run as root\n"


def test_an_error_without_a_hint_has_no_try(
    runner: CliRunner, failing: dict[str, BaseException]
) -> None:
    failing["error"] = BridgeError("disk: is full")
    result = runner.invoke(main.cli, ["fail"])
    assert (result.exit_code, result.stderr) == (1, "Error: disk: is full\n")


def test_with_json_the_error_is_an_object_on_the_last_line(
    runner: CliRunner, failing: dict[str, BaseException]
) -> None:
    failing["error"] = PrivilegeError("map 7: missing CAP_BPF", hint="run as root")
    result = runner.invoke(main.cli, ["fail", "--json"])
    assert result.exit_code == Exit.PRIVILEGE
    assert json.loads(result.stderr.splitlines()[-1]) == {
        "error": {
            "kind": "PrivilegeError",
            "message": "map 7: missing CAP_BPF",
            "hint": "run as root",
            "exit_code": 77,
        }
    }


def test_errors_of_several_tasks_are_all_told(
    runner: CliRunner, failing: dict[str, BaseException]
) -> None:
    inner = ExceptionGroup("inner", [PrivilegeError("two: denied")])
    failing["error"] = ExceptionGroup("tasks", [BridgeError("one: broken"), inner])
    result = runner.invoke(main.cli, ["fail"])
    assert result.exit_code == 1
    assert result.stderr == "Error: one: broken\nError: two: denied\n"


def test_a_fault_of_the_program_is_not_hidden(
    runner: CliRunner, failing: dict[str, BaseException]
) -> None:
    failing["error"] = ExceptionGroup("tasks", [BridgeError("one: broken"), ValueError("two")])
    assert isinstance(runner.invoke(main.cli, ["fail"]).exception, ExceptionGroup)


def test_an_interrupt_ends_with_130(runner: CliRunner, failing: dict[str, BaseException]) -> None:
    failing["error"] = KeyboardInterrupt()
    result = runner.invoke(main.cli, ["fail"])
    assert result.exit_code == 130


def test_check_of_a_good_file(runner: CliRunner, tmp_path: Path) -> None:
    file = tmp_path / "good.toml"
    file.write_text(GOOD)
    arguments = ["check", "--no-environment", "-c", str(file)]
    result = runner.invoke(main.cli, arguments)
    assert (result.exit_code, result.stdout) == (0, f"{file}: good (0 maps; the file only)\n")
    document = json.loads(runner.invoke(main.cli, [*arguments, "--json"]).stdout)
    assert document == {
        "ok": True,
        "file": str(file),
        "files": [str(file)],
        "maps": 0,
        "warnings": [],
    }


def test_check_of_a_bad_file(runner: CliRunner, tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(BAD)
    result = runner.invoke(main.cli, ["check", "-c", str(file)])
    assert result.exit_code == Exit.CONFIG
    assert result.stderr.startswith(f"Error: {file}: 2 problems\n  broker.storage: must be one of")
    assert "\nTry: compare with `mapbridge config init`" in result.stderr
    result = runner.invoke(main.cli, ["check", "-c", str(file), "--json"])
    error = json.loads(result.stderr.splitlines()[-1])["error"]
    assert (error["kind"], error["exit_code"]) == ("ConfigError", 78)
    assert [problem["path"] for problem in error["problems"]] == ["broker.storage", "node.name"]


def test_config_init_prints_the_sample(runner: CliRunner, tmp_path: Path) -> None:
    assert runner.invoke(main.cli, ["config", "init"]).stdout == sample()
    file = tmp_path / "new.toml"
    assert runner.invoke(main.cli, ["config", "init", "-o", str(file)]).exit_code == 0
    assert parse(file.read_text()).node.name == "node-a"
    again = runner.invoke(main.cli, ["config", "init", "-o", str(file)])
    assert again.exit_code == 1
    assert "is there already" in again.stderr


def test_config_show_hides_passwords(runner: CliRunner, tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text(f'{GOOD}[broker]\nurl = "nats://me:secret@h:1"\n[capture]\nring = "1MiB"\n')
    for extra in ([], ["--json"]):
        result = runner.invoke(main.cli, ["config", "show", "-c", str(file), *extra])
        assert result.exit_code == 0
        assert "nats://***@h:1" in result.stdout
        assert "secret" not in result.stdout
        assert "1048576" in result.stdout


def test_the_configuration_can_come_from_the_environment(runner: CliRunner, tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text(GOOD)
    result = runner.invoke(
        main.cli, ["check", "--no-environment"], env={"MAPBRIDGE_CONFIG": str(file)}
    )
    assert result.exit_code == 0


def test_tables_are_plain_and_aligned_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(("id", "name", "why"), [(7, "a", None), (113, "bcd", "x" * 200)])
    assert capsys.readouterr().out == f" ID  NAME  WHY\n  7  a\n113  bcd   {'x' * 200}\n"


def test_a_table_without_rows_has_its_heading(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(("id", "name"), [])
    assert capsys.readouterr().out == "ID  NAME\n"


def test_the_installed_command_runs() -> None:
    command = Path(sys.executable).with_name("mapbridge")
    assert command.exists(), "the package is not installed: make setup"
    done = subprocess.run(
        [command, "check", "--no-environment", "-c", "/nowhere.toml"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == Exit.CONFIG
    assert done.stdout == ""
    assert done.stderr == (
        "Error: /nowhere.toml: cannot be read: no such file or directory\n"
        "Try: name the file with --config FILE\n"
    )


def test_every_command_is_documented() -> None:
    text = (ROOT / "docs" / "reference" / "commands.md").read_text()
    assert [name for name in main.ENTRIES if f"| `{name}` |" not in text] == []


def test_every_option_is_documented() -> None:
    from bridge.cli.reference import render, undocumented

    page = ROOT / "docs" / "reference" / "options.md"
    assert page.read_text() == render(), "run `make pages`"
    assert undocumented() == []


def test_every_key_is_documented() -> None:
    from bridge.config.document import Document, MapTable

    text = (ROOT / "docs" / "reference" / "configuration.md").read_text()
    for table, field in Document.model_fields.items():
        model = MapTable if table == "maps" else field.annotation
        fields = getattr(model, "model_fields", {})
        assert fields, table
        section = text.split(f"`[{table}]`" if table != "maps" else "`[[maps]]`")[1]
        section = section.split("\n## ")[0]
        names = [each.alias or name for name, each in fields.items()]
        missing = [name for name in names if not re.search(rf"[`.\[]{name}[`\]]", section)]
        assert missing == [], table


def test_resources_are_found() -> None:
    assert resources.bpf_source("record.h").is_file()
    assert resources.schema("mapbridge/v1/delta.proto").is_file()
    with pytest.raises(BridgeError, match=r"bpf/nothing\.c: not found"):
        resources.bpf_source("nothing.c")
