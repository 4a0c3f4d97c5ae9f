"""How far a reader of the log has come, and how far it has to come at least.

Marks in the log:
  received  the last message of ours that came; the next consumer starts behind it
  verified  everything of ours up to here was received, and nothing had been removed unread
  expected  a message of ours that the log's leader holds; what the reader knows to be there

Between verified and received retention may have taken messages before they were read: the server
skips them without a word. So the log's first sequence is asked for now and then.

A consumer lives on one server, which may be behind the log's leader: one that came back told for
four seconds that nothing was pending, while the leader held 300 messages more and called it up to
date (nats-server 2.15, a log of 500 MB), and one that was made there counted 149 messages for ever
that were none. So only the leader's word says where the end is.

Invariant: a reader that is not ``behind`` has received everything of ours that the leader held when
it was asked last.
"""

from __future__ import annotations

from dataclasses import dataclass

from bridge.bus.protocol import Gap


@dataclass(slots=True)
class Marks:
    """Of one reader; all sequences are those of the log."""

    received: int
    verified: int
    expected: int = 0
    _end: int = 0  # nothing of ours lies between ``expected`` and here
    _checked: int = 0  # what had been received when the log's beginning was last looked at

    @staticmethod
    def behind_place(after: int) -> Marks:
        """A reader that begins behind ``after``."""
        return Marks(received=after, verified=after)

    @property
    def behind(self) -> bool:
        """Whether a message is known to be there that has not come."""
        return self.received < self.expected

    @property
    def unknown_from(self) -> int:
        """The first place of which only the log can tell whether it is ours."""
        return max(self.received, self.verified) + 1

    def came(self, sequence: int) -> None:
        """A message of ours was received."""
        self.received = sequence
        if sequence == self.verified + 1:
            self.verified = sequence

    def begins(self, first: int) -> Gap | None:
        """The log's first sequence is ``first`` now: what is missing, if anything may be."""
        gap = None
        if first > self.verified + 1:
            gap = Gap(self.verified + 1, first - 1)
            self.verified = self.received = max(self.received, first - 1)
        else:
            self.verified = max(self.verified, self.received)
            if not self.behind:
                self.verified = max(self.verified, self._end)
        self._checked = self.received
        return gap

    def expect(self, sequence: int, end: int) -> None:
        """The leader holds ``sequence``, 0: nothing, and nothing of ours behind it up to ``end``.

        To be asked after ``begins`` was told. What came in between is verified at the next telling:
        until then it could have been removed unread.
        """
        self.expected, self._end = sequence, end
        if sequence <= self._checked:
            self.verified = max(self.verified, end)
