"""``mapbridge completion``: what a shell sources to complete the command's arguments."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

PROGRAM = "mapbridge"
_VARIABLE = "_MAPBRIDGE_COMPLETE"  # the name that click derives from the program's
SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
def command(shell: str) -> None:
    """Print the completion script of SHELL.

    Commands, options and values are completed, and so are the names of maps and nodes: maps out of
    the configuration, nodes as the broker knows them, if it answers within a second.

    \b
    Examples:
      mapbridge completion bash > /usr/share/bash-completion/completions/mapbridge
      mapbridge completion zsh > /usr/local/share/zsh/site-functions/_mapbridge
      mapbridge completion fish > ~/.config/fish/completions/mapbridge.fish
      source <(mapbridge completion bash)
    """
    click.echo(script(shell))


def script(shell: str) -> str:
    """What ``shell`` is to read. The script calls ``mapbridge``, which must be on the PATH."""
    from bridge.cli.main import cli

    made = get_completion_class(shell)
    assert made is not None, "click knows each of SHELLS"
    return made(cli, {}, PROGRAM, _VARIABLE).source()
