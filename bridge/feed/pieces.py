"""Protobuf bytes of many messages at once: a matrix with a row per message, and which of it counts.

The bytes of a field have another length in each message, so a piece holds them in as many columns
as the longest needs, and a mask of those that are there. Pieces side by side are a message; the
masked bytes, row by row, are all messages one behind the other, without a loop over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bridge.model import U8, U64

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # wire types
_SEVEN = np.uint64(7)
_LOW = np.uint64(0x7F)

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Piece:
    """``u8[n, w]`` and ``bool[n, w]``: the bytes of row ``i`` are those whose mask is set."""

    data: U8
    there: Mask

    @property
    def lengths(self) -> U64:
        counted: U64 = self.there.sum(axis=1, dtype=np.uint64)
        return counted

    def where(self, rows: Mask) -> Piece:
        """Nothing at all in the rows that are not set."""
        return Piece(self.data, self.there & rows[:, np.newaxis])

    def flat(self) -> bytes:
        """All rows, one behind the other."""
        return self.data[self.there].tobytes()


def beside(pieces: Sequence[Piece], rows: int) -> Piece:
    """Pieces of the same messages, in their order."""
    if not pieces:
        return Piece(np.zeros((rows, 0), np.uint8), np.zeros((rows, 0), np.bool_))
    return Piece(
        np.concatenate([piece.data for piece in pieces], axis=1),
        np.concatenate([piece.there for piece in pieces], axis=1),
    )


def varints(numbers: U64) -> Piece:
    """``u64[n]``, each in as many groups of 7 bits as it needs."""
    most = int(numbers.max()) if len(numbers) else 0
    width = max(1, -(-most.bit_length() // 7))
    shifts = np.arange(width, dtype=np.uint64) * _SEVEN
    groups = numbers[:, np.newaxis] >> shifts
    data = (groups & _LOW).astype(np.uint8)
    there = groups != 0
    there[:, 0] = True
    data[:, :-1] |= there[:, 1:].astype(np.uint8) << 7
    return Piece(data, there)


def tag(number: int, wire_type: int, rows: int) -> Piece:
    """The head of a field, the same in all rows."""
    head = varints(np.array([number << 3 | wire_type], np.uint64)).data
    data = np.broadcast_to(head, (rows, head.shape[1]))
    return Piece(data, np.ones(data.shape, np.bool_))


def raw(data: U8) -> Piece:
    """``u8[n, w]``, all of it."""
    return Piece(data, np.ones(data.shape, np.bool_))


def delimited(number: int, inner: Piece) -> Piece:
    """A field with a length in front: a message, text, bytes, packed numbers."""
    rows = len(inner.data)
    return beside([tag(number, LENGTH, rows), varints(inner.lengths), inner], rows)


def grouped(piece: Piece, rows: int) -> Piece:
    """``k`` successive rows of a piece as one, ``rows`` in all."""
    return Piece(piece.data.reshape(rows, -1), piece.there.reshape(rows, -1))
