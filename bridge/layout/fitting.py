"""Other nodes' changes made to fit this map: by layout, and by the rules of its fields.

Invariant: a change reaches the map only in the map's own layout. Where the sender's is the same it
passes as it is; where fields can be found by their paths it is mapped; else it is parked: left out
and counted, as it is on every node of this layout. So nodes of one layout hold the fold of the same
messages, and agree as soon as their layouts do. Whoever reads the stream tells layouts by ``learn``
before it hands a message on; ``fit`` is called by the thread that writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bridge.layout.fingerprint import fingerprint
from bridge.layout.mapping import Mapping, plan_mapping
from bridge.layout.rules import FieldRule, HostRules
from bridge.layout.types import Layout
from bridge.model import U8, Delta, DeltaBatch, Op, Origin

PLANS_MAX = 256  # layouts of one map; changes in more of them are parked


@dataclass(frozen=True, slots=True)
class Parked:
    """A node whose changes are in a layout that does not fit."""

    layout: str  # fingerprint, 16 hex digits
    since: int  # stream sequence of the first such message
    changes: int
    reason: str


class Fitter:
    """One map's. ``own`` is its layout; ``None``: not known, and only sizes are looked at."""

    def __init__(
        self,
        own: Layout | None,
        rules: Sequence[FieldRule],
        clock_offset_ns: Callable[[], int],
    ) -> None:
        """Raises ``RuleError``."""
        self._own = own
        self._number = 0 if own is None else fingerprint(own)
        self._rules = None if own is None else HostRules(own, rules)
        self._clock_offset_ns = clock_offset_ns
        self._plans: dict[int, Mapping | str] = {}
        self.mapped = 0  # changes that came in another layout and were mapped
        self.parked_changes = 0
        self.parked: dict[str, Parked] = {}  # by node; gone when its changes fit again

    @property
    def compared(self) -> U8 | None:
        """Bits of a value that count when maps are compared; ``None``: all."""
        return None if self._rules is None else self._rules.compared

    def needs(self, number: int) -> bool:
        """Whether the layout of that number must be learned before its changes can be judged."""
        known = number in (0, self._number) or number in self._plans
        return self._own is not None and not known and len(self._plans) < PLANS_MAX

    def learn(self, number: int, layout: Layout | None) -> None:
        """What a sender's layout is; ``None``: nobody knows."""
        if self._own is None:
            return
        # A plan is never dropped or changed: messages that wait for the writing thread count on it.
        if number in self._plans or len(self._plans) >= PLANS_MAX:
            return
        if layout is None:
            self._plans[number] = f"layout {number:016x} is not stored beside the log"
            return
        plan = plan_mapping(layout, self._own)
        self._plans[number] = "; ".join(map(str, plan)) if isinstance(plan, list) else plan

    def fit(self, sequence: int, delta: Delta, own: Origin) -> Delta | None:
        """The same changes as this map takes them; ``None``: parked."""
        node = delta.origin.node
        if self._own is not None and delta.layout not in (0, self._number):
            plan = self._plans.get(delta.layout, f"layout {delta.layout:016x}: too many are known")
            batch = delta.batch
            if not isinstance(plan, str) and plan.sizes != (batch.key_size, batch.value_size):
                plan = f"sizes {batch.key_size} and {batch.value_size} are not its layout's"
            if isinstance(plan, str):
                self._park(sequence, delta, plan)
                return None
            values = plan.values(batch.values)
            values[batch.ops != Op.UPDATE] = 0
            mapped = replace(batch, keys=plan.keys(batch.keys), values=values)
            delta = replace(delta, batch=mapped, layout=self._number)
            self.mapped += len(batch)
        if node in self.parked:
            del self.parked[node]
        if self._rules is None or not self._rules.rebases or delta.origin == own:
            return delta
        return self._rebased(delta, self._rules)

    def local(self, writes: DeltaBatch, current: Callable[[U8], U8]) -> DeltaBatch:
        """Writes with the fields that stay this map's own. ``current``: keys → values, zero
        where there is none."""
        if self._rules is None or not self._rules.keeps_local:
            return writes
        updates = np.flatnonzero(writes.ops == Op.UPDATE)
        if not len(updates):
            return writes
        values = writes.values.copy()
        held = current(writes.keys.take(updates, axis=0))
        values[updates] = self._rules.with_local(values.take(updates, axis=0), held)
        return replace(writes, values=values)

    def _rebased(self, delta: Delta, rules: HostRules) -> Delta:
        """Kernel times of the sender become those of this machine, by both real-time clocks."""
        offset = delta.clock_offset - self._clock_offset_ns()
        batch = delta.batch
        values = rules.rebased(batch.values, offset)
        return replace(delta, batch=replace(batch, values=values))

    def _park(self, sequence: int, delta: Delta, reason: str) -> None:
        count = len(delta.batch)
        self.parked_changes += count
        node, number = delta.origin.node, f"{delta.layout:016x}"
        known = self.parked.get(node)
        if known is None or known.layout != number:
            known = Parked(number, sequence, 0, reason)
        self.parked[node] = replace(known, changes=known.changes + count)
