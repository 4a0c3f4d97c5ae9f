"""The two ends of a transport in Python: what each is asked, and what it answers.

Twin of ``go/main.go``, which speaks the same lines:

    receive TRANSPORT MAP                   prints "ready ADDRESS", serves until stdin ends
    send TRANSPORT CHANGES ADDRESS SECONDS  prints "ready"; after a line on stdin it sends, and
                                            prints {"changes": n, "seconds": s} when the other side
                                            has acknowledged all; then waits for the end of stdin
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import json
import os
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from bridge.kernel import syscall
from bridge.kernel.maps import open_pin
from bridge.kernel.syscall import Command

KEY_BYTES, VALUE_BYTES = 16, 24
RECORD = struct.Struct(f"<Q{KEY_BYTES}s{VALUE_BYTES}s")  # twin of RECORD in bench/recorded.py

OP_UPDATE = 1  # enum mapbridge_op; all others are deletes here

Change = tuple[bool, bytes, bytes]  # whether it is an update (or else a delete), key, value
Serve = Callable[["Target"], AbstractContextManager[str]]  # answers the address
Run = Callable[[Iterator[Change], float], int]  # until a time.monotonic(): how many changes
Connect = Callable[[str], AbstractContextManager[Run]]


class Target:
    """A pinned map, written one entry for each system call."""

    def __init__(self, pin: str) -> None:
        self._map = open_pin(pin)
        self._key = ctypes.create_string_buffer(KEY_BYTES)
        self._value = ctypes.create_string_buffer(VALUE_BYTES)
        self._addresses = ctypes.addressof(self._key), ctypes.addressof(self._value)
        self._fd = self._map.fileno()

    def apply(self, add: bool, key: bytes, value: bytes) -> None:
        at_key, at_value = self._addresses
        ctypes.memmove(at_key, key, KEY_BYTES)
        if add:
            ctypes.memmove(at_value, value, VALUE_BYTES)
            code = syscall.element(Command.MAP_UPDATE_ELEM, self._fd, at_key, at_value, 0)
        else:
            code = syscall.element(Command.MAP_DELETE_ELEM, self._fd, at_key)
            code = 0 if code == errno.ENOENT else code
        if code:
            raise OSError(code, os.strerror(code))


def read_changes(path: str) -> Iterator[Change]:
    """All changes of the file, again and again."""
    all_of_it = [
        (op == OP_UPDATE, key, value) for op, key, value in RECORD.iter_unpack(_read(path))
    ]
    return itertools.cycle(all_of_it)


def _read(path: str) -> bytes:
    data = Path(path).read_bytes()
    if not data or len(data) % RECORD.size:
        raise ValueError(f"{path}: no whole records (got {len(data)} bytes)")
    return data


def main(transports: dict[str, tuple[Serve, Connect]]) -> None:
    """The program. ``transports``: by name, the two ends."""
    what, name, *rest = sys.argv[1:]
    serve, connect = transports[name]
    if what == "receive":
        (pin,) = rest
        with serve(Target(pin)) as address:
            print("ready", address, flush=True)
            sys.stdin.read()
        return
    path, address, seconds = rest
    changes = read_changes(path)
    with connect(address) as run:
        print("ready", flush=True)
        if not sys.stdin.readline():
            return
        began = time.monotonic()
        count = run(changes, began + float(seconds))
        result = {"changes": count, "seconds": time.monotonic() - began}
        print(json.dumps(result), flush=True)
        sys.stdin.read()
