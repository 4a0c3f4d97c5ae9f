"""What a configuration is put together from, and where each value came from.

In rising order: the file, the files of ``conf.d`` beside it, ``MAPBRIDGE_*`` of the environment,
settings of the command line. A later one wins, key by key; ``[[maps]]`` of all files are taken
together. Nothing is judged here but that it can be read.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from bridge.config.places import lines_of
from bridge.config.problems import Problem, shown

PREFIX = "MAPBRIDGE_"
FOLDER = "conf.d"
FILE_BYTES_MAX = 1 << 20
FILES_MAX = 256
# Read by the program itself, and what it sets for programs that it starts.
_OTHERS = ("MAPBRIDGE_CONFIG", "MAPBRIDGE_VM")
# What Kubernetes gives to all containers that live beside a service called so.
_OF_A_PLATFORM = re.compile(r"_SERVICE_(HOST|PORT\w*)$|_PORT(_\d+_(TCP|UDP|SCTP)\w*)?$")
_NEAR = 0.8
NOT_TOML_HINT = "write text in quotes, and compare with `mapbridge config init`"
_LITERAL = re.compile(r"true|false|0|[1-9]\d{0,17}")

Data = dict[str, object]
Keys = Mapping[str, Mapping[str, bool]]  # of each table; whether a key takes other than text


@dataclass(slots=True)
class Layers:
    """The values of all, origins by path, what cannot be read, and what is only strange."""

    data: Data = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    unreadable: list[Problem] = field(default_factory=list)  # whole files
    warnings: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    def origin(self, path: str) -> str:
        """Where a key came from, or the table that lacks it; empty: nobody has named either."""
        while path:
            if path in self.origins:
                return self.origins[path]
            path = path.rpartition(".")[0]
        return ""

    def placed(self, problem: Problem) -> Problem:
        """The problem with its origin, files named as seen from the first one's folder."""
        origin = problem.origin or self.origin(problem.path)
        folder = f"{self.files[0].parent}/" if self.files else ""
        return replace(problem, origin=origin.removeprefix(folder))

    def add_files(self, path: Path) -> None:
        """The file, and those of its ``conf.d`` in the order of their names."""
        self._add_file(path)
        try:
            more = sorted(path.parent.joinpath(FOLDER).glob("*.toml"))
        except OSError as error:
            self.unreadable.append(
                Problem(str(path.parent / FOLDER), f"cannot be read: {_reason(error)}")
            )
            return
        if len(more) > FILES_MAX:
            reason = f"at most {FILES_MAX} files"
            self.unreadable.append(Problem(str(path.parent / FOLDER), reason, str(len(more))))
        for one in more[:FILES_MAX]:
            self._add_file(one)

    def add_environment(self, environment: Mapping[str, str], keys: Keys) -> None:
        """``MAPBRIDGE_BROKER_URL`` is ``broker.url``. Other names that begin so may be mistakes."""
        names = {_variable(table, key): (table, key) for table in keys for key in keys[table]}
        for variable, text in sorted(environment.items()):
            if not variable.startswith(PREFIX) or variable.startswith(_OTHERS):
                continue
            if variable in names:
                self._set(*names[variable], text, variable, keys)
            else:
                self._unknown(variable, names, keys)

    def add_settings(self, settings: Iterable[str], keys: Keys) -> None:
        """``table.key=value`` each, as the command line has them."""
        for setting in settings:
            path, mark, text = setting.partition("=")
            table, _, key = path.strip().partition(".")
            if mark and key in keys.get(table, ()):
                self._set(table, key, text.strip(), "--set", keys)
                continue
            known = [f"{table}.{key}" for table in keys for key in keys[table]]
            reason = "unknown key" if mark else "must be key=value, such as broker.url=nats://host"
            problem = Problem(path, reason, shown(setting), _nearest(path, known), "--set")
            self.problems.append(problem)

    def _set(self, table: str, key: str, text: str, origin: str, keys: Keys) -> None:
        values = self.data.setdefault(table, {})
        if isinstance(values, dict):
            literal = keys[table][key] and _LITERAL.fullmatch(text)
            values[key] = tomllib.loads(f"it = {text}")["it"] if literal else text
            self.origins[f"{table}.{key}"] = origin

    def _unknown(self, variable: str, names: Iterable[str], keys: Keys) -> None:
        """A mistake when it is close to a name or begins with a table; else perhaps of others."""
        if _OF_A_PLATFORM.search(variable):
            self.warnings.append(f"{variable}: is no setting, and is not used")
            return
        near = _nearest(variable, names)
        table = variable.removeprefix(PREFIX).partition("_")[0].lower()
        if near or table in keys:
            self.problems.append(
                Problem(variable, "is no setting", hint=near, origin="environment")
            )
        else:
            self.warnings.append(f"{variable}: is no setting, and is not used")

    def _add_file(self, path: Path) -> None:
        try:
            raw = path.read_bytes()
            if len(raw) > FILE_BYTES_MAX:
                raise ValueError(f"is too large (got {len(raw)} bytes)")
            text = raw.decode()
            data = tomllib.loads(text)
        except OSError as error:
            reason, hint = f"cannot be read: {_reason(error)}", "name the file with --config FILE"
        except UnicodeDecodeError as error:
            reason, hint = f"is not UTF-8: {error.reason}", NOT_TOML_HINT
        except tomllib.TOMLDecodeError as error:
            reason, hint = f"is not TOML: {str(error)[:1].lower()}{str(error)[1:]}", NOT_TOML_HINT
        except ValueError as error:
            reason, hint = str(error), ""
        else:
            self.files.append(path)
            self._merge(data, {key: f"{path}:{line}" for key, line in lines_of(text).items()})
            return
        self.unreadable.append(Problem(str(path), reason, hint=hint))

    def _merge(self, data: Data, origins: dict[str, str]) -> None:
        ours, theirs = self.data.get("maps"), data.get("maps")
        moved = len(ours) if isinstance(ours, list) and isinstance(theirs, list) else 0
        if moved and isinstance(ours, list) and isinstance(theirs, list):
            data = data | {"maps": [*ours, *theirs]}
            origins = {_moved(path, moved): origin for path, origin in origins.items()}
        for key, value in data.items():
            before = self.data.get(key)
            if isinstance(before, dict) and isinstance(value, dict):
                self.data[key] = before | value
            else:
                self.data[key] = value
        self.origins |= origins


def leaves(data: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Each value of nested tables by its path."""
    if isinstance(data, Mapping) and data:
        for key, value in data.items():
            yield from leaves(value, f"{path}.{key}" if path else key)
    elif isinstance(data, list) and data and all(isinstance(one, Mapping) for one in data):
        for number, value in enumerate(data):
            yield from leaves(value, f"{path}[{number}]")
    else:
        yield path, data


def _variable(table: str, key: str) -> str:
    return f"{PREFIX}{table}_{key}".upper()


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=_NEAR)
    return f"did you mean {close[0]}?" if close else ""


def _moved(path: str, by: int) -> str:
    """``maps[1].role`` as ``maps[3].role``, when the maps of two files stand before."""
    if not path.startswith("maps["):
        return path
    number, mark, rest = path.removeprefix("maps[").partition("]")
    return f"maps[{int(number) + by}{mark}{rest}"


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
