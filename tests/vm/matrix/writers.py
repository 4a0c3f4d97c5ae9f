"""The writers of the kernel matrix: each carries out a step on a map, and is done when it returns.

System calls are made bare: what the bridge's own classes do instead, where a kernel lacks a
command, would pass for the command.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from bridge.capture.loader import ProgramType
from bridge.kernel import syscall
from bridge.kernel.cpus import possible_cpus
from bridge.kernel.elements import address_of
from bridge.kernel.maps import KernelMap, UpdateFlag
from bridge.kernel.objects import LoadedObject, ObjectError, load_object
from bridge.kernel.programs import KernelProgram, test_run
from bridge.kernel.scan import NO_BATCH
from bridge.kernel.syscall import Command
from bridge.model import U8
from tests.vm.features import kernel_version
from tests.vm.matrix.orders import Order, Orders, Targets
from tests.vm.matrix.plan import Action, Kind, Step, Writer, is_traceable

WAIT_SECONDS = 10.0
PACKET = b"\xff" * 12 + b"\x08\x00" + bytes(50)
PREFIX = 32  # of the keys of an LPM trie: all of them whole
TIMER_RUNS_MAX = 256  # RUNS_MAX in timer.bpf.c
_PIN = Path("/sys/fs/bpf/matrix_softirq")
_TIMER_PINS = Path("/sys/fs/bpf/matrix_timer")


class MissingError(Exception):
    """The kernel says that it has no such operation."""


class BrokenError(Exception):
    """A writer did not do what it was told to: the suite proves nothing."""


def keys_of(kind: Kind, step: Step) -> U8:
    """``u8[n, key_size]`` of a step."""
    numbers = np.arange(step.first, step.first + step.count, dtype=np.uint32)
    if not kind.is_array:
        numbers = np.stack([np.full_like(numbers, PREFIX), numbers], axis=1)
    return np.ascontiguousarray(numbers).view(np.uint8).reshape(step.count, -1)


def values_of(step: Step, base: int) -> U8:
    """``u8[n, 8]`` of a step."""
    numbers = np.arange(step.first, step.first + step.count, dtype=np.uint64)
    return (numbers + np.uint64(base)).view(np.uint8).reshape(-1, 8)


class Writers:
    """All of them; ``close`` removes what they stand on."""

    def __init__(self, targets: Targets, timer: Path) -> None:
        self._targets = targets
        self._orders = targets.orders
        self._timer_orders: Orders | None = None
        self._classifier = targets.object.load("as_classifier", ProgramType.SCHED_CLS)
        self._xdp = targets.object.load("as_xdp", ProgramType.XDP)
        targets.object.attach_tracepoint("syscalls:sys_enter_getppid", "as_tracepoint")
        self._plug()
        self.timer: LoadedObject | None = None
        with suppress(ObjectError):  # a kernel without timers refuses the program
            self.timer = load_object(timer, _TIMER_PINS)
            self._timer_orders = Orders(self.timer.map("orders"))

    def act(self, kind: Kind, target: KernelMap, writer: Writer, step: Step, base: int) -> None:
        """Carry out a step. Raises ``MissingError`` and ``BrokenError``."""
        if writer is Writer.SINGLE:
            _single(kind, target, step, base)
        elif writer is Writer.BATCH:
            _batch(kind, target, step, base)
        elif writer is Writer.TIMER:
            self._by_timer(step, base)
        else:
            self._by_program(kind, writer, step, base)

    def close(self) -> None:
        subprocess.run(["ip", "link", "del", "matrix0"], check=True)
        _PIN.unlink()
        if self.timer is not None and self._timer_orders is not None:
            self._timer_orders.close()
            self.timer.unload()

    def _plug(self) -> None:
        """A link with the XDP program at its end, which runs in the softirq that receives."""
        with KernelProgram(os.dup(self._xdp)) as program:
            program.pin(_PIN)
        for command in (
            "ip link add matrix0 type veth peer name matrix1",
            "ip link set matrix0 up",
            f"ip link set matrix1 up xdpgeneric pinned {_PIN}",
        ):
            subprocess.run(command.split(), check=True)

    def _by_program(self, kind: Kind, writer: Writer, step: Step, base: int) -> None:
        if writer is Writer.TRACEPOINT and not is_traceable(kind, kernel_version()):
            raise MissingError
        number = self._targets.number(kind, small=step.action is Action.EVICT)
        thread = threading.get_native_id() if writer is Writer.TRACEPOINT else 0
        order = Order(number, step.action, step.first, step.count, base, thread)
        self._orders.give(order)
        if writer is Writer.TC:
            test_run(self._classifier, PACKET, repeat=step.count)
        elif writer is Writer.XDP:
            test_run(self._xdp, PACKET, repeat=step.count)
        elif writer is Writer.TRACEPOINT:
            for _ in range(step.count):
                os.getppid()
        else:
            self._send()
        if self._orders.left():
            left = self._orders.left()
            raise BrokenError(f"{kind.name}, {writer}, {step.action}: {left} not done")

    def _send(self) -> None:
        """Packets until the order is carried out; more than that do nothing."""
        deadline = time.monotonic() + WAIT_SECONDS
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
            out.bind(("matrix0", 0))
            while self._orders.left() and time.monotonic() < deadline:
                with suppress(OSError):  # the queue is full for a moment
                    out.send(PACKET)

    def _by_timer(self, step: Step, base: int) -> None:
        if self.timer is None or self._timer_orders is None:
            raise MissingError
        orders, first, count = self._timer_orders, step.first, step.count
        if count > TIMER_RUNS_MAX:
            raise BrokenError(f"timer: at most {TIMER_RUNS_MAX} keys (got {count})")
        orders.give(Order(0, step.action, first, count, base))
        if self.timer.program("set_alarm").test_run(PACKET).retval:
            raise BrokenError("timer: not started")
        deadline = time.monotonic() + WAIT_SECONDS
        while orders.left():
            if time.monotonic() > deadline:
                raise BrokenError("timer: its callback was not called")
            time.sleep(0.001)


def _wide(kind: Kind, values: U8) -> U8:
    """Values as bpf(2) wants them: of a per-CPU map, one for each CPU that there may be."""
    return (
        np.ascontiguousarray(np.tile(values, (1, possible_cpus()))) if kind.is_per_cpu else values
    )


def _single(kind: Kind, target: KernelMap, step: Step, base: int) -> None:
    keys, values = keys_of(kind, step), _wide(kind, values_of(step, base))
    fd, room = target.fileno(), ctypes.create_string_buffer(values.shape[1])
    # What is to be done, and what the kernel is to answer.
    commands: dict[Action, tuple[Callable[[int, int], int], int]] = {
        Action.REFUSED: (
            lambda key, value: syscall.element(
                Command.MAP_UPDATE_ELEM, fd, key, value, UpdateFlag.NOEXIST
            ),
            errno.EEXIST,
        ),
        Action.DELETE: (lambda key, _: syscall.element(Command.MAP_DELETE_ELEM, fd, key), 0),
        Action.DELETE_NONE: (
            lambda key, _: syscall.element(Command.MAP_DELETE_ELEM, fd, key),
            errno.ENOENT,
        ),
        Action.TAKE: (
            lambda key, _: syscall.element(
                Command.MAP_LOOKUP_AND_DELETE_ELEM, fd, key, ctypes.addressof(room)
            ),
            0,
        ),
    }
    update = (lambda key, value: syscall.element(Command.MAP_UPDATE_ELEM, fd, key, value), 0)
    command, expected = commands.get(step.action, update)
    for row in range(step.count):
        key = address_of(keys) + row * keys.shape[1]
        code = command(key, address_of(values) + row * values.shape[1])
        if code != expected:
            if row == 0 and code in NO_BATCH:
                raise MissingError
            raise BrokenError(f"{kind.name}, {step.action}: error {code}, not {expected}")


def _batch(kind: Kind, target: KernelMap, step: Step, base: int) -> None:
    keys, values = keys_of(kind, step), _wide(kind, values_of(step, base))
    fd, at = target.fileno(), address_of(keys)
    if step.action is Action.DELETE:
        code, done = syscall.batch(Command.MAP_DELETE_BATCH, fd, step.count, keys=at)
    elif step.action is Action.TAKE:
        # All that is in the map; the room is more than that, so the end is met.
        count, token = 2 * step.count, ctypes.create_string_buffer(target.info.key_size)
        keys, values = np.tile(keys, (2, 1)), np.tile(values, (2, 1))
        code, done = syscall.batch(
            Command.MAP_LOOKUP_AND_DELETE_BATCH,
            fd,
            count,
            keys=address_of(keys),
            values=address_of(values),
            token_out=ctypes.addressof(token),
        )
        code = 0 if code == errno.ENOENT else code
    else:
        code, done = syscall.batch(
            Command.MAP_UPDATE_BATCH, fd, step.count, keys=at, values=address_of(values)
        )
    if code in NO_BATCH:
        raise MissingError
    if code or done != step.count:
        raise BrokenError(f"{kind.name}, batch {step.action}: {done} done, error {code}")
