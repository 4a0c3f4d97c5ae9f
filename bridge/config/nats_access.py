"""How the broker is reached: the file's own words, then the environment of NATS, then a context.

The environment and the contexts are those of the `nats` command, with its precedence: a variable
goes before what a context says of the same thing. Two things differ, because a daemon should not
go elsewhere for what somebody typed in a shell: the file goes before both, and the context that
`nats context select` chose counts only where its name is said.
Sources: natscli `nats/main.go` (variables), jsm.go `natscontext/context.go` (files).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from bridge.access import Access, Secret
from bridge.config.document import BrokerTable
from bridge.config.problems import Problem, shown
from bridge.config.settings import BrokerConfig
from bridge.config.values import server_urls

CONTEXT_BYTES_MAX = 1 << 20
DEFAULT_URL = "nats://127.0.0.1:4222"  # of a context that names none
VARIABLES = {
    "NATS_URL": "url",
    "NATS_USER": "user",
    "NATS_PASSWORD": "password",
    "NATS_CREDS": "creds",
    "NATS_NKEY": "nkey",
    "NATS_CA": "ca",
    "NATS_CERT": "cert",
    "NATS_KEY": "key",
}
_TEXTS = ("url", "user", "password", "token", "creds", "nkey", "ca", "cert", "key")
_MORE_TEXTS = ("inbox_prefix", "jetstream_domain")
# What would connect in another way than the context says is refused, not left out.
_NOT_UNDERSTOOD = ("nsc", "socks_proxy", "user_jwt", "user_seed", "jetstream_api_prefix")
_SCHEME = re.compile(r"[a-z]+://")
_NAME = re.compile(r"[^/\0]+")


@dataclass(frozen=True, slots=True)
class Found:
    """What environment and context say together; texts are empty where neither says a thing."""

    texts: Mapping[str, str]
    tls_first: bool = False


def broker_config(
    table: BrokerTable, *, embedded: bool, environ: Mapping[str, str], problems: list[Problem]
) -> BrokerConfig:
    """The ``[broker]`` in force; what is wrong with environment or context goes to ``problems``.

    ``embedded``: the file asks for a server of its own, whatever the environment says.
    """
    config = BrokerConfig(
        urls=table.url,
        listen=table.listen,
        storage=table.storage,
        replicas=table.replicas,
        access=_own_access(table),
        inbox_prefix=table.inbox_prefix or "",
        domain=table.domain,
    )
    if embedded:
        return config
    try:
        found = _outside(table.context, environ)
        urls = config.urls or (server_urls(found.texts["url"]) if found.texts["url"] else ())
        access = _merged(config.access, found)
    except ValueError as error:
        problems.append(Problem("broker", str(error)))
        return config
    if not urls and (access.has_identity or access.asks_for_tls):
        reason = "says who the bridge is for a broker, but not where that is"
        problems.append(Problem("broker", reason, hint="name it by url, NATS_URL or a context"))
    return replace(
        config,
        urls=urls,
        access=access,
        inbox_prefix=config.inbox_prefix or found.texts["inbox_prefix"],
        domain=config.domain or found.texts["jetstream_domain"] or None,
    )


def _own_access(table: BrokerTable) -> Access:
    return Access(
        user=table.user or "",
        password_file=table.password_file,
        token_file=table.token_file,
        credentials=table.creds,
        nkey_seed=table.nkey,
        ca=table.tls_ca,
        certificate=table.tls_cert,
        key=table.tls_key,
        tls_first=table.tls_first,
    )


def _merged(own: Access, found: Found) -> Access:
    """Who the bridge is comes from one place as a whole, and so do its trust and certificate."""
    texts = found.texts
    merged = own
    if not own.has_identity:
        merged = replace(
            merged,
            user=texts["user"],
            password=Secret(texts["password"]) if texts["password"] else None,
            token=Secret(texts["token"]) if texts["token"] else None,
            credentials=_path(texts["creds"]),
            nkey_seed=_path(texts["nkey"]),
        )
    if own.certificate is None and own.key is None:
        merged = replace(merged, certificate=_path(texts["cert"]), key=_path(texts["key"]))
    return replace(
        merged, ca=own.ca or _path(texts["ca"]), tls_first=own.tls_first or found.tls_first
    )


def _outside(context: str | None, environ: Mapping[str, str]) -> Found:
    """Raises ``ValueError``."""
    name = context or environ.get("NATS_CONTEXT", "")
    texts = dict.fromkeys((*_TEXTS, *_MORE_TEXTS), "")
    first = False
    if name:
        read = _read_context(_context_path(name, environ))
        texts.update(_texts_of(read, name))
        first = read.get("tls_first") is True
        texts["url"] = texts["url"] or DEFAULT_URL
    said = {key: environ[variable] for variable, key in VARIABLES.items() if environ.get(variable)}
    if "user" in said and "password" not in said:
        said["token"] = said.pop("user")  # as the `nats` command takes it
    return Found(texts | said, first)


def _context_path(name: str, environ: Mapping[str, str]) -> Path:
    """Where a context lies: the `nats` command takes the path of a file for a name, too."""
    if name.endswith(".json") and Path(name).is_absolute():
        return Path(name)
    if _NAME.fullmatch(name) is None or ".." in name:
        raise ValueError(f"context: is no name of a NATS context (got {shown(name)})")
    home = environ.get("XDG_CONFIG_HOME") or f"{environ.get('HOME') or Path.home()}/.config"
    return Path(home) / "nats" / "context" / f"{name}.json"


def _read_context(path: Path) -> Mapping[str, object]:
    try:
        with path.open("rb") as file:
            data = file.read(CONTEXT_BYTES_MAX + 1)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        others = sorted(each.stem for each in path.parent.glob("*.json"))[:8]
        known = f"; there are: {', '.join(others)}" if others else ""
        raise ValueError(f"NATS context {path}: cannot be read: {reason}{known}") from error
    try:
        if len(data) > CONTEXT_BYTES_MAX:
            raise ValueError("too large")
        read = json.loads(data)
    except (ValueError, RecursionError):
        # The error itself may show what stands in the file.
        raise ValueError(f"NATS context {path}: is no JSON document") from None
    if not isinstance(read, dict):
        raise ValueError(f"NATS context {path}: must be a JSON object")
    return read


def _texts_of(read: Mapping[str, object], name: str) -> Iterator[tuple[str, str]]:
    for key in _NOT_UNDERSTOOD:
        if read.get(key):
            raise ValueError(f"NATS context {name}: {key} is not supported; use creds and url")
    for key in (*_TEXTS, *_MORE_TEXTS):
        value = read.get(key) or ""
        if not isinstance(value, str):
            raise ValueError(f"NATS context {name}: {key} must be text")
        yield key, value


def _path(text: str) -> Path | None:
    if not text:
        return None
    if _SCHEME.match(text) and not text.startswith("file://"):
        scheme = text.partition(":")[0]
        raise ValueError(f"credentials in {scheme}:// are not supported; name a file")
    return Path(text.removeprefix("file://")).expanduser()
