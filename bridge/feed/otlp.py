"""Changes as OpenTelemetry log records, sent to a collector by OTLP over HTTP.

Invariant: the position that is saved stands behind no change that the collector has not
acknowledged. So nothing is lost when either side is killed; what was under way is sent again.
Needs OpenTelemetry's SDK and its exporter, the extra ``otlp``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from bridge.bus.feeds import SourcePlace
from bridge.bus.nats_bus import NatsBus
from bridge.bus.protocol import Received
from bridge.errors import BridgeError, Exit, UnavailableError
from bridge.feed.layouts import LayoutBook
from bridge.feed.pouring import FeedCounters, pour
from bridge.feed.rows import Fields, FieldsOf, tell
from bridge.layout.render import Shown
from bridge.layout.types import Layout

if TYPE_CHECKING:
    from opentelemetry.sdk._logs import ReadableLogRecord

RECORDS_MAX = 512  # in one request
EVENT = "mapbridge.change"
PATH = "/v1/logs"
_ATTEMPT_SECONDS_MAX = 10.0  # of the exporter, which tries again by itself meanwhile
_PAUSE_SECONDS, _PAUSE_SECONDS_MAX = 0.5, 30.0
_I64 = range(-(1 << 63), 1 << 63)


class EndpointError(BridgeError):
    """An address that is no collector's."""

    exit_code = Exit.USAGE


class Collector:
    """A collector, by the SDK's own exporter, which takes OTEL_EXPORTER_OTLP_* (headers,
    certificates, compression) from the environment. Raises ``EndpointError``,
    ``UnavailableError`` without the SDK.
    """

    def __init__(self, url: str, cluster: str) -> None:
        self.endpoint = endpoint_of(url)
        try:
            from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
            from opentelemetry.sdk._logs.export import LogRecordExportResult
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        except ImportError as error:
            raise UnavailableError(
                f"{url}: OpenTelemetry's SDK is not here", hint="pip install 'mapbridge[otlp]'"
            ) from error
        self.resource = Resource({"service.name": "mapbridge", "mapbridge.cluster": cluster})
        self.scope = InstrumentationScope("mapbridge")
        self._exporter = OTLPLogExporter(self.endpoint, timeout=_ATTEMPT_SECONDS_MAX)
        self._success = LogRecordExportResult.SUCCESS
        self._reasons = _Reasons()
        logger = logging.getLogger("opentelemetry")
        logger.addHandler(self._reasons)
        logger.propagate = False

    async def send(self, records: Sequence[ReadableLogRecord]) -> str:
        """One attempt: why they were not taken, empty when they were."""
        self._reasons.last = ""
        result = await asyncio.to_thread(self._exporter.export, records)
        return "" if result is self._success else self._reasons.last or "no reason told"

    def close(self) -> None:
        """Ends an attempt that waits for its next try."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]
        logging.getLogger("opentelemetry").removeHandler(self._reasons)


class _Reasons(logging.Handler):
    """What the exporter tells its log of a failure, since it returns none."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.last = record.getMessage()


def endpoint_of(url: str) -> str:
    """The address for log records: ``/v1/logs`` of one without a path."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise EndpointError(
            f"collector: must be an address by HTTP (got {url!r})",
            hint="for example http://127.0.0.1:4318",
        )
    if "@" in parts.netloc:
        raise EndpointError(
            "collector: credentials do not belong into the address",
            hint="set OTEL_EXPORTER_OTLP_HEADERS",
        )
    return parts._replace(path=PATH).geturl() if parts.path in ("", "/") else url


class OtlpFeeder:
    """Sends the changes of one map. ``run`` is a task of its owner."""

    def __init__(
        self,
        bus: NatsBus,
        cluster: str,
        map_name: str,
        collector: Collector,
        *,
        book: LayoutBook,
        report: Callable[[str], None],
    ) -> None:
        self.counters = FeedCounters()
        self.name = f"{map_name} otlp {collector.endpoint}"
        self.published: SourcePlace | None = None
        self._bus = bus
        self._cluster = cluster
        self._map = map_name
        self._collector = collector
        self._book = book
        self._report = report
        self._fields_of = FieldsOf()

    async def run(self, begin: SourcePlace, until: int | None) -> None:
        """Send from ``begin`` on; never ends by itself without ``until``."""
        await pour(self, self._bus, self._cluster, self._map, begin, until, self._report)

    async def settle(self) -> None:
        """Nothing is held back: ``take`` returns when the collector has the message."""

    async def begin_anew(self) -> None:
        """A collector has no place of its own."""

    async def forget(self) -> None:
        """Nothing is held back."""

    async def take(self, item: Received, skipped: int, log: str) -> None:
        counters, total = self.counters, len(item.delta.batch)
        counters.read += 1
        layout = await self._book.of(item.delta)
        for start in range(skipped, total, RECORDS_MAX):
            end = min(start + RECORDS_MAX, total)
            await self._send(self._records(item, layout, start, end))
            counters.messages += 1
            counters.changes += end - start
            self.published = SourcePlace(log, item.sequence, 0 if end == total else end)
        counters.position = item.sequence

    async def _send(self, records: Sequence[ReadableLogRecord]) -> None:
        """Until the collector has them; why it has not is told once."""
        pause, told = _PAUSE_SECONDS, False
        while reason := await self._collector.send(records):
            self.counters.refused += 1
            if not told:
                self._report(f"feed {self.name}: not taken, trying again: {reason}")
            told = True
            await asyncio.sleep(pause)
            pause = min(pause * 2, _PAUSE_SECONDS_MAX)

    def _records(
        self, item: Received, layout: Layout | None, start: int, end: int
    ) -> list[ReadableLogRecord]:
        from opentelemetry.sdk._logs import ReadableLogRecord

        resource, scope = self._collector.resource, self._collector.scope
        return [
            ReadableLogRecord(record, resource, scope)
            for record in log_records(item, self._fields_of(layout), np.arange(start, end))
        ]


def log_records(
    item: Received, fields: Fields | None, rows: np.ndarray[tuple[int], np.dtype[np.intp]]
) -> Iterator[Any]:
    """One ``LogRecord`` per change: key and value as its body, the rest as attributes."""
    from opentelemetry._logs import LogRecord, SeverityNumber

    delta = item.delta
    told = tell(delta, rows, fields)
    times = (delta.batch.left[rows].astype(np.int64) + delta.clock_offset).tolist()
    common: dict[str, Any] = {
        "mapbridge.map": delta.origin.map,
        "mapbridge.node": delta.origin.node,
        "mapbridge.cause": delta.batch.cause.name.lower(),
        "mapbridge.stream_sequence": item.sequence,
    }
    key_name, value_name = ("key_hex", "value_hex") if fields is None else ("key", "value")
    for index in range(len(told)):
        body: dict[str, Any] = {key_name: _any_value(told.keys[index])}
        value = told.values[index]
        if value is not None:
            body[value_name] = _any_value(value)
        yield LogRecord(
            timestamp=times[index],
            observed_timestamp=item.stored_at_ns,
            severity_number=SeverityNumber.INFO,
            severity_text="INFO",
            event_name=EVENT,
            body=body,
            attributes={
                **common,
                "mapbridge.op": told.operations[index],
                "mapbridge.writer": told.writers[index],
                "mapbridge.sequence": told.sequences[index],
            },
        )


def _any_value(shown: Shown) -> Any:  # noqa: ANN401 - what OpenTelemetry calls AnyValue
    """Its integers have 64 bits with sign: larger ones are text, as JSON's mapping has them."""
    if isinstance(shown, Mapping):
        return {name: _any_value(each) for name, each in shown.items()}
    if isinstance(shown, list):
        return [_any_value(each) for each in shown]
    if isinstance(shown, int) and not isinstance(shown, bool) and shown not in _I64:
        return str(shown)
    return shown
