"""Reader of BTF, the kernel's description of its own types.

The blob (``/sys/kernel/btf/vmlinux``, 5 to 10 MB) is a header, a list of type records of variable
length, and a string table; the format stands in ``Documentation/bpf/btf.rst``. Loading only finds
where each record begins: the length that a record would have is computed for every word at once,
and then one chain of additions runs over the real ones. Members are decoded when asked for.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bridge.errors import UnavailableError
from bridge.kernel.btf_types import IntCoding, Kind, Member, Place, Record
from bridge.model import U32

VMLINUX = Path("/sys/kernel/btf/vmlinux")
MAGIC = 0xEB9F
_HEADER = struct.Struct("=HBBIIIII")
_WORDS_OF_RECORD = 3  # name, info, size or type
DEPTH_MAX = 32  # of nested types; real ones stay below ten


class BtfError(UnavailableError):
    """BTF is missing, damaged, or does not hold what was asked for."""


# What follows the three words of a record: (words in any case, words per element).
_TAIL_WORDS: dict[Kind, tuple[int, int]] = {
    Kind.INT: (1, 0),
    Kind.ARRAY: (3, 0),
    Kind.STRUCT: (0, 3),
    Kind.UNION: (0, 3),
    Kind.ENUM: (0, 2),
    Kind.FUNC_PROTO: (0, 2),
    Kind.VAR: (1, 0),
    Kind.DATASEC: (0, 3),
    Kind.DECL_TAG: (1, 0),
    Kind.ENUM64: (0, 3),
}

_TRANSPARENT = (Kind.TYPEDEF, Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG)
_SIZED = (Kind.INT, Kind.STRUCT, Kind.UNION, Kind.ENUM, Kind.ENUM64, Kind.FLOAT)


class Btf:
    """The types of one BTF blob. Ids count from 1; id 0 is ``void``."""

    def __init__(self, data: bytes, origin: str) -> None:
        self._origin = origin
        if len(data) < _HEADER.size:
            raise self._damaged(f"{len(data)} bytes")
        magic, _, _, header, type_at, type_bytes, text_at, text_bytes = _HEADER.unpack_from(data)
        if magic != MAGIC:
            raise self._damaged(f"magic {magic:#x}")
        end = header + max(type_at + type_bytes, text_at + text_bytes)
        if end > len(data) or (header + type_at) % 4 or type_bytes % 4:
            raise self._damaged(f"sections of {end} bytes in {len(data)}")
        self._words: U32 = np.frombuffer(data, np.uint32, type_bytes // 4, header + type_at)
        self._text = data[header + text_at : header + text_at + text_bytes]
        self._starts = self._find_starts()
        self._names: U32 = self._words[self._starts]
        self._kinds: U32 = _kind_of(self._words[self._starts + 1])

    def __len__(self) -> int:
        """How many types there are, ``void`` included."""
        return len(self._starts) + 1

    def _find_starts(self) -> npt.NDArray[np.intp]:
        words = self._words
        info = np.append(words[1:], np.uint32(0))
        kinds = _kind_of(info)
        fixed = np.full(128, 0, np.int64)
        each = np.full(128, 0, np.int64)
        for kind in Kind:
            extra, per_element = _TAIL_WORDS.get(kind, (0, 0))
            fixed[kind] = 0 if kind is Kind.VOID else _WORDS_OF_RECORD + extra
            each[kind] = per_element
        step = fixed[kinds] + each[kinds] * (info & np.uint32(0xFFFFFF))
        follower = (np.arange(len(words)) + step).tolist()
        starts: list[int] = []
        at, end = 0, len(words)
        while at < end:
            starts.append(at)
            following = follower[at]
            if following == at:
                raise self._damaged(f"unknown kind {int(kinds[at])} at type {len(starts)}")
            at = following
        if at != end:
            raise self._damaged("last type is cut off")
        return np.array(starts, np.intp)

    # --- finding types ------------------------------------------------------------------------

    def record(self, type_id: int) -> Record:
        """A type by id."""
        if type_id == 0:
            return Record(0, Kind.VOID, "void", 0, 0, False)
        if not 0 < type_id <= len(self._starts):
            raise self._damaged(f"type id {type_id}")
        at = int(self._starts[type_id - 1])
        name, info, extent = (int(word) for word in self._words[at : at + 3])
        kind = Kind(int(self._kinds[type_id - 1]))
        return Record(type_id, kind, self._name(name), extent, info & 0xFFFFFF, bool(info >> 31))

    def find(self, name: str, *kinds: Kind) -> int | None:
        """The id of the first type of a name among ``kinds``, or ``None``."""
        rows = np.flatnonzero(np.isin(self._names, self._text_offsets(name)))
        for row in rows:
            if int(self._kinds[row]) in kinds:
                return int(row) + 1
        return None

    def has_function(self, name: str) -> bool:
        """Whether a function is described, and so may be attached to by fentry and fexit."""
        return self.find(name, Kind.FUNC) is not None

    def members(self, type_id: int) -> Iterator[Member]:
        """The members of a struct or union, in their order, anonymous ones included."""
        record = self.record(type_id)
        assert record.kind in (Kind.STRUCT, Kind.UNION), f"{record.kind.name} has no members"
        at = int(self._starts[type_id - 1]) + _WORDS_OF_RECORD
        table = self._words[at : at + 3 * record.elements].reshape(-1, 3)
        for name, member_type, place in table.tolist():
            if record.has_bitfields:
                yield Member(self._name(name), member_type, place & 0xFFFFFF, place >> 24)
            else:
                yield Member(self._name(name), member_type, place)

    def array_of(self, type_id: int) -> tuple[int, int]:
        """Type id of the elements and their number, of an array."""
        at = int(self._starts[type_id - 1]) + _WORDS_OF_RECORD
        return int(self._words[at]), int(self._words[at + 2])

    def int_coding(self, type_id: int) -> IntCoding:
        """The encoding of an integer (``BTF_INT_*``)."""
        word = int(self._tail(type_id)[0])
        coding = word >> 24 & 0xF
        return IntCoding(bool(coding & 1), bool(coding & 4), word >> 16 & 0xFF, word & 0xFF)

    def enumerators(self, type_id: int) -> list[tuple[str, int]]:
        """Names and values of an enum, the values as wide and as signed as the enum itself.

        None of an enum of 8 bytes that an old compiler described with values of 4.
        """
        record = self.record(type_id)
        assert record.kind in (Kind.ENUM, Kind.ENUM64), f"{record.kind.name} has no enumerators"
        if record.kind is Kind.ENUM and record.extent > 4:
            return []
        words = self._tail(type_id)
        width = 3 if record.kind is Kind.ENUM64 else 2
        table = words[: width * record.elements].reshape(-1, width).tolist()
        top = 1 << (8 * record.extent)
        found = []
        for name, low, *high in table:
            value = (low | (high[0] << 32 if high else 0)) % top
            if record.has_bitfields and value >= top // 2:
                value -= top
            found.append((self._name(name), value))
        return found

    def variables(self, type_id: int) -> Iterator[Member]:
        """The variables of a data section, as if it were a struct."""
        record = self.record(type_id)
        assert record.kind is Kind.DATASEC, f"{record.kind.name} has no variables"
        table = self._tail(type_id)[: 3 * record.elements].reshape(-1, 3)
        for variable, offset, _ in table.tolist():
            held = self.record(variable)
            yield Member(held.name, held.extent, 8 * offset)

    def _tail(self, type_id: int) -> U32:
        return self._words[int(self._starts[type_id - 1]) + _WORDS_OF_RECORD :]

    # --- layout -------------------------------------------------------------------------------

    def size(self, name: str) -> int:
        """Bytes of a struct or union (or typedef, int, enum) of this name."""
        return self.size_of(self._need(name))

    def offset(self, name: str, path: str) -> int:
        """Bytes from the start of a struct to a member, see ``place``."""
        return self.place(name, path).offset

    def place(self, name: str, path: str) -> Place:
        """Offset and size of a member. ``path`` goes through named members by dots.

        Members of anonymous structs and unions are found as if they stood outside, as in C.
        Raises BtfError when there is no such struct or member, or it is a bit field.
        """
        type_id = self._need(name)
        bits = 0
        member: Member | None = None
        for part in path.split("."):
            holder = self.strip(type_id)
            found = None
            if self.record(holder).kind in (Kind.STRUCT, Kind.UNION):
                found = self._find_member(holder, part, 0)
            if found is None:
                raise BtfError(
                    f"BTF {self._origin}: struct {name} has no member {path} (got stuck at {part})",
                    hint="this kernel's layout is not known to the bridge: report its version",
                )
            member, inside = found
            bits += inside
            type_id = member.type_id
        assert member is not None
        if member.bits or bits % 8:
            raise BtfError(f"BTF {self._origin}: {name}.{path} is a bit field")
        return Place(bits // 8, self.size_of(type_id))

    def has_member(self, name: str, path: str) -> bool:
        """Whether ``place`` would find the member."""
        try:
            self.place(name, path)
        except BtfError:
            return False
        return True

    def strip(self, type_id: int) -> int:
        """The type behind typedefs, const, volatile, restrict and tags."""
        for _ in range(DEPTH_MAX):
            record = self.record(type_id)
            if record.kind not in _TRANSPARENT:
                return type_id
            type_id = record.extent
        raise self._damaged(f"type {type_id} is a circle")

    def size_of(self, type_id: int) -> int:
        """Bytes of a type; 0 for those that have none (functions, void)."""
        count = 1
        for _ in range(DEPTH_MAX):
            type_id = self.strip(type_id)
            record = self.record(type_id)
            if record.kind is not Kind.ARRAY:
                break
            type_id, elements = self.array_of(type_id)
            count *= elements
        else:
            raise self._damaged(f"type {type_id} is a circle")
        if record.kind is Kind.PTR:
            return count * struct.calcsize("P")
        return count * record.extent if record.kind in _SIZED else 0

    def _find_member(self, type_id: int, name: str, depth: int) -> tuple[Member, int] | None:
        if depth > DEPTH_MAX:
            raise self._damaged(f"type {type_id} is a circle")
        for member in self.members(type_id):
            if member.name == name:
                return member, member.bit_offset
            if member.name:
                continue
            inner = self.strip(member.type_id)
            if self.record(inner).kind not in (Kind.STRUCT, Kind.UNION):
                continue
            found = self._find_member(inner, name, depth + 1)
            if found is not None:
                return found[0], found[1] + member.bit_offset
        return None

    def _need(self, name: str) -> int:
        type_id = self.find(name, Kind.STRUCT, Kind.UNION, Kind.TYPEDEF, Kind.INT, Kind.ENUM)
        if type_id is None:
            raise BtfError(
                f"BTF {self._origin}: no type {name}",
                hint="this kernel does not have the feature, or was built without it",
            )
        return type_id

    def _name(self, offset: int) -> str:
        end = self._text.find(b"\0", offset)
        if end < 0:
            raise self._damaged(f"a name at {offset}")
        return self._text[offset:end].decode("utf-8", "replace")

    def _text_offsets(self, name: str) -> U32:
        # A string may also be stored as the tail of another one.
        wanted = name.encode() + b"\0"
        found = []
        at = self._text.find(wanted)
        while at >= 0:
            found.append(at)
            at = self._text.find(wanted, at + 1)
        return np.array(found, np.uint32)

    def _damaged(self, got: str) -> BtfError:
        return BtfError(
            f"BTF {self._origin}: not in a format that the bridge reads (got {got})",
            hint="use a release of mapbridge that knows this kernel",
        )


class KernelBtf(Btf):
    """The types of the running kernel."""

    @classmethod
    def load(cls, path: str | Path = VMLINUX) -> KernelBtf:
        """Read the kernel's BTF. Raises BtfError when the kernel offers none."""
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise BtfError(
                f"BTF {path}: not readable (got {error.strerror})",
                hint="use a kernel built with CONFIG_DEBUG_INFO_BTF=y",
            ) from error
        return cls(data, str(path))


def _kind_of(info: U32) -> U32:
    return (info >> np.uint32(24)) & np.uint32(0x7F)
