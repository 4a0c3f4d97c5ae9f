"""What must be true of a simulated cluster: whenever a node says that it is synced, and at rest."""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING

from bridge.model import ConflictPolicy
from tests.simulation.kernel import ABSENT
from tests.simulation.node import Node
from tests.simulation.profile import OWN_KEY

if TYPE_CHECKING:
    from tests.simulation.world import World

TAKEOVERS_MAX = 5  # in a walk; ``bridge.bus.strict`` ends at ten
TOUCHES_MAX = 64  # own writes that a bridge may have to remember at a time, in a walk


def said_too_early(world: World, node: Node) -> list[str]:
    """A node that says it is synced holds what the log held a moment ago."""
    sync = node.sync()
    if not sync.synced or world.replaced:
        return []
    wrong = []
    then = world.seconds() - sync.behind_seconds
    if node.misled_since is not None:
        # A server that falls behind is found out when the leader is asked the next time.
        then = min(then, node.misled_since)
        if node.server_end is None and node.level():
            node.misled_since = None
    if node.position() < bisect.bisect_left(world.log.times, then):
        wrong.append(f"{node.name}: synced at {node.position()}")
    if (
        node.level()
        and node.read == len(world.log)
        and world.profile.policy is ConflictPolicy.STREAM
    ):
        wrong += _other_than_said(world, node)
    return wrong


def _other_than_said(world: World, node: Node) -> list[str]:
    """Keys that nobody is just changing, and that are not what the log says."""
    kernel, replica = node.kernel, node.replica
    swept = node.sweeper.scanned and not node.facts().repairing
    moving = kernel.ring or any(kernel.running) or not swept
    rows = replica.pending_rows or replica.dirty_keys or replica.unwritten_rows
    if moving or rows or kernel.lru or not kernel.records or node.sweeper.rereading:
        return []
    fold = world.log.fold(world.profile.policy)
    wrong = fold != kernel.map
    return [f"{node.name}: synced with {kernel.map}, stream {fold}"] if wrong else []


def wrong_at_rest(world: World) -> list[str]:
    """What is wrong when nothing is left to be done."""
    wrong, fold = [], world.log.fold(world.profile.policy)
    first = world.nodes[0].kernel
    keeps = world.profile.keeps and not world.nodes[0].doubtful_crashes
    if keeps and first.map.get(OWN_KEY, ABSENT) != first.last.get(OWN_KEY, ABSENT):
        wrong.append(f"own key: {first.map.get(OWN_KEY)}, last written {first.last}")
    for node in world.nodes:
        if node.fenced:
            continue
        if world.profile.policy is ConflictPolicy.SUM and node.publishes_only:
            fold = world.log.parts.get(node.name, {})
        elif world.profile.policy is ConflictPolicy.SUM:
            fold = world.log.sums
        if not _holds(node, fold):
            wrong.append(f"{node.name}: map {node.kernel.map}, stream {fold}")
        if node.stale and not node.doubtful_crashes and not world.replaced:
            wrong.append(f"{node.name}: published {node.stale} changes of others as its own")
        replica, queued = node.replica, node.publisher.waiting
        left = (replica.pending_rows, replica.dirty_keys, queued)
        if any(left):
            wrong.append(f"{node.name}: pending, dirty, queued left over: {left}")
        if node.unasked:
            wrong.append(f"{node.name}: {node.unasked} times nobody was asked")
    wrong += world.too_early[:1] + _back_again(world)
    if world.peak > TOUCHES_MAX:
        wrong.append(f"{world.peak} own writes were remembered at a time")
    return wrong


def _back_again(world: World) -> list[str]:
    """An instance that another one of its name has followed must be silent.

    Of two that live at the same time, one whose first message was stored without its knowing
    takes the other one for its predecessor, and may do so a few times.
    """
    runs = [(d.origin.node, d.origin.incarnation) for d in world.log.messages]
    wrong = []
    for name in {name for name, _ in runs}:
        own = [number for node, number in runs if node == name]
        heads = [n for at, n in enumerate(own) if at == 0 or own[at - 1] != n]
        most = max(heads.count(number) for number in heads)
        unknowing = TAKEOVERS_MAX if world.profile.leaders_change else 1
        if most > 1 + unknowing * world.profile.twins:
            wrong.append(f"{name}: published after it was replaced: {heads}")
    return wrong


def _holds(node: Node, fold: dict[int, int]) -> bool:
    """The map equals the fold, but for what it had no room for."""
    held = node.kernel.map
    if node.kernel.lru:
        return all(fold.get(key) == value for key, value in held.items())
    refused = node.replica._full.keys
    missing = set() if refused is None else set(refused[:, 0].tolist())
    return not missing & held.keys() and held == {
        key: value for key, value in fold.items() if key not in missing
    }
