"""From a stored message to an item of a subscription, the same for every bus."""

from __future__ import annotations

from bridge.bus.protocol import Broken, Received
from bridge.wire.codec import WireError, decode
from bridge.wire.subjects import SubjectError, parse_subject


def to_item(sequence: int, stored_at_ns: int, subject: str, data: bytes) -> Received | Broken:
    """The message's changes, or why it has none.

    Who may publish on a subject is the broker's to enforce; what a payload says of its origin is
    believed only when the subject says the same.
    """
    try:
        named = parse_subject(subject)
        delta = decode(data)
    except (SubjectError, WireError) as error:
        return Broken(sequence, subject, str(error))
    origin = delta.origin
    if (origin.cluster, origin.map, origin.node) != (named.cluster, named.map, named.node):
        return Broken(
            sequence,
            subject,
            f"message: says it is from node {origin.node}, map {origin.map}, cluster"
            f" {origin.cluster}, which is not what its subject says",
        )
    return Received(sequence, stored_at_ns, delta)
