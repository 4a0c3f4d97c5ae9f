"""``python -m tests.containers image|compose``: the images and docker-compose.yml, for real."""

from __future__ import annotations

import argparse
import sys

from tests.containers import compose, image
from tests.containers.engine import EngineError, find_engine


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.containers")
    parser.add_argument("what", choices=["image", "compose"])
    parser.add_argument(
        "--no-registry",
        action="store_true",
        help="do without a registry of images: bootstrap the base, stand in for others' images",
    )
    asked = parser.parse_args()
    try:
        with find_engine() as engine:
            if asked.what == "image":
                image.build(engine, bootstrap=asked.no_registry)
            else:
                compose.check(engine, stand_ins=asked.no_registry)
    except EngineError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
