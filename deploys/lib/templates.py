"""Rendering templates to the same bytes as Ansible does."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from drover.schema import ROOT

TEMPLATES = ROOT / "templates"


def _to_json(value: Any) -> str:
    return json.dumps(value)


class _Dumper(yaml.SafeDumper):
    """Writes the marked texts of a fleet (secrets, literals) as the texts they are."""


_Dumper.add_multi_representer(str, lambda dumper, text: dumper.represent_str(str(text)))


def _to_nice_yaml(value: Any, indent: int = 4) -> str:
    return yaml.dump(value, Dumper=_Dumper, indent=indent, allow_unicode=True, default_flow_style=False)


def _bool(value: Any) -> bool:
    return value if isinstance(value, bool) else str(value).lower() in {"1", "true", "yes", "on", "y", "t"}


@functools.cache
def environment() -> Environment:
    """Return the environment: Ansible's settings, and those of its filters that our templates use."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - configuration files, not HTML
    )
    made.filters.update({"to_json": _to_json, "to_nice_yaml": _to_nice_yaml, "bool": _bool})
    return made


def render(layer: str, name: str, variables: Mapping[str, Any]) -> str:
    """Return templates/<layer>/<name> rendered with these variables; an undefined one is an error."""
    return environment().get_template(f"{layer}/{name}").render(**variables)
