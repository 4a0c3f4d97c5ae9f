"""Who the bridge is for the broker, and what secures the way there: values, no I/O.

Files are named here and read anew for each connection, so that they may be replaced at any time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


class Secret:
    """A text that shows itself to those only who ask for it by name."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself, for the one place that sends it."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(…)"

    def __str__(self) -> str:
        return "…"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


@dataclass(frozen=True, slots=True)
class Access:
    """Empty: nobody in particular, on a connection without TLS unless the broker asks for it.

    credentials    a creds file: a user's JWT and its seed
    nkey_seed      a file with the seed of a user's nkey
    ca             certificates that the broker's must come from; ``None``: the system's
    certificate    the bridge's own, for brokers that ask for one; ``key`` belongs to it
    tls            whether a broker that offers no TLS is refused
    tls_first      whether TLS begins before the broker's greeting
    """

    user: str = ""
    password: Secret | None = None
    password_file: Path | None = None
    token: Secret | None = None
    token_file: Path | None = None
    credentials: Path | None = None
    nkey_seed: Path | None = None
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    tls: bool = False
    tls_first: bool = False

    @property
    def has_identity(self) -> bool:
        """Whether it says who the bridge is, certificates aside."""
        named = (self.password, self.password_file, self.token, self.token_file)
        return bool(self.user or self.credentials or self.nkey_seed or any(named))

    @property
    def asks_for_tls(self) -> bool:
        return self.tls or self.tls_first or any((self.ca, self.certificate, self.key))
