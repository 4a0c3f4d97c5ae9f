"""The capabilities of this process, thread by thread, and how they are given up.

The kernel keeps them per thread, and a new thread has those of the one that makes it
(capabilities(7)). So ``give_up`` concerns the calling thread and all that it makes from then on;
``held_by_threads`` shows whether another one has kept more.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterable
from pathlib import Path

from bridge.errors import BridgeError
from bridge.kernel.features import Capability

# <linux/capability.h>, <linux/prctl.h>
_VERSION_3 = 0x20080522
_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_LAST_POSSIBLE = 63
_SETS = re.compile(r"^Cap(?:Inh|Prm|Eff|Amb):\s*([0-9a-f]+)$", re.MULTILINE)
_THREADS = Path("/proc/self/task")


class CapabilityError(BridgeError):
    """The kernel did not let capabilities be given up."""


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("thread", ctypes.c_int)]


class _Sets(ctypes.Structure):
    """Half of each set: capabilities 0 to 31, or 32 to 63."""

    _fields_ = [
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    ]


def bits_of(capabilities: Iterable[Capability]) -> int:
    """The set as a number, as /proc shows it."""
    return sum(1 << capability for capability in set(capabilities))


def held() -> frozenset[Capability]:
    """Those that the calling thread has in force and that mapbridge knows of."""
    effective = _capget()[0]
    return frozenset(one for one in Capability if effective >> one & 1)


def give_up(keep: Iterable[Capability]) -> None:
    """Keep these at most, in the calling thread; no program that it starts gets more again.

    Raises ``CapabilityError``.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    kept = bits_of(keep) & _capget()[1]
    for number in range(_LAST_POSSIBLE + 1):
        # Needs CAP_SETPCAP, which a service may not have; no_new_privs bounds programs, too.
        if not kept >> number & 1 and libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0) == 1:
            libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
    _done(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "set no_new_privs")
    _done(libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "clear ambient ones")
    header, sets = _Header(_VERSION_3, 0), (_Sets * 2)()
    for half, part in enumerate(sets):
        part.effective = part.permitted = kept >> 32 * half & 0xFFFFFFFF
    _done(libc.capset(ctypes.byref(header), sets), "give up the others")


def held_by_threads() -> dict[str, int]:
    """Each thread of this process, as ``name/number``: all capabilities that it has in any way."""
    found: dict[str, int] = {}
    for name in os.listdir(_THREADS):  # noqa: PTH208 - threads come and go
        try:
            title = (_THREADS / name / "comm").read_text(encoding="utf-8").strip()
            status = (_THREADS / name / "status").read_text(encoding="utf-8")
        except OSError:
            continue
        union = 0
        for text in _SETS.findall(status):
            union |= int(text, 16)
        found[f"{title}/{name}"] = union
    return found


def _capget() -> tuple[int, int]:
    """Effective and permitted ones of the calling thread."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = _Header(_VERSION_3, 0), (_Sets * 2)()
    _done(libc.capget(ctypes.byref(header), sets), "read them")
    return (
        sets[0].effective | sets[1].effective << 32,
        sets[0].permitted | sets[1].permitted << 32,
    )


def _done(code: int, what: str) -> None:
    if code < 0:
        reason = os.strerror(ctypes.get_errno()).lower()
        raise CapabilityError(
            f"capabilities: could not {what}: {reason}",
            hint="set security.drop_capabilities = false",
        )
