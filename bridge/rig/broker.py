"""A nats-server for code that has no event loop: the embedded server, kept by a thread."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from types import TracebackType

from bridge.bus.embedded import EmbeddedServer
from bridge.errors import BridgeError

START_SECONDS_MAX = 60.0


class ServerThread:
    """Starts on entering, stops on leaving; ``url`` is set in between."""

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        store_bytes_max: int | None = None,
        extra_config: str = "",
    ) -> None:
        self.url = ""
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
        ) as server:
            self.url = server.url
            self._ready.set()
            await self._stop.wait()
