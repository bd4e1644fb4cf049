"""What differs between two configurations, key by key, and what of it a reload can put in force."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple, TypeAlias

from drover_proxy.config.model import Address, ProxyConfig
from drover_proxy.config.reader import Key
from drover_proxy.config.schema import ROOT

Path: TypeAlias = tuple[str | int, ...]
"""The way to a key: names, and numbers in lists."""


class Changes(NamedTuple):
    """What a reload comes to."""

    config: ProxyConfig
    """The new one; what changes at a restart only is as it was."""
    applied: list[str]
    waiting: list[str]
    """Keys that differ in the file, and change at a restart only."""


def changes(old: ProxyConfig, new: ProxyConfig) -> Changes:
    """Compare the configuration in force with the one in the file."""
    paths = list(_differences(old, new, ()))
    # What was made from a section was made from all of it.
    fixed = {str(path[0]) for path in paths if needs_restart(path)}
    return Changes(
        replace(new, **{top: getattr(old, top) for top in fixed}),
        [name(path) for path in paths if path[0] not in fixed],
        [name(path) for path in paths if path[0] in fixed],
    )


def needs_restart(path: Path) -> bool:
    """Whether a key changes at a restart only; what a section says holds for its keys that say nothing."""
    keys: Mapping[str, Key] | None = ROOT
    found = False
    for part in path:
        key = keys.get(str(part)) if keys is not None else None
        if key is not None:  # else the number of an entry, or the name of a model
            found = found if key.restart is None else key.restart
            keys = key.section
    return found


def name(path: Path) -> str:
    """Write a way as messages do: instances[0].slots."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)[1:]


def _differences(old: Any, new: Any, path: Path) -> Iterator[Path]:
    if old == new:
        return
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in {**old, **new}:
            yield from _differences(old.get(key), new.get(key), (*path, key))
    elif _lists_entries(old) and _lists_entries(new) and len(old) == len(new):
        for number, pair in enumerate(zip(old, new, strict=True)):
            yield from _differences(*pair, (*path, number))
    elif _is_section(old) and _is_section(new):
        for field in fields(old):
            yield from _differences(getattr(old, field.name), getattr(new, field.name), (*path, field.name))
    else:
        yield path


def _is_section(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, Address)


def _lists_entries(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(map(_is_section, value))
