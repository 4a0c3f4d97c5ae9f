"""Takes manual pages and shell completions, which `make share` makes, into sdists and wheels.

The commands themselves make them, which a build on its own cannot run: it has none of their
dependencies. So a wheel out of a checkout in which they were not made has none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ShareHook(BuildHookInterface[Any]):
    """``build/share`` goes to ``share`` of a wheel, and stays where it is in an sdist."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        share = Path(self.root) / "build" / "share"
        if version == "editable":
            return
        if not share.is_dir():
            self.app.display_warning("no manual pages and completions: `make share` makes them")
            return
        wheel = self.target_name == "wheel"
        into = build_data["shared_data" if wheel else "force_include"]
        for path in sorted(path for path in share.rglob("*") if path.is_file()):
            place = path.relative_to(share)
            into[str(path)] = str(Path("share" if wheel else "build/share") / place)
