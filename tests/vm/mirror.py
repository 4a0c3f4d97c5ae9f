"""Where this machine's own apt gets Debian from, so that no host name stands in this project.

apt's sources come in two forms, one line per entry and deb822 paragraphs (``sources.list(5)``).
Only what a kernel download needs is read: the address, the suites, the components, the keyring.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bridge.errors import UnavailableError

MIRROR_VARIABLE = "MAPBRIDGE_VM_MIRROR"
_ROLLING_SUITES = frozenset({"stable", "testing", "unstable", "sid"})


@dataclass(frozen=True, slots=True)
class Source:
    """One archive that apt knows: ``uri`` ends without a slash, ``signed_by`` may be empty."""

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str


@dataclass(frozen=True, slots=True)
class Mirror:
    """The two archives that Debian's kernels come from; ``security`` is None where not set up."""

    main: Source
    security: Source | None

    def sources_list(self, suite: str, *, with_security: bool) -> str:
        """The text of a deb822 file with ``suite``, and with its security updates if asked for."""
        paragraphs = [_paragraph(self.main, suite)]
        if with_security and self.security is not None:
            paragraphs.append(_paragraph(self.security, f"{suite}-security"))
        return "\n".join(paragraphs)


def _paragraph(source: Source, suite: str) -> str:
    lines = ["Types: deb", f"URIs: {source.uri}", f"Suites: {suite}", "Components: main"]
    if source.signed_by:
        lines.append(f"Signed-By: {source.signed_by}")
    return "\n".join(lines) + "\n"


def parse_one_line(text: str) -> Iterator[Source]:
    """Entries of the form ``deb [options] uri suite component...``."""
    for raw in text.splitlines():
        line = raw.split("#", 1)[0].strip()
        if not line.startswith(("deb ", "deb\t", "deb[")):
            continue
        rest, options = line[3:].strip(), ""
        if rest.startswith("["):
            options, _, rest = rest[1:].partition("]")
        fields = rest.split()
        if len(fields) < 2:
            continue
        signed_by = ""
        for option in options.split():
            name, _, value = option.partition("=")
            if name.lower() == "signed-by":
                signed_by = value
        yield Source(fields[0].rstrip("/"), (fields[1],), tuple(fields[2:]), signed_by)


def parse_deb822(text: str) -> Iterator[Source]:
    """Paragraphs of ``Field: value`` lines; a line that starts with a space continues a field."""
    for paragraph in text.replace("\r", "").split("\n\n"):
        fields: dict[str, str] = {}
        name = ""
        for line in paragraph.splitlines():
            if line.startswith("#") or not line.strip():
                continue
            if line[0] in " \t":
                # An embedded key holds its empty lines as dots: keep the line structure.
                fields[name] = fields.get(name, "") + "\n" + line
            else:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled") == "no":
            continue
        suites = tuple(fields.get("suites", "").split())
        components = tuple(fields.get("components", "").split())
        for uri in fields.get("uris", "").split():
            yield Source(uri.rstrip("/"), suites, components, fields.get("signed-by", ""))


def read_sources(apt_dir: Path = Path("/etc/apt")) -> list[Source]:
    """Everything that apt would read below ``apt_dir``, in its order."""
    found: list[Source] = []
    one_line = [apt_dir / "sources.list", *sorted(apt_dir.glob("sources.list.d/*.list"))]
    for path in one_line:
        if path.is_file():
            found.extend(parse_one_line(path.read_text()))
    for path in sorted(apt_dir.glob("sources.list.d/*.sources")):
        found.extend(parse_deb822(path.read_text()))
    return found


def find_mirror(codename: str, apt_dir: Path = Path("/etc/apt")) -> Mirror:
    """The archives of the running Debian, whose codename is given.

    Raises UnavailableError when apt has none; ``MAPBRIDGE_VM_MIRROR`` names one by hand.
    """
    override = os.environ.get(MIRROR_VARIABLE, "")
    if override:
        return Mirror(Source(override.rstrip("/"), (), ("main",), ""), None)
    main: Source | None = None
    security: Source | None = None
    bases = _ROLLING_SUITES | {codename}
    for source in read_sources(apt_dir):
        if "main" not in source.components:
            continue
        if main is None and bases.intersection(source.suites):
            main = source
        if security is None and {f"{base}-security" for base in bases}.intersection(source.suites):
            security = source
    if main is None:
        raise UnavailableError(
            f"kernel download: apt has no Debian archive with suite {codename} and component main",
            hint=f"set {MIRROR_VARIABLE} to the address of a Debian mirror",
        )
    return Mirror(main, security)
