"""Validate the merged variables of a host against the schema of the roles, before anything connects.

Two judges: our own strict check, which can name the path, the nearest valid name and the next step, and
ansible-core's validator, which is what the roles will be held to. What the second finds beyond the first is
reported too, so that nothing passes here that Ansible would refuse.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from drover import ollama_env
from drover.ansible_core import argument_spec_validator
from drover.checks import Finding, check, describe, nearest_of
from drover.errors import Problem
from drover.rules import cross_checks
from drover.schema import (
    LAYERS,
    Spec,
    holds_secret,
    load_defaults,
    load_options,
    prefixes,
    secret_names,
)

__all__ = ["LAYERS", "load_defaults", "load_options", "secret_names", "validate"]

# An unknown name this close to one of ours, though without its prefix, is taken for a slip of the pen.
SLIP = 0.88


def validate(
    variables: Mapping[str, Any],
    *,
    host: str = "host",
    sources: Mapping[str, str] | None = None,
) -> list[Problem]:
    """Return every problem in one host's merged variables (defaults need not be among them)."""
    sources = sources or {}
    options = load_options()
    defaults = load_defaults()
    merged = {**defaults, **{key: value for key, value in variables.items() if key in options}}
    findings: list[Finding] = []
    findings += _unknown_names(variables, options)
    findings += _untemplated(variables, options)
    bad: set[str] = {finding.path for finding in findings}
    for name, option in options.items():
        found = list(check(name, merged.get(name), {**option, "required": defaults.get(name) is not None}))
        if name not in merged and option.get("required"):
            found = [Finding(name, "a value: it is required", "nothing")]
        if found:
            bad.add(name)
        findings += found
    findings += _unknown_ollama_settings(merged)
    findings += _second_opinion({name: merged[name] for name in merged if name not in bad}, options, bad)
    if not bad:
        findings += cross_checks(merged)
    return [_problem(host, finding, sources) for finding in findings]


def _problem(host: str, finding: Finding, sources: Mapping[str, str]) -> Problem:
    name = finding.path.split(".")[0].split("[")[0]
    return Problem(
        host=host,
        key=finding.path,
        expected=finding.expected,
        got=finding.got,
        source=sources.get(name),
        nearest=finding.nearest,
        next_command=finding.next_command,
    )


def _unknown_names(variables: Mapping[str, Any], options: Spec) -> Iterator[Finding]:
    known = list(options)
    for name in variables:
        if name in options or name.startswith("ansible_"):
            continue
        matching = [prefix for prefix in prefixes() if name.startswith(prefix)]
        if matching:
            layer = max(matching, key=len).rstrip("_")
            ours = [other for other in known if other.startswith(layer)]
            yield Finding(
                name,
                f"a variable of {layer}",
                "an unknown name",
                nearest=nearest_of(name, ours) or nearest_of(name, known),
                next_command="drover vars --names lists every variable",
            )
        elif slip := _slip(name, known):
            yield Finding(name, "a name that drover knows", "an unknown name", nearest=slip)


def _slip(name: str, known: list[str]) -> str | None:
    import difflib  # noqa: PLC0415 - only for names that aren't ours

    found = difflib.get_close_matches(name, known, n=1, cutoff=SLIP)
    return found[0] if found else None


def _untemplated(variables: Mapping[str, Any], options: Spec) -> Iterator[Finding]:
    """Refuse `{{ ... }}`: Ansible would expand it, pyinfra wouldn't, and the two would differ."""
    for name, value in variables.items():
        if name not in options and not name.startswith("ansible_"):
            continue
        for path, text in _texts(name, value):
            if "{{" in text or "{%" in text:
                secret = name in options and holds_secret(options[name])
                yield Finding(
                    path,
                    "a plain value",
                    f"a template: {describe(text, secret=secret)}",
                    next_command="write the value itself, or mark braces meant literally with !unsafe",
                )


def _texts(path: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, str) and not getattr(value, "literal", False):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(f"{path}.{key}", item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(f"{path}[{index}]", item)


def _unknown_ollama_settings(merged: Mapping[str, Any]) -> Iterator[Finding]:
    settings = merged.get("ollama_env")
    if not isinstance(settings, dict):
        return
    for key in settings:
        path = f"ollama_env.{key}"
        if key in ollama_env.ABSENT:
            fate, instead = ollama_env.ABSENT[key]
            yield Finding(
                path,
                "a setting that Ollama has",
                f"{key}, which {_clause(fate)}",
                next_command=f"use {instead}",
            )
        elif key in ollama_env.OWN:
            own = ollama_env.OWN[key]
            yield Finding(path, "a setting without a variable of its own", key, next_command=f"set {own}")
        elif str(key).startswith("OLLAMA_") and key not in ollama_env.KNOWN:
            yield Finding(
                path,
                "a setting that Ollama has",
                "an unknown name, which Ollama would ignore in silence",
                nearest=nearest_of(key, sorted(ollama_env.KNOWN)),
            )


def _clause(fate: str) -> str:
    """Turn a fate of the table into a relative clause."""
    if fate.startswith("removed"):
        return f"was {fate}"
    if fate.startswith("never merged"):
        return "was never merged"
    if fate.startswith("never"):
        return fate
    return f"doesn't do that: {fate}"


def _unshared(value: Any) -> Any:
    """Return a copy in which no two places share a mapping, as with YAML's anchors: the validator writes."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unshared(item) for item in value]
    return value


def _second_opinion(variables: dict[str, Any], options: Spec, bad: set[str]) -> Iterator[Finding]:
    """Let ansible-core's own validator judge what our check let pass."""
    validator = argument_spec_validator()
    specs = {name: option for name, option in options.items() if name not in bad}
    for name, option in specs.items():
        one = {name: _unshared(variables[name])} if name in variables else {}
        result = validator({name: option}).validate(one)
        for message in result.error_messages:
            text = "a value that it refuses (hidden)" if holds_secret(option) else message
            yield Finding(name, "what ansible-core's validator accepts", text)
