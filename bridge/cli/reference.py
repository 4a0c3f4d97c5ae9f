"""The docs' page of options out of the commands: ``python -m bridge.cli.reference [FILE]``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from bridge.cli.main import cli

_HEAD = """\
# Options

Every command with its arguments and options, as `mapbridge COMMAND --help` tells them. Written by
`make pages`. What the commands do is told in [commands](commands.md).

| every command | |
|---|---|
| `-h`, `--help` | show its options and examples |
"""


def render() -> str:
    """The page, in Markdown."""
    root = click.Context(cli, info_name="mapbridge")
    return "\n".join([_HEAD, *(_section(*leaf) for leaf in _leaves(cli, root))])


def undocumented() -> list[str]:
    """Options that no help tells of."""
    return [
        f"{context.command_path} {parameter.opts[-1]}"
        for command, context in _leaves(cli, click.Context(cli, info_name="mapbridge"))
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.help
    ]


def _leaves(
    command: click.Command, context: click.Context
) -> Iterator[tuple[click.Command, click.Context]]:
    if not isinstance(command, click.Group):
        yield command, context
        return
    for name in command.list_commands(context):
        inner = command.get_command(context, name)
        assert inner is not None
        yield from _leaves(inner, click.Context(inner, info_name=name, parent=context))


def _section(command: click.Command, context: click.Context) -> str:
    usage = " ".join(command.collect_usage_pieces(context))
    rows = "".join(map(_row, command.get_params(context)))
    table = f"\n| option | meaning |\n|---|---|\n{rows}" if rows else ""
    return f"## `{context.command_path}`\n\n`{context.command_path} {usage}`\n{table}"


def _row(parameter: click.Parameter) -> str:
    context = click.Context(click.Command("any"))
    record = parameter.get_help_record(context)
    if record is None or not record[1] or "--help" in parameter.opts:
        return ""  # an argument, which the text above says all of
    names, text = (part.replace("|", "\\|") for part in record)
    return f"| `{names}` | {text} |\n"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(render(), encoding="utf-8")
    else:
        sys.stdout.write(render())
