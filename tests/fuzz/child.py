"""One target under atheris, which follows the branches that an input takes."""

from __future__ import annotations

import resource
import sys

MEMORY_BYTES_MAX = 2 << 30  # beyond this an allocation fails, and the input is kept


def main(name: str, arguments: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=["bridge"], enable_loader_override=False):
        from tests.fuzz.targets import TARGETS
    target = TARGETS[name]
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    atheris.Setup([sys.argv[0], *arguments], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
