"""Which path is answered with what, by the server's threads, on what the loop left behind."""

from __future__ import annotations

import base64
import hashlib
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qsl

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder

from bridge.config.settings import Config
from bridge.config.units import parse_duration
from bridge.health.families import Facts
from bridge.health.http import Answer, Request, json_answer
from bridge.health.latest import Latest, Phase, View, section
from bridge.health.metrics import NodeCollector
from bridge.health.neighbours import Neighbours
from bridge.health.ready import LAG_SECONDS_MAX, LAG_SECONDS_MIN, readiness
from bridge.health.summary import summary

FIELDS_MAX = 64
KEPT_SECONDS = 0.5
DASHBOARD = Path(__file__).with_name("dashboard.html")


class BadQueryError(Exception):
    """A parameter that is not known, or that says nothing sensible."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """Metrics as they were written out last: again only when there is something new to say."""

    view: View
    answer: Answer

    def serves(self, view: View, content_type: str) -> bool:
        return (
            view.document is self.view.document
            and (view.phase, view.fresh) == (self.view.phase, self.view.fresh)
            and view.age_seconds - self.view.age_seconds < KEPT_SECONDS
            and content_type == self.answer.content_type
        )


class Pages:
    """``http``: the server's own counts, as its ``HttpStatistics`` gives them."""

    def __init__(
        self,
        config: Config,
        latest: Latest,
        http: Callable[[], Mapping[str, object]],
        neighbours: Neighbours,
    ) -> None:
        self._neighbours = neighbours
        self._config = config
        self._latest = latest
        self._http = http
        self._turn = threading.Lock()
        self._kept: _Kept | None = None
        self._pages: dict[str, Callable[[Request], Answer]] = {
            "/": self._dashboard,
            "/livez": self._livez,
            "/readyz": self._readyz,
            "/status": self._status,
            "/cluster": self._cluster,
            "/metrics": self._metrics,
        }
        self._registry = CollectorRegistry()
        self._registry.register(NodeCollector(self._facts))
        ProcessCollector(registry=self._registry)

    def reconfigure(self, config: Config) -> None:
        """Answer for other maps from now on; called by the event loop."""
        self._config = config

    def __call__(self, request: Request) -> Answer:
        page = self._pages.get(request.path)
        if page is None:
            return json_answer(
                HTTPStatus.NOT_FOUND, {"error": "no such path", "paths": list(self._pages)}
            )
        try:
            # One at a time: the interpreter is shared with the threads that replicate.
            with self._turn:
                return page(request)
        except BadQueryError as error:
            return json_answer(HTTPStatus.BAD_REQUEST, {"error": str(error)})

    def _dashboard(self, request: Request) -> Answer:
        """The page for people; it asks ``/cluster`` for what it shows."""
        _fields(request, ())
        body = DASHBOARD.read_bytes()
        return Answer(HTTPStatus.OK, body, "text/html; charset=utf-8", _headers_for(body))

    def _cluster(self, request: Request) -> Answer:
        """What the nodes of the cluster say of themselves; this one's own word is always there."""
        _fields(request, ())
        view, found = self._latest.view(), self._neighbours.look()
        return json_answer(
            HTTPStatus.OK,
            {
                "cluster": self._config.node.cluster,
                "node": self._config.node.name,
                "phase": str(view.phase),
                "own": summary(view.document) if view.document and view.fresh else None,
                **found,
            },
        )

    def _livez(self, request: Request) -> Answer:
        """Whether a supervisor should leave the process alone."""
        _fields(request, ())
        view = self._latest.view()
        return json_answer(
            HTTPStatus.OK if view.alive else HTTPStatus.SERVICE_UNAVAILABLE,
            {
                "alive": view.alive,
                "phase": str(view.phase),
                "step": view.step,
                "silent_seconds": round(view.silent_seconds, 3),
            },
        )

    def _readyz(self, request: Request) -> Answer:
        fields = _fields(request, ("lag", "map"))
        lags = [_lag(value) for name, value in fields if name == "lag"]
        if len(lags) > 1:
            raise BadQueryError("lag: given more than once")
        view = self._latest.view()
        found = section(view.document, "maps")
        names = list(dict.fromkeys(value for name, value in fields if name == "map"))
        for name in names:
            if name not in found and not self._configured(name):
                return json_answer(
                    HTTPStatus.NOT_FOUND, {"error": f"map: not bridged here (got {name[:80]!r})"}
                )
        if not names:
            entries = [one.name for one in self._config.maps if not one.selector.is_pattern]
            names = list(dict.fromkeys([*entries, *found]))
        ready = readiness(view, names, lags[0] if lags else None)
        return json_answer(
            HTTPStatus.OK if ready.ready else HTTPStatus.SERVICE_UNAVAILABLE, ready.as_dict(view)
        )

    def _configured(self, name: str) -> bool:
        try:
            self._config.map(name)
        except KeyError:
            return False
        return True

    def _status(self, request: Request) -> Answer:
        """The same document as ``status.json``."""
        _fields(request, ())
        view = self._latest.view()
        if not view.document:
            return json_answer(
                HTTPStatus.SERVICE_UNAVAILABLE, {"error": f"the node is {view.phase}: {view.step}"}
            )
        return json_answer(HTTPStatus.OK, view.document)

    def _metrics(self, request: Request) -> Answer:
        # Prometheus may be told to send parameters; none of them means anything here.
        try:
            encode, content_type = choose_encoder(request.accept)
        except Exception:  # noqa: BLE001 - the library trips over versions that are none
            encode, content_type = choose_encoder("")
        view, kept = self._latest.view(), self._kept
        if kept is None or not kept.serves(view, content_type):
            answer = Answer(HTTPStatus.OK, encode(self._registry), content_type)
            kept = self._kept = _Kept(view, answer)
        return kept.answer

    def _facts(self) -> Facts:
        view = self._latest.view()
        # What a node that stops said last would look like one that goes on.
        document = view.document if view.fresh and view.phase is not Phase.STOPPING else {}
        return Facts(document, view.age_seconds, self._http(), self._config.limits.inbox_bytes)


def _headers_for(page: bytes) -> tuple[tuple[str, str], ...]:
    """Nothing from elsewhere, and of scripts and styles only what the page itself brings."""
    sources = {
        kind: " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"
            for text in re.findall(rb"<%b>(.*?)</%b>" % (kind, kind), page, re.DOTALL)
        )
        for kind in (b"script", b"style")
    }
    policy = (
        f"default-src 'none'; script-src {sources[b'script']}; style-src {sources[b'style']}",
        "connect-src 'self'; img-src data:",
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    )
    return (
        ("Content-Security-Policy", "; ".join(policy)),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
    )


def _fields(request: Request, known: tuple[str, ...]) -> list[tuple[str, str]]:
    try:
        fields = parse_qsl(
            request.query,
            keep_blank_values=True,
            strict_parsing=bool(request.query),
            errors="strict",
            max_num_fields=FIELDS_MAX,
        )
    except ValueError as error:
        raise BadQueryError("query: cannot be read") from error
    for name, _ in fields:
        if name not in known:
            allowed = f"; known: {', '.join(known)}" if known else "; this path takes none"
            raise BadQueryError(f"query: unknown parameter (got {name[:80]!r}){allowed}")
    return fields


def _lag(value: str) -> float:
    try:
        seconds = parse_duration(value)
    except ValueError as error:
        raise BadQueryError(f"lag: {error} (got {value[:80]!r})") from error
    if not LAG_SECONDS_MIN <= seconds <= LAG_SECONDS_MAX:
        raise BadQueryError(f"lag: must be 1s to 1h (got {value[:80]!r})")
    return seconds
