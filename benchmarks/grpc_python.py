"""gRPC by Python's grpcio: messages with JSON in an ``Any``, and messages with typed fields.

Each goes as one call for each entry, and as one stream of entries that ends with an answer. The
code of ``sync.proto`` is generated when this starts.
"""

from __future__ import annotations

import contextlib
import json
import struct
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from benchmarks.peer import Change, Connect, Run, Serve, Target, main

sys.path.insert(0, str(Path(__file__).parent))  # where grpc looks for the file
messages, services = grpc.protos_and_services("sync.proto")

ENTRY = struct.Struct("=5Q")  # the key's and the value's fields
FIELDS = ("number", "check", "count", "changed", "sequence")
WORKERS = 2  # threads of the server; one client uses one at a time


def any_message(change: Change) -> Any:  # noqa: ANN401 - generated classes have no types
    add, key, value = change
    text = json.dumps(dict(zip(FIELDS, ENTRY.unpack(key + value), strict=True)))
    message = messages.AnyChange(add=add)
    message.details.value = text.encode()
    return message


def apply_any(target: Target, message: Any) -> None:  # noqa: ANN401
    fields = json.loads(message.details.value)
    _apply(target, message.add, [fields[name] for name in FIELDS])


def typed_message(change: Change) -> Any:  # noqa: ANN401
    add, key, value = change
    number, check, count, changed, sequence = ENTRY.unpack(key + value)
    return messages.TypedChange(
        add=add,
        entry=messages.EntryMessage(
            number=number, check=check, count=count, changed=changed, sequence=sequence
        ),
    )


def apply_typed(target: Target, message: Any) -> None:  # noqa: ANN401
    entry = message.entry
    fields = [entry.number, entry.check, entry.count, entry.changed, entry.sequence]
    _apply(target, message.add, fields)


def _apply(target: Target, add: bool, fields: list[int]) -> None:
    entry = ENTRY.pack(*fields)
    target.apply(add, entry[:16], entry[16:])


@dataclass
class Service:
    """The server's side of ``service Sync``."""

    target: Target

    def ApplyAny(self, message: Any, _: object) -> Any:  # noqa: ANN401, N802
        apply_any(self.target, message)
        return messages.Done(changes=1)

    def ApplyTyped(self, message: Any, _: object) -> Any:  # noqa: ANN401, N802
        apply_typed(self.target, message)
        return messages.Done(changes=1)

    def StreamAny(self, stream: Iterable[Any], _: object) -> Any:  # noqa: ANN401, N802
        return self._all(stream, apply_any)

    def StreamTyped(self, stream: Iterable[Any], _: object) -> Any:  # noqa: ANN401, N802
        return self._all(stream, apply_typed)

    def _all(self, stream: Iterable[Any], apply: Any) -> Any:  # noqa: ANN401
        count = 0
        for message in stream:
            apply(self.target, message)
            count += 1
        return messages.Done(changes=count)


@contextlib.contextmanager
def serve(target: Target) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(WORKERS))
    services.add_SyncServicer_to_server(Service(target), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def _sender(method: str, write: Any, *, stream: bool) -> Connect:  # noqa: ANN401
    @contextlib.contextmanager
    def connect(address: str) -> Iterator[Run]:
        with grpc.insecure_channel(address) as channel:
            grpc.channel_ready_future(channel).result(timeout=10)
            call = getattr(services.SyncStub(channel), method)

            def each(changes: Iterator[Change], until: float) -> int:
                count = 0
                while time.monotonic() < until:
                    call(write(next(changes)))
                    count += 1
                return count

            def streamed(changes: Iterator[Change], until: float) -> int:
                def some() -> Iterator[Any]:
                    while time.monotonic() < until:
                        yield write(next(changes))

                return int(call(some()).changes)

            yield streamed if stream else each

    return connect


TRANSPORTS: dict[str, tuple[Serve, Connect]] = {
    "any-entry": (serve, _sender("ApplyAny", any_message, stream=False)),
    "any-stream": (serve, _sender("StreamAny", any_message, stream=True)),
    "typed-entry": (serve, _sender("ApplyTyped", typed_message, stream=False)),
    "typed-stream": (serve, _sender("StreamTyped", typed_message, stream=True)),
}

if __name__ == "__main__":
    main(TRANSPORTS)
