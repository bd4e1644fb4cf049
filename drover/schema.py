"""Defaults and schema of every variable, read from the roles: their only home.

`roles/<layer>/defaults/main.yml` holds the defaults, `roles/<layer>/meta/argument_specs.yml` the types and
choices, and descriptions. `common` is no layer of a host: it holds the variables that several layers share.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import yaml

from drover.errors import DroverError

ROOT = Path(__file__).resolve().parents[1]
ROLES = ROOT / "roles"

# Bottom up: the order in which site.py lays them.
LAYERS = ("nvidia_driver", "container_toolkit", "ollama", "models", "proxy", "monitoring")
COMMON = "common"

Spec = dict[str, Any]


def _load_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DroverError(f"{path}: missing; is the checkout whole? Next: git status roles/") from None


@functools.cache
def _defaults_of(layer: str) -> dict[str, Any]:
    return _load_yaml(ROLES / layer / "defaults" / "main.yml") or {}


@functools.cache
def _options_of(layer: str) -> Spec:
    text = _load_yaml(ROLES / layer / "meta" / "argument_specs.yml")
    options: Spec = text["argument_specs"]["main"]["options"]
    return options


def sources(layers: tuple[str, ...] = LAYERS) -> tuple[str, ...]:
    """Return the role folders that hold the variables of these layers."""
    return tuple(name for name in (COMMON, *layers) if (ROLES / name).is_dir())


def prefixes() -> tuple[str, ...]:
    """Return how drover's variables start: one that starts so and isn't known is a mistake."""
    return tuple("mirror_" if name == COMMON else f"{name}_" for name in sources())


def load_defaults(layers: tuple[str, ...] = LAYERS) -> dict[str, Any]:
    """Return the default of every variable of these layers and of the shared ones."""
    merged: dict[str, Any] = {}
    for name in sources(layers):
        merged.update(_defaults_of(name))
    return merged


def load_options(layers: tuple[str, ...] = LAYERS) -> Spec:
    """Return the argument spec of every variable of these layers and of the shared ones."""
    merged: Spec = {}
    for name in sources(layers):
        merged.update(_options_of(name))
    return merged


def secret_names(layers: tuple[str, ...] = LAYERS) -> frozenset[str]:
    """Return the variables whose value must never be shown (`no_log` anywhere in their schema)."""
    return frozenset(name for name, option in load_options(layers).items() if holds_secret(option))


def holds_secret(option: Spec) -> bool:
    """Say whether this option, or one nested in it, is marked `no_log`."""
    if option.get("no_log"):
        return True
    return any(holds_secret(child) for child in (option.get("options") or {}).values())
