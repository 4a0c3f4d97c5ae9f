"""The programs in ``benchmarks/``: built where they must be, started, asked, and timed.

Their lines are described in ``benchmarks/peer.py``. They end when their standard input does, so
none outlives this process.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import bridge
from bridge.errors import BridgeError, UnavailableError
from bridge.kernel.objects import default_cache
from bridge.resources import benchmark_directory

START_SECONDS_MAX = 60.0
LATE_SECONDS_MAX = 120.0  # beyond the time that it was told to send
STOP_SECONDS_MAX = 10.0
BUILD_SECONDS_MAX = 300.0
GO_PATH = "/usr/share/gocode"  # where Debian puts the sources of Go libraries
GO_HINT = "Debian: apt install golang-go; in a checkout: make benchmark-tools"
GRPC_GO_HINT = (
    "Debian: apt install golang-google-grpc-dev golang-google-protobuf-dev "
    "golang-github-golang-protobuf-1-5-dev protoc-gen-go-1-5; in a checkout: make benchmark-tools"
)
GRPC_PYTHON_HINT = "pip install 'mapbridge[bench]'"


class PeerError(BridgeError):
    """A program of a benchmark ended, or did not answer."""


class Peer:
    """One end of a transport, a process. ``with`` ends it."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        roots = [str(benchmark_directory().parent), str(Path(bridge.__file__).parents[1])]
        search = os.pathsep.join([*roots, os.environ.get("PYTHONPATH", "")])
        self.name = " ".join(command[-4:])
        # closed by __exit__
        self._words = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            env={**os.environ, "PYTHONPATH": search, **(environment or {})},
        )

    def line(self, seconds_max: float) -> str:
        """The next line that it prints. Raises ``PeerError``."""
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            line = self.process.stdout.readline() if selector.select(seconds_max) else b""
        if not line:
            self.process.kill()
            code = self.process.wait()
            self._words.seek(0)
            said = self._words.read().strip().splitlines()[-1:] or [f"exit code {code}"]
            raise PeerError(f"benchmark peer: no answer from {self.name} (got {said[0]})")
        return line.decode().strip()

    def address(self) -> str:
        """Of a receiver that is ready."""
        return self.line(START_SECONDS_MAX).removeprefix("ready").strip()

    def send(self, seconds: float) -> tuple[int, float]:
        """Let a sender that is ready begin. Answers (changes acknowledged, seconds)."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ended: ``line`` says why
            self.process.stdin.write(b"go\n")
            self.process.stdin.flush()
        result = json.loads(self.line(seconds + LATE_SECONDS_MAX))
        return int(result["changes"]), float(result["seconds"])

    def cpu_seconds(self) -> float:
        return cpu_seconds(self.process.pid)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self._words.close()


def cpu_seconds(process_id: int) -> float:
    """Processor time of a process so far, all its threads together."""
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def server_cpu_seconds() -> float:
    """The same of the nats-servers that this process has started."""
    used = 0.0
    for children in Path("/proc/self/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if "nats-server" in Path(f"/proc/{child}/comm").read_text():
                    used += cpu_seconds(child)
    return used


def python_peer(module: str) -> list[str]:
    """The command of a module of ``benchmarks/``. Raises ``UnavailableError``."""
    if module == "grpc_python":
        try:
            import grpc_tools  # noqa: F401
        except ImportError as error:
            raise UnavailableError(
                "gRPC in Python: not installed (got no grpcio-tools)", hint=GRPC_PYTHON_HINT
            ) from error
    return [sys.executable, "-m", f"benchmarks.{module}"]


@contextlib.contextmanager
def go_peer(*, grpc: bool) -> Iterator[list[str]]:
    """The command of the program in Go, built for it. Raises ``UnavailableError``, ``PeerError``.

    The standard library suffices for net/rpc; gRPC's sources are those that Debian packages.
    """
    if shutil.which("go") is None:
        raise UnavailableError("Go: not found on PATH", hint=GO_HINT)
    sources = benchmark_directory() / "go"
    cache = {"GOCACHE": str(default_cache() / "go"), "GOFLAGS": "", "GOTOOLCHAIN": "local"}
    with tempfile.TemporaryDirectory(prefix="mapbridge-") as folder:
        program = Path(folder) / "peer"
        if not grpc:
            _build(["go", "build", "-o", str(program), "."], sources, cache)
            yield [str(program)]
            return
        grpc_sources = Path(GO_PATH) / "src" / "google.golang.org" / "grpc"
        if shutil.which("protoc-gen-go") is None or not grpc_sources.is_dir():
            raise UnavailableError(
                f"gRPC in Go: no sources in {GO_PATH}, or no protoc-gen-go", hint=GRPC_GO_HINT
            )
        scratch = Path(folder) / "go"
        shutil.copytree(sources, scratch, ignore=shutil.ignore_patterns("go.mod"))
        schema = str(benchmark_directory())
        _build(["protoc", f"-I{schema}", "--go_out=.", "sync.proto"], scratch, cache)
        old = {**cache, "GO111MODULE": "off", "GOPATH": GO_PATH}
        _build(["go", "build", "-tags", "grpc", "-o", str(program), "."], scratch, old)
        yield [str(program)]


def _build(command: Sequence[str], directory: Path, environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS_MAX,
        check=False,
    )
    if done.returncode:
        raise PeerError(
            f"{' '.join(command[:2])}: failed (got {done.stderr.strip()[-400:]})",
            hint="the benchmark is built with Go 1.19 and Debian's packages",
        )
