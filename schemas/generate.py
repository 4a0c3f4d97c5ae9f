"""Write the Python form of the schemas to bridge/wire, or check that it is what they give.

python schemas/generate.py            write
python schemas/generate.py --check    exit 1 and name the files that differ
"""

from __future__ import annotations

import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
PACKAGE = ROOT / "mapbridge" / "v1"
TARGET = ROOT.parent / "bridge" / "wire"


def generate(directory: Path) -> list[str]:
    """Generate into ``directory``; the names of the files."""
    include = resources.files("grpc_tools") / "_proto"
    sources = sorted(str(path) for path in PACKAGE.glob("*.proto"))
    arguments = [
        "protoc",
        f"--proto_path={ROOT}",
        f"--proto_path={include}",
        f"--python_out={directory}",
        f"--pyi_out={directory}",
        *sources,
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc: failed")
    return sorted(path.name for path in (directory / "mapbridge" / "v1").iterdir())


def main(arguments: list[str]) -> int:
    check = arguments == ["--check"]
    if arguments and not check:
        print(__doc__, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        differing: list[str] = []
        for file in generate(directory):
            fresh = (directory / "mapbridge" / "v1" / file).read_bytes()
            target = TARGET / file
            if not target.exists() or target.read_bytes() != fresh:
                differing.append(file)
                if not check:
                    target.write_bytes(fresh)
    for file in differing:
        print(f"{'differs' if check else 'wrote'}: {TARGET.name}/{file}")
    return 1 if check and differing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
