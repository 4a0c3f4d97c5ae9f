"""Making maps and finding those that exist: by pin, by id, by name."""

from __future__ import annotations

import errno
import os
import resource
import struct
from pathlib import Path

from bridge.kernel import syscall
from bridge.kernel.cpus import possible_cpus
from bridge.kernel.elements import BatchOutcome
from bridge.kernel.errors import (
    Asked,
    MapAmbiguousError,
    MapNotFoundError,
    SizeMismatchError,
    UnsupportedError,
    check,
    translate,
)
from bridge.kernel.handle import SCAN_ENTRIES, KernelMap
from bridge.kernel.maptypes import PER_CPU_TYPES, MapFlag, MapType, UpdateFlag, type_name
from bridge.kernel.syscall import OBJECT_NAME_BYTES, Command
from bridge.model import MapInfo, MapSelector

__all__ = [
    "SCAN_ENTRIES",
    "BatchOutcome",
    "KernelMap",
    "MapFlag",
    "MapType",
    "UpdateFlag",
    "all_maps",
    "create_map",
    "find_maps",
    "is_descriptor_of",
    "map_info",
    "open_map",
    "open_map_id",
    "open_pin",
    "raise_memlock_limit",
    "still_held",
    "type_name",
]

# struct bpf_map_info: type, id, key_size, value_size, max_entries, map_flags, name
_MAP_INFO = struct.Struct("=6I16s")
_MAP_INFO_BYTES = 88
NAME_LENGTH_MAX = OBJECT_NAME_BYTES - 1
OPEN_ATTEMPTS_MAX = 8


def create_map(
    map_type: MapType | int,
    key_size: int,
    value_size: int,
    max_entries: int,
    *,
    name: str = "",
    flags: int = MapFlag.NONE,
    inner: KernelMap | None = None,
) -> KernelMap:
    """Make a map. ``inner`` is the template of a map of maps.

    A name has at most 15 characters of ``[A-Za-z0-9_.]`` (a rule of the kernel).
    """
    encoded = name.encode()
    if len(encoded) > NAME_LENGTH_MAX:
        raise SizeMismatchError(
            f"map {name}: name too long for the kernel: at most {NAME_LENGTH_MAX} (got "
            f"{len(encoded)})",
            hint="choose a shorter name",
        )
    inner_fd = inner.fileno() if inner is not None else 0
    fields = syscall.MapFields(
        int(map_type), key_size, value_size, max_entries, int(flags), inner_fd, encoded
    )
    fd = syscall.create(fields)
    # Before 5.11 the kernel charges maps to the locked memory of the process and says EPERM.
    if fd == -errno.EPERM and raise_memlock_limit():
        fd = syscall.create(fields)
    check(max(-fd, 0), Asked.CREATE, f"map {name or '(no name)'}", "create")
    return _adopt(fd, f"map {name}")


def raise_memlock_limit() -> bool:
    """Lift the limit of locked memory; answers whether that changed anything."""
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    if resource.getrlimit(resource.RLIMIT_MEMLOCK) == unlimited:
        return False
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, unlimited)
    except (OSError, ValueError):
        return False
    return True


def open_map(selector: MapSelector) -> KernelMap:
    """Open the one map that the selector means. Raises MapNotFoundError, MapAmbiguousError."""
    if selector.pin is not None:
        return open_pin(selector.pin)
    if selector.id is not None:
        return open_map_id(selector.id)
    assert selector.name is not None
    return _open_named(selector.name)


def _open_named(name: str) -> KernelMap:
    # The map can go, or be replaced by a newer one, between the listing and the opening.
    for _ in range(OPEN_ATTEMPTS_MAX):
        found = find_maps(name)
        if len(found) > 1:
            raise MapAmbiguousError(name, found)
        if not found:
            break
        try:
            return open_map_id(found[0].id)
        except MapNotFoundError:
            continue
    raise MapNotFoundError(
        f"map {name}: no map of this name in the kernel",
        hint="load the program that makes it, or see the names with `mapbridge maps`",
        errno=errno.ENOENT,
    )


def open_map_id(map_id: int) -> KernelMap:
    """Open a map by its id."""
    fd = syscall.descriptor_of(Command.MAP_GET_FD_BY_ID, map_id)
    check(max(-fd, 0), Asked.OPEN, f"map id {map_id}", "open")
    return _adopt(fd, f"map id {map_id}")


def open_pin(path: str | os.PathLike[str]) -> KernelMap:
    """Open the map that is pinned at a path. Raises UnsupportedError when it is no map."""
    text = os.fspath(path)
    fd = syscall.get_pinned(os.fsencode(text))
    if fd in (-errno.ENOENT, -errno.ENOTDIR):
        raise MapNotFoundError(
            f"pin {text}: nothing there",
            hint="see that the bpf file system is mounted and the program pins its map there",
            errno=-fd,
        )
    if fd < 0 and -fd not in (errno.EPERM, errno.EACCES):
        raise translate(-fd, Asked.OPEN, f"pin {text}", "open")
    check(max(-fd, 0), Asked.OPEN, f"pin {text}", "open")
    if not is_descriptor_of(fd, "bpf-map"):
        os.close(fd)
        raise UnsupportedError(f"pin {text}: open: not a map", hint="give the path of a pinned map")
    return _adopt(fd, f"pin {text}")


def is_descriptor_of(fd: int, kind: str) -> bool:
    """Whether the descriptor is of a kind like ``bpf-map`` or ``bpf-prog``."""
    return str(Path(f"/proc/self/fd/{fd}").readlink()) == f"anon_inode:{kind}"


def all_maps() -> list[MapInfo]:
    """All maps of the kernel by rising id; maps that vanish meanwhile are left out."""
    found: list[MapInfo] = []
    after = 0
    while True:
        code, map_id = syscall.next_map_id(after)
        if code == errno.ENOENT:
            return found
        check(code, Asked.OPEN, "maps", "list")
        assert map_id > after, "map ids do not rise"
        after = map_id
        fd = syscall.descriptor_of(Command.MAP_GET_FD_BY_ID, map_id)
        if fd == -errno.ENOENT:
            continue
        check(max(-fd, 0), Asked.OPEN, f"map id {map_id}", "open")
        try:
            found.append(map_info(fd, f"map id {map_id}"))
        finally:
            os.close(fd)


def still_held(kernel_map: KernelMap) -> bool:
    """Whether anybody else (a program, a process, a pin) has the map.

    An open descriptor keeps a map alive that nobody uses any more, and the kernel does not tell who
    else has one. So the descriptor is given back and asked for anew: a map that only it had kept
    is gone then, and the object is closed; one that cannot be opened for another reason counts as
    gone too. Nobody may use the object meanwhile.
    """
    map_id = kernel_map.info.id
    kernel_map.close()
    fd = syscall.descriptor_of(Command.MAP_GET_FD_BY_ID, map_id)
    if fd < 0:
        return False
    kernel_map.fd = fd
    return True


def find_maps(name: str) -> list[MapInfo]:
    """The maps of a name. Longer names are cut to 15 characters, as loaders do."""
    return [info for info in all_maps() if info.name == name[:NAME_LENGTH_MAX]]


def map_info(fd: int, subject: str) -> MapInfo:
    """What the kernel tells of an open map."""
    code, data = syscall.object_info(fd, _MAP_INFO_BYTES)
    check(code, Asked.OPEN, subject, "read info")
    number, map_id, key, value, entries, flags, name = _MAP_INFO.unpack_from(data)
    text = name.split(b"\0", 1)[0].decode("utf-8", "replace")
    cpus = possible_cpus() if number in PER_CPU_TYPES else 0
    # kernel/bpf/syscall.c, bpf_map_value_size
    width = -(-value // 8) * 8 * cpus if cpus else value
    return MapInfo(map_id, text, number, key, width, entries, flags, cpus)


def _adopt(fd: int, subject: str) -> KernelMap:
    try:
        return KernelMap(fd, map_info(fd, subject))
    except BaseException:
        os.close(fd)
        raise
