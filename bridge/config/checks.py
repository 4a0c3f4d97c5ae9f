"""Checks that need more than one key. They look at the file's raw data, so that they find their
faults also when other keys are wrong; what they do not understand they leave to ``document``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from bridge.config.problems import Problem, shown
from bridge.config.settings import OWN_NAME
from bridge.model import has_wildcard

SELECTORS = ("pin", "map", "id")


def cross_check(
    data: Mapping[str, object], environ: Mapping[str, str] | None = None
) -> Iterator[Problem]:
    """The problems between keys of the whole document."""
    elsewhere = any((environ or {}).get(name) for name in ("NATS_URL", "NATS_CONTEXT"))
    yield from _broker(data.get("broker"), elsewhere)
    maps = data.get("maps")
    if isinstance(maps, list):
        tables = [(f"maps[{index}]", table) for index, table in enumerate(maps)]
        yield from _selectors(tables)
        yield from _names(tables)
        yield from _duplicates(tables)


def _broker(broker: object, elsewhere: bool) -> Iterator[Problem]:
    if not isinstance(broker, dict):
        return
    if "url" in broker and "listen" in broker:
        yield Problem(
            "broker.listen",
            "only the embedded server listens, and broker.url turns it off",
            shown(broker["listen"]),
            "remove one of the two",
        )
    yield from _identity(broker)
    replicas = broker.get("replicas")
    named = elsewhere or "url" in broker or "context" in broker
    if not named and isinstance(replicas, int) and replicas > 1:
        yield Problem(
            "broker.replicas",
            "the embedded server keeps one copy; more need a cluster named by broker.url",
            shown(replicas),
        )


_NEEDS_BROKER = (
    *("context", "user", "password_file", "token_file", "creds", "nkey", "domain"),
    *("tls_ca", "tls_cert", "tls_key", "tls_first"),
)
_NEEDS = {"user": "password_file", "password_file": "user"}
IDENTITIES = ("user", "token_file", "creds", "nkey")


def _identity(broker: Mapping[str, object]) -> Iterator[Problem]:
    """Who the bridge is for the broker is said once and in full."""
    if "listen" in broker:
        for key in _NEEDS_BROKER:
            if key in broker:
                yield Problem(
                    f"broker.{key}", "is for servers that broker.url names", "", "remove listen"
                )
    for key, other in _NEEDS.items():
        if key in broker and other not in broker:
            yield Problem(f"broker.{key}", f"needs {other} beside it", shown(broker[key]))
    given = [key for key in IDENTITIES if key in broker]
    if len(given) > 1:
        yield Problem(
            "broker",
            f"may have one of {', '.join(IDENTITIES)}",
            " and ".join(given),
            "leave one",
        )
    for key, other in (("tls_cert", "tls_key"), ("tls_key", "tls_cert")):
        if key in broker and other not in broker:
            yield Problem(f"broker.{key}", f"needs {other} beside it", shown(broker[key]))


def _selectors(tables: list[tuple[str, object]]) -> Iterator[Problem]:
    for path, table in tables:
        if not isinstance(table, dict):
            continue
        yield from _one_selector(path, table)
        for key, other in (("emit", "emit_losses"), ("emit_losses", "emit")):
            selector = table.get(key)
            if isinstance(selector, dict):
                yield from _one_selector(f"{path}.{key}", selector)
            if selector is not None and other not in table:
                # A full ring that nobody counts would be a silent loss.
                yield Problem(f"{path}.{key}", f"needs {other} beside it", shown(selector))


def _one_selector(path: str, table: Mapping[str, object]) -> Iterator[Problem]:
    given = [key for key in SELECTORS if key in table]
    if len(given) != 1:
        yield Problem(
            path,
            f"needs exactly one of {', '.join(SELECTORS)}",
            " and ".join(given) or "none",
        )


def _names(tables: list[tuple[str, object]]) -> Iterator[Problem]:
    """A table of one map has its name; one of several says where their own names go."""
    for path, table in tables:
        if not isinstance(table, dict):
            continue
        name, pattern = table.get("name"), _pattern(table)
        if pattern is None and "name" not in table:
            yield Problem(f"{path}.name", "is required")
        if isinstance(name, str) and (OWN_NAME in name) != (pattern is not None):
            yield _misnamed(path, name, pattern)
        for key in ("emit", "emit_losses"):
            if pattern is not None and key in table:
                yield Problem(
                    f"{path}.{key}",
                    "belongs to one map, and the selector is a pattern",
                    shown(pattern),
                    "give that map a table of its own",
                )


def _pattern(table: Mapping[str, object]) -> str | None:
    for key in ("pin", "map"):
        value = table.get(key)
        if isinstance(value, str) and has_wildcard(value):
            return value
    return None


def _misnamed(path: str, name: str, pattern: str | None) -> Problem:
    if pattern is None:
        reason = "a '*' stands for a map's own name, and needs a pattern in pin or map"
        return Problem(f"{path}.name", reason, shown(name))
    return Problem(
        f"{path}.name",
        "needs a '*' where the own name of each map goes, as the selector is a pattern",
        shown(name),
        "leave it out to take the own names as they are",
    )


def _duplicates(tables: list[tuple[str, object]]) -> Iterator[Problem]:
    """A name twice would be two histories in one; a map twice would be published twice."""
    first: dict[tuple[str, str], str] = {}
    for path, table in tables:
        if not isinstance(table, dict):
            continue
        for key in ("name", *SELECTORS):
            if key not in table or isinstance(table[key], dict | list):
                continue
            if key == "name" and _pattern(table) is not None:
                continue  # two patterns may share a prefix; the maps that they find decide
            earlier = first.setdefault((key, repr(table[key])), path)
            if earlier != path:
                yield Problem(f"{path}.{key}", f"is already used by {earlier}", shown(table[key]))
