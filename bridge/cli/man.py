"""``mapbridge man``: manual pages out of what the commands say of themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from bridge.cli.roff import Page, render
from bridge.errors import BridgeError

SECTION = 1


class PagesError(BridgeError):
    """The pages cannot be written."""


@click.command("man")
@click.argument("names", metavar="[COMMAND...]", nargs=-1)
@click.option(
    "--output",
    "directory",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write the pages of all commands into this directory.",
)
def command(names: tuple[str, ...], directory: Path | None) -> None:
    """Print the manual page of mapbridge, or of one of its commands, for man(1).

    \b
    Examples:
      mapbridge man | man -l -
      mapbridge man schema diff | man -l -
      mapbridge man --output /usr/local/share/man/man1
    """
    if directory is None:
        click.echo(render(_find(names)), nl=False)
        return
    if names:
        raise click.UsageError("--output: writes all pages, so name no command")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for page in pages():
            (directory / f"{page.title}.{SECTION}").write_text(render(page))
    except OSError as error:
        raise PagesError(
            f"--output {directory}: {(error.strerror or str(error)).lower()}",
            hint="name a directory that can be written",
        ) from error


def pages() -> Iterator[Page]:
    """Of every command, groups before their members."""
    from bridge.cli.main import cli

    yield from _below(cli, click.Context(cli, info_name="mapbridge"))


def _below(found: click.Command, ctx: click.Context) -> Iterator[Page]:
    yield Page(found, ctx)
    if isinstance(found, click.Group):
        for name in found.list_commands(ctx):
            member = found.get_command(ctx, name)
            if member is not None and not member.hidden:
                yield from _below(member, click.Context(member, info_name=name, parent=ctx))


def _find(names: tuple[str, ...]) -> Page:
    from bridge.cli.main import cli

    found: click.Command = cli
    ctx = click.Context(cli, info_name="mapbridge")
    for name in names:
        member = found.get_command(ctx, name) if isinstance(found, click.Group) else None
        if member is None:
            raise click.UsageError(f"{ctx.command_path} has no command {name!r}")
        found, ctx = member, click.Context(member, info_name=name, parent=ctx)
    return Page(found, ctx)
