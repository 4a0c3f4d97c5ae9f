"""The root of the command. It imports no subcommand before it is called, so that it starts fast.

Exit codes are those of ``bridge.errors.Exit``; 130 and 143 after SIGINT and SIGTERM.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from dataclasses import dataclass
from typing import NoReturn

import click
from click.shell_completion import CompletionItem

from bridge import __version__
from bridge.cli import crash, output
from bridge.errors import BridgeError

EXIT_INTERRUPTED = 130
# numpy's linear algebra is not used, and its threads could not be kept from having the privileges
# that the process had when it began. Read when numpy is loaded, which comes later.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@dataclass(frozen=True, slots=True)
class Entry:
    """A subcommand: ``bridge.cli.<module>.command``, and what the list of commands says of it."""

    module: str
    summary: str


ENTRIES = {
    "run": Entry("run", "Run the bridge of this node."),
    "reload": Entry("reload", "Have the running bridge take its changed configuration."),
    "status": Entry("status", "Tell how this node's maps stand; wait until one is synced."),
    "top": Entry("top", "Show a cluster's nodes and maps live, in the terminal."),
    "snapshot": Entry("snapshot", "Have the running bridge store a map's contents now."),
    "resume": Entry("resume", "Let a map that a mass change halted go on."),
    "verify": Entry("verify", "Compare a map on all nodes, and make it equal again."),
    "diff": Entry("diff", "List the keys that two nodes hold differently."),
    "watch": Entry("watch", "Print the changes of a cluster's maps as they happen."),
    "feed": Entry("feed", "Publish changes decoded, as JSON and typed messages, for readers."),
    "replay": Entry("replay", "Take a map's history out of the log again."),
    "at": Entry("at", "Print a map as it was at some time."),
    "export": Entry("export", "Serve metrics out of maps' entries, for Prometheus."),
    "schema": Entry("schema", "Show a map's fields, or write them down as protobuf messages."),
    "maps": Entry("maps", "List the maps of this kernel and whether they can be bridged."),
    "check": Entry("check", "Check a configuration file, the maps and the broker it names."),
    "config": Entry("config", "Print a sample configuration, or the one in force."),
    "nats-permissions": Entry("permissions", "Print what the broker must allow one node."),
    "doctor": Entry("doctor", "Tell what this machine can do, and how to mend what it cannot."),
    "bugreport": Entry("bugreport", "Write one archive that tells somebody else what is wrong."),
    "demo": Entry("demo", "Show two nodes keeping one map equal, on this machine."),
    "bench": Entry("bench", "Measure this machine: capture, broker, apply."),
    "completion": Entry("completion", "Print what makes a shell complete mapbridge's arguments."),
    "man": Entry("man", "Print manual pages, or write them to a directory."),
}


class LazyGroup(click.Group):
    """Loads a subcommand's module when the subcommand is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, entry in ENTRIES.items() if _exists(entry)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = ENTRIES.get(cmd_name)
        if entry is None or not _exists(entry):
            return None
        command = importlib.import_module(f"bridge.cli.{entry.module}").command
        assert isinstance(command, click.Command), f"{cmd_name}: module has no command"
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, ENTRIES[name].summary) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Without loading the commands, which a person who has pressed Tab would wait for."""
        found = [
            CompletionItem(name, help=ENTRIES[name].summary)
            for name in self.list_commands(ctx)
            if name.startswith(incomplete)
        ]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def invoke(self, ctx: click.Context) -> object:
        """Run the subcommand; errors that a person can meet become a message and an exit code."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(EXIT_INTERRUPTED)
        except BridgeError as error:
            _fail(ctx, [error])
        except BaseExceptionGroup as group:
            # Tasks that ran side by side; only when all failed in a known way is that the answer.
            known, other = group.split(BridgeError)
            if known is None or other is not None:
                raise
            _fail(ctx, _leaves(known))


def _fail(ctx: click.Context, errors: list[BridgeError]) -> NoReturn:
    for error in errors:
        output.print_error(error, as_json=output.wants_json(ctx))
    ctx.exit(errors[0].exit_code)


def _leaves(group: BaseExceptionGroup[BridgeError]) -> list[BridgeError]:
    found: list[BridgeError] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def _exists(entry: Entry) -> bool:
    return importlib.util.find_spec(f"bridge.cli.{entry.module}") is not None


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mapbridge", message="%(prog)s %(version)s")
def cli() -> None:
    """Change data capture and replication of eBPF maps over NATS JetStream.

    \b
    Exit codes: 0 success, 1 failure, 2 usage, 69 something needed is missing,
    70 a fault of mapbridge, 75 try again, 77 a privilege is missing, 78 configuration.
    """


def main() -> None:
    """Entry point of the installed command."""
    crash.hide_secrets()
    try:
        cli(prog_name="mapbridge")
    except Exception as error:  # noqa: BLE001 - whatever it is, it is told without secrets
        crash.end(error, as_json="--json" in sys.argv)


if __name__ == "__main__":
    main()
