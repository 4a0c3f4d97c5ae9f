"""The types that a map was made with: its own BTF, which loaders hand to the kernel with the map.

``struct bpf_map_info`` names the BTF object and the types of key and value in it; the object is
opened by its id and read as a blob of the format of ``bridge.kernel.btf``.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from bridge.kernel import syscall
from bridge.kernel.btf import Btf
from bridge.kernel.errors import Asked, check
from bridge.kernel.handle import KernelMap
from bridge.kernel.syscall import Command
from bridge.model import MapInfo

BLOB_BYTES_MAX = 64 << 20  # the kernel itself takes 16 MiB at most (BTF_MAX_SIZE)
_INFO_BYTES = 88
# struct bpf_map_info: btf_id, btf_key_type_id, btf_value_type_id
_BTF_IDS = struct.Struct("=III")
_BTF_IDS_OFFSET = 64


@dataclass(frozen=True, slots=True)
class MapTypes:
    """The BTF of a map. ``key_id`` is 0 where the map has none for its keys (data sections)."""

    info: MapInfo
    btf: Btf
    key_id: int
    value_id: int


def map_types(opened: KernelMap) -> MapTypes | None:
    """The types of an open map; ``None`` when it was made without. Raises ``KernelError``."""
    info = opened.info
    subject = f"map {info.name} (id {info.id})"
    code, data = syscall.object_info(opened.fileno(), _INFO_BYTES)
    check(code, Asked.OPEN, subject, "read info")
    btf_id, key_id, value_id = _BTF_IDS.unpack_from(data, _BTF_IDS_OFFSET)
    if not btf_id or not (key_id or value_id):
        return None
    return MapTypes(info, _read_btf(btf_id, subject), key_id, value_id)


def _read_btf(btf_id: int, subject: str) -> Btf:
    fd = syscall.descriptor_of(Command.BTF_GET_FD_BY_ID, btf_id)
    check(max(-fd, 0), Asked.OPEN, subject, f"open BTF {btf_id}")
    try:
        code, _, size = syscall.btf_blob(fd, 0)
        check(code, Asked.OPEN, subject, f"read BTF {btf_id}")
        code, blob, _ = syscall.btf_blob(fd, min(size, BLOB_BYTES_MAX))
        check(code, Asked.OPEN, subject, f"read BTF {btf_id}")
    finally:
        os.close(fd)
    return Btf(blob, f"id {btf_id}")
