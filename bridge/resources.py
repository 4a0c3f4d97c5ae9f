"""Where the files are that are not Python: BPF programs in C, protobuf schemas, a user's examples.

A wheel carries them in ``bridge/_data``; in a checkout (an editable install) they lie in the
top-level folders of the same names. Both places are looked at, the wheel's first.
"""

from __future__ import annotations

from pathlib import Path

from bridge.errors import UnavailableError

_PACKAGE = Path(__file__).resolve().parent
_PLACES = (_PACKAGE / "_data", _PACKAGE.parent)


def bpf_directory() -> Path:
    """The folder of the BPF C sources; also the one to hand to a compiler as ``-I``."""
    return _directory("bpf")


def schema_directory() -> Path:
    """The folder that holds ``mapbridge/v1/*.proto``: the ``--proto_path`` of a generator."""
    return _directory("schemas")


def benchmark_directory() -> Path:
    """The folder of the programs that ``mapbridge bench transports`` compares with."""
    return _directory("benchmarks")


def bpf_source(name: str) -> Path:
    """The path of a file below ``bpf/``, for example ``capture.bpf.c``."""
    return _file(bpf_directory(), name)


def schema(name: str) -> Path:
    """The path of a file below ``schemas/``, for example ``mapbridge/v1/delta.proto``."""
    return _file(schema_directory(), name)


def keepalived_file(name: str) -> Path:
    """The path of a file below ``deploy/keepalived/``."""
    return _file(_directory("deploy/keepalived"), name)


def _directory(name: str) -> Path:
    for place in _PLACES:
        directory = place / name
        if directory.is_dir():
            return directory
    raise UnavailableError(
        f"{name}: not found (looked in {', '.join(str(place) for place in _PLACES)})",
        hint="install mapbridge again: its files are incomplete",
    )


def _file(directory: Path, name: str) -> Path:
    path = directory / name
    if not path.is_file():
        raise UnavailableError(
            f"{directory.name}/{name}: not found in {directory}",
            hint="install mapbridge again: its files are incomplete",
        )
    return path
