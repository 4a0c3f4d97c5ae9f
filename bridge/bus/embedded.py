"""A nats-server of one's own: a child process with JetStream in a directory.

The child dies with its parent: it asks the kernel for a signal when the thread that started it
ends (PR_SET_PDEATHSIG), so ``start`` belongs on a thread that lives as long as the process, in
practice the main one. It asks by itself, in a stub that then becomes the server, because code
between fork and exec is not safe in a process with threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import orjson

from bridge.bus.embedded_store import await_stuck, monitoring_port
from bridge.bus.server_binary import ServerBinary, find_server
from bridge.errors import UnavailableError

_READY_SECONDS = 20.0
_STOP_SECONDS = 10.0
_POLL_SECONDS = 0.02
_PAUSE_SECONDS = 0.05  # before a restart, times the ends seen lately
_RESTARTS_MAX = 5  # within _RESTART_WINDOW_SECONDS; more of them and it is given up
_RESTART_WINDOW_SECONDS = 60.0
_LOG_TAIL_BYTES = 2000
_LOG_FILE_BYTES = 10_000_000

# prctl(PR_SET_PDEATHSIG = 1, SIGTERM = 15); a parent that is gone already sends no signal any more.
_STUB = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 15, 0, 0, 0)
if os.getppid() != int(sys.argv[1]): sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def _ignore(text: str) -> None:
    del text


class EmbeddedServer:
    """``async with EmbeddedServer(directory) as server: ... server.url``.

    directory     holds the configuration, the log file and, in ``jetstream``, what is stored
    port          ``None``: a free one, the same over restarts of the child
    """

    def __init__(
        self,
        directory: Path,
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        binary: ServerBinary | None = None,
        server_name: str = "mapbridge-embedded",
        max_payload: int = 1 << 20,
        store_bytes_max: int | None = None,
        sync_interval_seconds: int = 10,
        extra_config: str = "",
        report: Callable[[str], None] = _ignore,
    ) -> None:
        self._directory = directory
        self._host = host
        self._port = port
        self._binary = binary
        self._server_name = server_name
        self._max_payload = max_payload
        self._store_bytes_max = store_bytes_max
        self._sync_interval_seconds = sync_interval_seconds
        self._extra_config = extra_config
        self._report = report
        self._process: subprocess.Popen[bytes] | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._stopping = False
        self.restarts = 0
        self.failed = asyncio.Event()  # set when the child was given up

    @property
    def url(self) -> str:
        """Where clients connect; known once it was started."""
        assert self._port is not None, "not started"
        host = "127.0.0.1" if self._host in ("0.0.0.0", "::") else self._host
        return f"nats://{f'[{host}]' if ':' in host else host}:{self._port}"

    @property
    def pid(self) -> int | None:
        """The child's process id while it runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    @property
    def log_path(self) -> Path:
        return self._directory / "nats-server.log"

    async def start(self) -> None:
        """Start the child and wait until it takes clients.

        Raises ``UnavailableError`` when there is no binary, or with the end of its log when the
        child does not come up in time.
        """
        assert self._supervisor is None, "started twice"
        if self._binary is None:
            self._binary = await asyncio.to_thread(find_server)
        self._stopping = False
        try:
            await self._launch()
        except BaseException:
            await self._end_child()
            raise
        self._supervisor = asyncio.create_task(self._supervise(), name="embedded-server")

    async def stop(self) -> None:
        """Ask the child to end, then make it."""
        self._stopping = True
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await supervisor
        await self._end_child()

    def kill(self) -> None:
        """SIGKILL the child, as a crash would; the supervisor starts it again."""
        if self._process is not None:
            self._process.kill()

    async def __aenter__(self) -> EmbeddedServer:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def _launch(self) -> None:
        self._prepare()
        self._process = self._spawn()
        try:
            async with asyncio.timeout(_READY_SECONDS):
                if self._port is None:
                    self._port = await self._read_port(self._process)
                await self._wait_ready(self._process)
        except TimeoutError as error:
            raise UnavailableError(
                f"nats-server: not ready within {_READY_SECONDS:g} seconds{self._log_tail()}"
            ) from error

    def _prepare(self) -> None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            for old in self._directory.glob("*.ports"):
                old.unlink()
            self._config_path.write_text(self._config(), encoding="utf-8")
        except OSError as error:
            raise UnavailableError(
                f"nats-server: cannot use {self._directory}: {error.strerror}"
            ) from error

    def _spawn(self) -> subprocess.Popen[bytes]:
        assert self._binary is not None
        command = [str(self._binary.path), "-c", str(self._config_path)]
        if sys.executable:
            command = [sys.executable, "-I", "-S", "-c", _STUB, str(os.getpid()), *command]
        try:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # A Ctrl-C at the terminal is for the bridge: it still has to drain to the server.
                start_new_session=True,
            )
        except OSError as error:
            raise UnavailableError(f"nats-server: does not start: {error.strerror}") from error

    @property
    def _config_path(self) -> Path:
        return self._directory / "nats-server.conf"

    def _config(self) -> str:
        port = -1 if self._port is None else self._port
        limit = "" if self._store_bytes_max is None else f"max_file: {self._store_bytes_max}"
        return f"""# Written by mapbridge at each start.
server_name: {json.dumps(self._server_name)}
host: {json.dumps(self._host)}
port: {port}
http: "127.0.0.1:-1"
ports_file_dir: {json.dumps(str(self._directory))}
log_file: {json.dumps(str(self.log_path))}
logfile_size_limit: {_LOG_FILE_BYTES}
logfile_max_num: 3
max_payload: {self._max_payload}
jetstream {{
  store_dir: {json.dumps(str(self._directory))}
  sync_interval: "{self._sync_interval_seconds}s"
  {limit}
}}
{self._extra_config}
"""

    async def _read_port(self, process: subprocess.Popen[bytes]) -> int:
        """The port that the server picked, from the file it writes."""
        path = self._directory / f"nats-server_{process.pid}.ports"
        while True:
            self._check_alive(process)
            try:
                url = orjson.loads(path.read_bytes())["nats"][0]
                return int(str(url).rpartition(":")[2])
            except (OSError, orjson.JSONDecodeError, LookupError, ValueError):
                await asyncio.sleep(_POLL_SECONDS)  # not written, or not to its end

    async def _wait_ready(self, process: subprocess.Popen[bytes]) -> None:
        """Until it greets a client: it does so only when JetStream has read its store."""
        host = self.url.removeprefix("nats://").rpartition(":")[0].strip("[]")
        while True:
            self._check_alive(process)
            with contextlib.suppress(OSError, orjson.JSONDecodeError):
                reader, writer = await asyncio.open_connection(host, self._port)
                try:
                    line = await reader.readline()
                finally:
                    writer.transport.abort()
                if orjson.loads(line.removeprefix(b"INFO ") or b"{}").get("jetstream"):
                    return
            await asyncio.sleep(_POLL_SECONDS)

    def _check_alive(self, process: subprocess.Popen[bytes]) -> None:
        code = process.poll()
        if code is not None:
            raise UnavailableError(f"nats-server: ended with {code}{self._log_tail()}")

    def _log_tail(self) -> str:
        try:
            text = self.log_path.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")
        except OSError:
            return ""
        lines = [line for line in text.splitlines() if "[ERR]" in line or "[FTL]" in line]
        return f" ({lines[-1]})" if lines else ""

    async def _supervise(self) -> None:
        """Start the child again when it ends, but not for ever."""
        ends: deque[float] = deque(maxlen=_RESTARTS_MAX + 1)
        while not self._stopping:
            process = self._process
            assert process is not None
            stuck = asyncio.create_task(self._end_when_stuck(process), name="embedded-store")
            try:
                code = await _wait_exit(process)
            finally:
                stuck.cancel()
            ends.append(time.monotonic())
            if len(ends) > _RESTARTS_MAX and ends[-1] - ends[0] < _RESTART_WINDOW_SECONDS:
                self._report(f"nats-server: ended {len(ends)} times in a row; given up")
                self.failed.set()
                return
            self._report(f"nats-server: ended with {code}; starting it again")
            self.restarts += 1
            await asyncio.sleep(_PAUSE_SECONDS * len(ends))
            try:
                await self._launch()
            except UnavailableError as error:
                self._report(str(error))
                await self._end_child()  # counts as one more end

    async def _end_when_stuck(self, process: subprocess.Popen[bytes]) -> None:
        """What ends it makes the supervisor start it again, and then it stores."""
        path = self._directory / f"nats-server_{process.pid}.ports"
        while True:
            with contextlib.suppress(OSError, LookupError, ValueError):
                port = monitoring_port(path.read_bytes())
                break
            await asyncio.sleep(_POLL_SECONDS)
        words = await await_stuck(port, self._directory)
        self._report(f"nats-server: does not store any more, and the disk has room ({words})")
        await self._end_child()

    async def _end_child(self) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await _wait_exit(process)
        except TimeoutError:
            process.kill()
            await _wait_exit(process)


async def _wait_exit(process: subprocess.Popen[bytes]) -> int:
    """The exit code, without a thread and without polling."""
    if process.poll() is None:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        fd = os.pidfd_open(process.pid)
        try:
            loop.add_reader(fd, ended.set)
            await ended.wait()
        finally:
            loop.remove_reader(fd)
            os.close(fd)
    return process.wait()
