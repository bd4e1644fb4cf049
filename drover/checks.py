"""Check one value against one option of an argument spec, strictly: nothing is converted in silence."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from drover.schema import Spec
from drover.vault import Secret


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong at one path inside a variable."""

    path: str
    expected: str
    got: str
    nearest: str | None = None
    next_command: str | None = None


STARS = "*" * 8
TYPE_WORDS = {
    "str": "a text (str)",
    "path": "a path (str)",
    "int": "a whole number (int)",
    "float": "a number (float)",
    "bool": "true or false (bool)",
    "list": "a list",
    "dict": "a mapping (dict)",
    "raw": "any value",
}
# What YAML 1.1 and people take for a truth, when it isn't bare.
BOOLEANS = dict.fromkeys(("true", "yes", "on", "1", "always"), True) | dict.fromkeys(
    ("false", "no", "off", "0", "never"), False
)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


MATCHES: dict[str, Callable[[object], bool]] = {
    "str": lambda value: isinstance(value, str),
    "path": lambda value: isinstance(value, str),
    "int": _is_int,
    "float": lambda value: _is_int(value) or isinstance(value, float),
    "bool": lambda value: isinstance(value, bool),
    "list": lambda value: isinstance(value, list),
    "dict": lambda value: isinstance(value, dict),
    "raw": lambda _value: True,
}


def describe(value: object, *, secret: bool = False) -> str:
    """Say what a value is, with its type; of a secret only the type."""
    kind = "str" if isinstance(value, str) else type(value).__name__
    if secret or redact(value, None) != value:
        return f"a {kind} (value hidden)"
    if value is None:
        return "null"
    text = json.dumps(value, default=str, ensure_ascii=False)
    if len(text) > 60:
        text = text[:57] + "..."
    return f"{text} ({kind})"


def nearest_of(name: object, known: list[str]) -> str | None:
    """Return the known name that this one was probably meant to be."""
    found = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    return found[0] if found else None


def _hint(expected: str, value: object) -> str | None:
    if expected in {"str", "path"} and isinstance(value, int | float) and not isinstance(value, bool):
        return f'quote it: "{value}"'
    if expected == "str" and isinstance(value, bool):
        word = "true" if value else "false"
        return f'quote it if the text is meant: "{word}" (bare yes, no, on and off are booleans in YAML)'
    if expected in {"int", "float"} and isinstance(value, str):
        return "write the number without quotes"
    if expected == "bool" and isinstance(value, str | int):
        return "write true or false without quotes"
    if expected == "list" and isinstance(value, str):
        return f"write a list: [{value}]"
    return None


def check(path: str, value: object, option: Spec, *, secret: bool = False) -> Iterator[Finding]:
    """Yield everything that is wrong with `value` as the option `option` at `path`."""
    secret = secret or bool(option.get("no_log"))
    kind = option.get("type", "str")
    if value is None:
        if option.get("required"):
            yield Finding(path, TYPE_WORDS[kind], "null", next_command="give it a value or remove the line")
        return
    if not MATCHES[kind](value):
        hint = None if secret else _hint(kind, value)
        yield Finding(path, TYPE_WORDS[kind], describe(value, secret=secret), next_command=hint)
        return
    choices = option.get("choices")
    if choices is not None and kind != "list" and not _is_among(value, choices):
        yield _not_a_choice(path, value, choices, secret=secret)
    if kind == "list":
        yield from _check_list(path, value, option, secret=secret)
    elif kind == "dict" and option.get("options"):
        yield from _check_dict(path, value, option["options"], secret=secret)


def _is_among(value: object, choices: list[Any]) -> bool:
    """Say whether a value is one of the choices, where 1 isn't true."""
    is_truth = isinstance(value, bool)
    return any(value == choice and isinstance(choice, bool) == is_truth for choice in choices)


def as_written(choice: object) -> str:
    """Return a choice as it stands in a fleet's YAML."""
    return json.dumps(choice) if isinstance(choice, bool) else str(choice)


def _not_a_choice(path: str, value: object, choices: list[Any], *, secret: bool) -> Finding:
    words = [as_written(choice) for choice in choices]
    nearest = None if secret else nearest_of(as_written(_as_bool(value, choices)), words)
    is_quoted = nearest in {"true", "false"} and isinstance(value, str)
    return Finding(
        path,
        "one of " + ", ".join(words),
        describe(value, secret=secret),
        nearest=nearest,
        next_command=f"write {nearest} without quotes" if is_quoted else None,
    )


def _as_bool(value: object, choices: list[Any]) -> object:
    """Return the truth that a value was probably meant to be, where a truth is among the choices."""
    if True in choices and str(value).lower() in BOOLEANS:
        return BOOLEANS[str(value).lower()]
    return value


def _check_list(path: str, value: Any, option: Spec, *, secret: bool) -> Iterator[Finding]:
    element = {
        "type": option.get("elements", "raw"),
        "options": option.get("options"),
        "choices": option.get("choices"),
        "required": True,
    }
    if element["choices"] is None:
        del element["choices"]
    for index, item in enumerate(value):
        label = f"{path}[{index}]"
        if isinstance(item, dict) and isinstance(item.get("name"), str) and not secret:
            label = f"{path}[{item['name']}]"
        yield from check(label, item, element, secret=secret)


def _check_dict(path: str, value: Any, options: dict[str, Spec], *, secret: bool) -> Iterator[Finding]:
    for key in value:
        if key not in options:
            yield Finding(
                f"{path}.{key}",
                "one of the keys " + ", ".join(sorted(options)),
                "an unknown key",
                nearest=nearest_of(key, list(options)),
            )
    for key, option in options.items():
        if key in value:
            yield from check(f"{path}.{key}", value[key], option, secret=secret)
        elif option.get("required"):
            yield Finding(
                f"{path}.{key}", TYPE_WORDS[option.get("type", "str")], "nothing: the key is missing"
            )


def redact(value: Any, option: Spec | None) -> Any:
    """Return the value with stars for every part that the schema marks as a secret or that was encrypted."""
    option = option or {}
    if isinstance(value, Secret) or option.get("no_log"):
        return value if value is None or value == "" else STARS  # noqa: PLC1901 - only these two tell nothing
    children = option.get("options") or {}
    if isinstance(value, dict):
        return {key: redact(item, children.get(key)) for key, item in value.items()}
    if isinstance(value, list):
        return [redact(item, {"options": children}) for item in value]
    return value
