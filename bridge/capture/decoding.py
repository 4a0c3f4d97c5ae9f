"""Runs of records into the changes of one map, whatever buffer they came through.

Every form of record is understood. What makes no sense is counted as a loss, because a loss makes
the map be compared with the stream again; it never stops the reader.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from bridge.capture.record import (
    HEADER_SIZE,
    Flag,
    Layout,
    Lookup,
    MalformedRecordError,
    decode_batch,
    decode_keys,
    decode_singles,
    headers,
)
from bridge.capture.source import Losses
from bridge.errors import BridgeError
from bridge.model import U8, DeltaBatch

KNOWN_FLAGS = int(Flag.BATCH | Flag.READ_KEY | Flag.RESCAN)


@dataclass(frozen=True, slots=True)
class DecodeStatistics:
    """Counts since the source was opened; all of them only grow."""

    changes: int = 0
    vanished: int = 0  # updates whose value was to be read when the key had gone again
    malformed: int = 0  # records that made no sense
    unread: int = 0  # records whose values the map refused to give
    rescans: int = 0  # changes of which a record told that they happened, and no more


class Decoder:
    """Decodes the records of one map, and counts what it could not.

    ``lookup`` gives the value of a key or ``None``; it is asked only for records without values.
    """

    def __init__(self, layout: Layout, lookup: Lookup) -> None:
        self._layout = layout
        self._lookup = lookup
        self._changes = self._vanished = self._malformed = self._unread = self._rescans = 0

    def decode(self, runs: Sequence[U8]) -> DeltaBatch | None:
        """The changes of runs ``u8[n, record_size]``, in their order; ``None``: there are none."""
        batches: list[DeltaBatch] = []
        for run in runs:
            for records, flags in _by_form(run):
                batch = self._decode(records, flags)
                if batch is not None and len(batch):
                    batches.append(batch)
        if not batches:
            return None
        batch = DeltaBatch.concatenate(batches)
        self._changes += len(batch)
        return batch

    def losses(self, counted: Losses, damaged: int) -> Losses:
        """``counted`` by the writing side, and what was lost on this one.

        ``damaged``: times that the buffer itself made no sense.
        """
        return replace(
            counted,
            fault=counted.fault + self._malformed + self._unread + damaged,
            rescan=counted.rescan + self._rescans,
        )

    def statistics(self) -> DecodeStatistics:
        return DecodeStatistics(
            self._changes, self._vanished, self._malformed, self._unread, self._rescans
        )

    def _decode(self, records: U8, flags: int) -> DeltaBatch | None:
        """The changes of ``u8[n, record_size]`` of one form; ``None`` when there are none."""
        try:
            if flags & ~KNOWN_FLAGS:
                raise MalformedRecordError(f"record: unknown flags (got {flags})")
            if flags & Flag.RESCAN:
                self._rescans += int(np.maximum(headers(records)["count"], 1).sum())
                return None
            if flags & Flag.BATCH:
                return self._decode_batches(records)
            if flags & Flag.READ_KEY:
                batch, gone = decode_keys(records, self._layout, self._lookup)
                self._vanished += gone
                return batch
            return decode_singles(records, self._layout)
        except MalformedRecordError:
            self._malformed += len(records)
        except BridgeError:
            self._unread += len(records)
        return None

    def _decode_batches(self, records: U8) -> DeltaBatch:
        batches = [DeltaBatch.empty(self._layout.key_size, self._layout.value_size)]
        for record in records:
            try:
                batch, gone = decode_batch(record, self._layout, self._lookup)
            except MalformedRecordError:
                self._malformed += 1
            except BridgeError:
                self._unread += max(1, int(headers(record[np.newaxis, :])["count"][0]))
            else:
                batches.append(batch)
                self._vanished += gone
        return DeltaBatch.concatenate(batches)


def _by_form(run: U8) -> list[tuple[U8, int]]:
    """Cuts a run of records of one length where their flags change."""
    if run.shape[1] < HEADER_SIZE:
        return [(run, Flag.BATCH)]  # as long as no record can be: counted where batches are decoded
    flags = headers(run)["flags"]
    if not flags.any():
        return [(run, 0)]
    cuts = [0, *(np.flatnonzero(flags[1:] != flags[:-1]) + 1).tolist(), len(run)]
    return [(run[a:b], int(flags[a])) for a, b in pairwise(cuts)]
