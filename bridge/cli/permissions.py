"""``mapbridge nats-permissions``: what the broker's configuration must allow one user."""

from __future__ import annotations

from pathlib import Path

import click

from bridge.bus.permissions import Kind, permissions
from bridge.cli import output
from bridge.cli.options import optional_config_option
from bridge.config import Config, load
from bridge.errors import BridgeError, Exit
from bridge.node.access import inbox_prefix
from bridge.wire.subjects import SubjectError


class PermissionsError(BridgeError):
    """Names that cannot stand in a subject, or none at all."""

    exit_code = Exit.USAGE


@click.command("nats-permissions")
@optional_config_option
@click.option("--node", metavar="NAME", help="The node's (or other user's) name.")
@click.option("--cluster", metavar="NAME", help="Its cluster.  [default: that of --config]")
@click.option(
    "--for",
    "kind",
    type=click.Choice([kind.value for kind in Kind]),
    default=Kind.NODE.value,
    show_default=True,
    help="Whose: a node's, or those of a user that runs commands.",
)
@click.option(
    "--map", "maps", metavar="NAME", multiple=True, help="Only this map; may be repeated."
)
@click.option("--no-create", is_flag=True, help="It may not make streams that are missing.")
@output.json_option
def command(
    config_path: Path | None,
    node: str | None,
    cluster: str | None,
    kind: str,
    maps: tuple[str, ...],
    no_create: bool,
    as_json: bool,
) -> None:
    """Print the server configuration that allows one user what it needs, and nothing else.

    The block goes into the user's entry in nats-server's configuration. A node may publish its own
    changes of the maps named and nobody else's; it cannot purge, delete or change streams.

    \b
    Examples:
      mapbridge nats-permissions --node lb-1
      mapbridge nats-permissions --node lb-1 --map conntrack --no-create
      mapbridge nats-permissions --node dashboard --for observer --json
    """
    config = load(config_path) if config_path is not None else None
    name = node or (config.node.name if config is not None else "")
    if not name:
        raise PermissionsError(
            "node: is not known", hint="name it with --node, or its file with --config"
        )
    where = cluster or (config.node.cluster if config is not None else "default")
    inbox = (config.broker.inbox_prefix if config is not None else "") or inbox_prefix(name)
    try:
        found = permissions(
            Kind(kind),
            where,
            name,
            inbox,
            maps=maps,
            creates=not no_create,
            api=_api(config),
        )
    except SubjectError as error:
        hint = "see `mapbridge nats-permissions --help`"
        raise PermissionsError(str(error), hint=hint) from error
    if as_json:
        body = {"name": name, "cluster": where, "for": kind, "inbox_prefix": inbox}
        output.print_json(body | {"permissions": found.as_dict()})
        return
    output.line(f"# mapbridge: {kind} {name} in cluster {where}; answers come to {inbox}.>")
    output.line(found.config())


def _api(config: Config | None) -> str:
    domain = config.broker.domain if config is not None else None
    return f"$JS.{domain}.API" if domain else "$JS.API"
