"""Reads YAML along a tree of expected keys and collects every problem with its place.

The tree is data (schema.py); this file knows how to walk it. Working on YAML's nodes instead of on loaded
values keeps the line of each mistake, finds repeated keys, and never guesses a type.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml

REQUIRED: Any = object()
"""As a default: the key must be there."""

BYTES = re.compile(r"(\d+)\s*(B|KiB|MiB|GiB|TiB)?")
UNITS = {None: 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: where it is and what was expected there."""

    path: str
    message: str
    line: int = 0

    def __str__(self) -> str:
        place = f"line {self.line}: " if self.line else ""
        return f"{place}{self.path}: {self.message}" if self.path else f"{place}{self.message}"


class ConfigError(Exception):
    """The configuration can't be used; `problems` has every reason."""

    def __init__(self, file: str, problems: list[Problem]) -> None:
        self.file = file
        self.problems = problems
        super().__init__("\n".join(f"{file}: {problem}" for problem in problems))


@dataclass
class Report:
    """Collects problems while a file is read."""

    problems: list[Problem] = field(default_factory=list)

    def add(self, path: str, message: str, node: yaml.Node | None = None) -> None:
        """Note a problem at a node."""
        self.problems.append(Problem(path, message, node.start_mark.line + 1 if node else 0))


ReadValue: TypeAlias = Callable[[yaml.Node, str, Report], Any]


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a section: how its value is read, its default, and what the reference page says of it."""

    kind: str
    read: ReadValue
    default: Any
    meaning: str
    unit: str = ""
    shown_default: str | None = None
    section: Mapping[str, Key] | None = None
    restart: bool | None = None
    """A change counts at a restart only, and not at a reload; None: as for the section it stands in."""


def nearest(word: str, names: list[str], *, listed: bool = False) -> str:
    """Suggest a name for a mistyped one, as an ending for a message; `listed`: it names them all already."""
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if listed and not close:
        return ""
    return f"; did you mean {close[0]!r}?" if close else f"; known here: {', '.join(sorted(names))}"


def describe(node: yaml.Node) -> str:
    """Say what was found, for a message about what was expected."""
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    if node.tag.endswith(":null"):
        return "nothing"
    return repr(node.value)


def read_section(node: yaml.Node, path: str, report: Report, keys: Mapping[str, Key]) -> dict[str, Any]:
    """Read a mapping with known keys; what is absent gets its default."""
    values = {name: key.default for name, key in keys.items() if key.default is not REQUIRED}
    if not isinstance(node, yaml.MappingNode):
        if not node.tag.endswith(":null"):
            report.add(path, f"expected a mapping, found {describe(node)}", node)
            return values
        children: list[tuple[yaml.Node, yaml.Node]] = []
    else:
        children = node.value
    seen: set[str] = set()
    for name_node, value_node in children:
        name = str(name_node.value)
        here = f"{path}.{name}" if path else name
        key = keys.get(name)
        if name in seen:
            report.add(here, "this key stands here twice", name_node)
        elif key is None:
            report.add(here, f"unknown key{nearest(name, list(keys))}", name_node)
        elif value_node.tag.endswith(":null") and key.default is not REQUIRED:
            pass  # `key:` with nothing behind it is the default
        else:
            values[name] = key.read(value_node, here, report)
        seen.add(name)
    for name, key in keys.items():
        if key.default is REQUIRED and name not in seen:
            here = f"{path}.{name}" if path else name
            report.add(here, f"missing; expected {key.kind}", node)
    return values


def section(
    keys: Mapping[str, Key], meaning: str, default: Any = None, *, restart: bool | None = None
) -> Key:
    """Make a key whose value is a mapping with known keys; absent means each of their defaults."""
    empty = {name: key.default for name, key in keys.items()} if default is None else default

    def read(node: yaml.Node, path: str, report: Report) -> Any:
        return read_section(node, path, report, keys)

    return Key("mapping", read, empty, meaning, section=keys, shown_default="", restart=restart)


def _scalar(node: yaml.Node, path: str, report: Report, tags: tuple[str, ...], kind: str) -> str | None:
    if isinstance(node, yaml.ScalarNode) and node.tag.rpartition(":")[2] in tags:
        return str(node.value)
    report.add(path, f"expected {kind}, found {describe(node)}", node)
    return None


def text(kind: str = "text", pattern: str | None = None) -> ReadValue:
    """Read a non-empty string, optionally one that matches a pattern."""

    def read(node: yaml.Node, path: str, report: Report) -> Any:
        value = _scalar(node, path, report, ("str",), kind)
        if value is not None and (not value or (pattern and not re.fullmatch(pattern, value))):
            report.add(path, f"expected {kind}, found {value!r}", node)
            return None
        return value

    return read


def number(kind: str, low: float, high: float = math.inf, *, whole: bool = False) -> ReadValue:
    """Read a number within bounds."""

    def read(node: yaml.Node, path: str, report: Report) -> Any:
        raw = _scalar(node, path, report, ("int",) if whole else ("int", "float"), kind)
        if raw is None:
            return None
        value = yaml.safe_load(raw)
        if not low <= value <= high:
            bounds = f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}"
            report.add(path, f"expected {kind} of {bounds}, found {raw}", node)
            return None
        return int(value) if whole else float(value)

    return read


def size(low: int = 0) -> ReadValue:
    """Read a number of bytes: a plain number, or one with KiB, MiB, GiB, TiB."""

    def read(node: yaml.Node, path: str, report: Report) -> Any:
        kind = "bytes (4096, 512MiB, 1GiB)"
        raw = _scalar(node, path, report, ("int", "str"), kind)
        if raw is None:
            return None
        found = BYTES.fullmatch(raw.strip())
        value = int(found[1]) * UNITS[found[2]] if found else -1
        if value < low:
            report.add(path, f"expected {kind}{f', {low} or more' if low else ''}, found {raw!r}", node)
            return None
        return value

    return read


def flag(node: yaml.Node, path: str, report: Report) -> Any:
    """Read true or false."""
    raw = _scalar(node, path, report, ("bool",), "true or false")
    return None if raw is None else bool(yaml.safe_load(raw))


def choice(*names: str) -> ReadValue:
    """Read one of a few words."""

    def read(node: yaml.Node, path: str, report: Report) -> Any:
        raw = _scalar(node, path, report, ("str",), f"one of {', '.join(names)}")
        if raw is not None and raw not in names:
            report.add(
                path,
                f"expected one of {', '.join(names)}, found {raw!r}{nearest(raw, list(names), listed=True)}",
                node,
            )
            return None
        return raw

    return read


def items(read_item: ReadValue, kind: str, *, single: bool = False) -> ReadValue:
    """Read a list; with `single`, one item alone counts as a list of one."""

    def read(node: yaml.Node, path: str, report: Report) -> Any:
        if isinstance(node, yaml.SequenceNode):
            return [read_item(item, f"{path}[{index}]", report) for index, item in enumerate(node.value)]
        if single and isinstance(node, yaml.ScalarNode):
            return [read_item(node, path, report)]
        report.add(path, f"expected {kind}, found {describe(node)}", node)
        return []

    return read


def by_name(read_value: ReadValue) -> ReadValue:
    """Read a mapping whose keys are names that the operator chose."""

    def read(node: yaml.Node, path: str, report: Report) -> Any:
        values: dict[str, Any] = {}
        if not isinstance(node, yaml.MappingNode):
            report.add(path, f"expected a mapping by name, found {describe(node)}", node)
            return values
        for name_node, value_node in node.value:
            name = str(name_node.value)
            if name in values:
                report.add(f"{path}.{name}", "this key stands here twice", name_node)
            values[name] = read_value(value_node, f"{path}.{name}", report)
        return values

    return read
