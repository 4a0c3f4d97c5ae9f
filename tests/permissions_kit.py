"""A broker that enforces what `mapbridge nats-permissions` prints, and its users."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bridge.access import Access, Secret
from bridge.bus.connection import BusSettings
from bridge.bus.link import ForbiddenError
from bridge.bus.nats_bus import open_bus
from bridge.node.access import inbox_prefix
from bridge.rig.broker import ServerThread
from bridge.rig.nodes import CLUSTER
from tests.access_kit import write_secret
from tests.integration.kernel_support import pin_folder
from tests.node_kit import Rig, mapbridge

PASSWORD = "planted-secret"
REFUSED = "permissions violation"
REQUEST_SECONDS_MAX = 1.5  # what is refused is told at once; what is not must not look like it


def user(name: str, options: Sequence[str]) -> str:
    printed = mapbridge("nats-permissions", "--node", name, "--cluster", CLUSTER, *options)
    assert printed.returncode == 0, printed.stderr
    return f'{{ user: "{name}", password: "{PASSWORD}"\n{printed.stdout}\n}}'


@dataclass(frozen=True, slots=True)
class Guarded:
    """A rig whose server knows its users; ``settings`` and ``config`` are those of one of them."""

    rig: Rig

    def url(self, name: str) -> str:
        return self.rig.server.url.replace("nats://", f"nats://{name}:{PASSWORD}@")

    def settings(self, name: str) -> BusSettings:
        return BusSettings(
            name,
            (self.rig.server.url,),
            Access(user=name, password=Secret(PASSWORD)),
            inbox_prefix(name),
            request_timeout_seconds=REQUEST_SECONDS_MAX,
        )

    def config(self, name: str, maps: str) -> Path:
        """A configuration for a user that runs commands; ``maps``: its ``[[maps]]`` tables."""
        head = f'[node]\nname = "{name}"\ncluster = "{CLUSTER}"\n'
        head += f'state_dir = "{self.rig.directory}/{name}-state"\n'
        head += f'[broker]\nurl = "{self.url(name)}"\n'
        return write_secret(self.rig.directory / f"{name}.toml", head + maps)


@contextmanager
def guarded(directory: Path, users: Mapping[str, Sequence[str]]) -> Iterator[Guarded]:
    """``users``: the options of `nats-permissions` for each."""
    blocks = "\n".join(user(name, options) for name, options in users.items())
    config = f"accounts {{ main {{ jetstream: enabled, users: [\n{blocks}\n] }} }}\n"
    with pin_folder() as pins, ServerThread(directory / "nats", extra_config=config) as server:
        rig = Rig(directory, pins, server)
        try:
            yield Guarded(rig)
        finally:
            rig.close()


async def expect_forbidden(on: Guarded, name: str, subject: str) -> None:
    """The user may not publish to the subject, and is told so at once."""
    bus = await open_bus(on.settings(name))
    try:
        link = await bus.link()
        with pytest.raises(ForbiddenError) as caught:
            await link.request(subject, b"{}")
        assert f'{REFUSED} for publish to "{subject.lower()}"' in str(caught.value)
    finally:
        await bus.close()
