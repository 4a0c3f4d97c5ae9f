"""A nats-server for code that has no event loop: the embedded server, kept by a thread."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

from bridge.bus.embedded import EmbeddedServer
from bridge.errors import BridgeError

START_SECONDS_MAX = 60.0


class ServerThread:
    """Starts on entering, stops on leaving; ``url`` and ``pid`` are set in between."""

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        store_bytes_max: int | None = None,
        extra_config: str = "",
        server_name: str = "mapbridge-embedded",
    ) -> None:
        self.url = ""
        self.pid: int | None = None
        self._server_name = server_name
        self._store_bytes_max = store_bytes_max
        self._extra_config = extra_config
        self._port = port
        self._directory = directory
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="nats-server", daemon=True)

    def __enter__(self) -> ServerThread:
        self._thread.start()
        if not self._ready.wait(START_SECONDS_MAX):
            raise BridgeError(f"nats-server: not ready in {START_SECONDS_MAX:.0f} s")
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as failure:  # noqa: BLE001 - handed to the thread that waits
            self._failure = failure
        finally:
            self._ready.set()
            self._loop.close()

    async def _serve(self) -> None:
        async with EmbeddedServer(
            self._directory,
            port=self._port,
            store_bytes_max=self._store_bytes_max,
            extra_config=self._extra_config,
            server_name=self._server_name,
        ) as server:
            self.url, self.pid = server.url, server.pid
            self._ready.set()
            await self._stop.wait()


@contextmanager
def servers(directory: Path, count: int) -> Iterator[list[ServerThread]]:
    """``count`` servers on this machine; more than one form a cluster."""
    with ExitStack() as stack:
        if count == 1:
            yield [stack.enter_context(ServerThread(directory / "nats"))]
            return
        ports = _free_ports(count)
        routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports)
        yield [
            stack.enter_context(
                ServerThread(
                    directory / f"nats-{port}",
                    server_name=f"s{number}",
                    extra_config=f"cluster {{ name: bench, listen: 127.0.0.1:{port}, "
                    f"routes: [{routes}] }}",
                )
            )
            for number, port in enumerate(ports, 1)
        ]


def _free_ports(count: int) -> list[int]:
    """Ports that nobody has now; all are held until the last is known, so that they differ."""
    with ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in found]
