"""The conflict policy of a map, when it is another than the order of the stream."""

from __future__ import annotations

from bridge.config.settings import MapConfig
from bridge.core.policies import PolicyFold
from bridge.errors import BridgeError, Exit
from bridge.model import ConflictPolicy, MapInfo, Role


class PolicyError(BridgeError):
    """The policy does not fit the map."""

    exit_code = Exit.CONFIG


def folding_of(config: MapConfig, info: MapInfo) -> PolicyFold | None:
    """What the judge asks; ``None``: the stream's order decides. Raises ``PolicyError``."""
    if config.conflict is ConflictPolicy.SUM and config.role is Role.REPLICATE:
        raise PolicyError(
            f"map {config.name}: conflict sum needs role publish or apply (got {config.role})",
            hint="let nodes that count publish, and nodes that want the sum apply, to another map",
        )
    if config.conflict is ConflictPolicy.STREAM or not config.role.applies:
        return None
    try:
        return PolicyFold(config.conflict, info.key_size, info.value_size)
    except ValueError as error:
        raise PolicyError(
            f"map {config.name}: conflict {config.conflict} does not fit ({error})",
            hint="use it for maps whose values are 64-bit counters",
        ) from error
